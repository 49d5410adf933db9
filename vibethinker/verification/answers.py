r"""The exact path: decides equal strings, plain numbers, polynomials in one letter and plain words.

It runs in the caller's process, so it evaluates nothing: regular expressions, `Fraction` on bounded digits,
dictionaries of integer coefficients. What it can't decide for certain it leaves (None) to math-verify; a
property test holds the two together. Decimals closer than `_DOUBT` are left too, since math-verify rounds to
six places. Words (`\text{east}`) are compared as words here, because math-verify reads letters as a product,
in which "seat" equals "east".
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

LONGEST_ANSWER = 2000  # characters
_DEEPEST = 12  # nested brackets: parsing time is exponential in them
_LONGEST_NUMBER = 40  # characters: no gigantic integers
_DECIMAL_DIGITS = 15  # what a double holds: beyond, math-verify rounds
_DOUBT = Fraction(1, 100_000)

_SPACING = re.compile(r"\\[!,;: ]|\\(?:left|right|displaystyle)(?![a-zA-Z])|~")
_SPACES = re.compile(r"(?<![0-9A-Za-z.,])\s+|\s+(?![0-9A-Za-z.,])")
_BRACKETS = re.compile(r"[{}()\[\]]")
_FRACTION_STYLE = re.compile(r"\\[dtc]frac")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", re.ASCII)
_NUMBER = re.compile(r"([+-]?)(\d+)?(\.\d+)?", re.ASCII)
_RATIO = re.compile(r"([+-]?)(?:\\frac\{(-?\d+)\}\{(-?\d+)\}|\\frac(\d)(\d)|(\d+)/(\d+))", re.ASCII)
# Letters that math-verify might take for a constant or a unit (e, i, d, m, t …) are left to it.
_TERM = re.compile(
    r"([+-]?)(?:(\d{1,9})?(?:(?<=\d)(?:\*|\\cdot ?| ))?([xyz])(?:\^(?:(\d{1,2})|\{(\d{1,2})\}))?|(\d{1,9}))",
    re.ASCII,
)
_TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\{([^{}\\$]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' -]*")
_BARE_WORDS = re.compile(r"[A-Za-z]{4,}(?: [A-Za-z]+)*")


@lru_cache(maxsize=4096)
def normalise(answer: str) -> str:
    r"""Drop what never changes a meaning: delimiters, spacing, dollars, thousands separators, a full stop."""
    text = answer.strip()
    if text.startswith("\\(") and text.endswith("\\)"):
        text = text[2:-2]
    text = text.replace("\\$", "").replace("$", "").replace("{,}", ",").replace("\u2212", "-")
    text = _SPACING.sub(lambda m: " " if m.group() in ("\\ ", "~") else "", text)
    text = _FRACTION_STYLE.sub(r"\\frac", text)
    text = _SPACES.sub("", text.strip())
    if text.endswith(".") and not text.endswith(".."):
        text = text[:-1]
    return text.replace(",", "") if _THOUSANDS.fullmatch(text) else text


def decide(gold: str, answer: str) -> bool | None:
    """Whether `answer` equals `gold`, or None where math-verify must decide. Both are normalised."""
    if gold == answer:
        return True
    if len(answer) > LONGEST_ANSWER or _depth(answer) > _DEEPEST:
        return False
    first, second = _number(gold), _number(answer)
    if first is not None and second is not None:
        if first[0] == second[0]:
            return True
        exact = not (first[1] or second[1])
        return False if exact or abs(first[0] - second[0]) > _DOUBT else None
    left, right = _polynomial(gold), _polynomial(answer)
    if left is not None and right is not None:
        return left == right
    return _same_words(gold, answer)


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in _BRACKETS.findall(text):
        depth += 1 if bracket in "{([" else -1
        deepest = max(deepest, depth)
    return deepest


@lru_cache(maxsize=4096)
def _number(text: str) -> tuple[Fraction, bool] | None:
    """The value of an integer, decimal or simple fraction, and whether it was written as a decimal."""
    if not text or len(text) > _LONGEST_NUMBER:
        return None
    if match := _NUMBER.fullmatch(text):
        sign, whole, decimals = match.groups()
        if whole is None and decimals is None:
            return None
        digits = (whole or "0") + (decimals or "")
        if decimals and len(digits) - 1 > _DECIMAL_DIGITS:
            return None
        value = Fraction(digits)
        return (-value if sign == "-" else value), decimals is not None
    if match := _RATIO.fullmatch(text):
        top, bottom = (int(part) for part in match.groups()[1:] if part is not None)
        if bottom == 0:
            return None
        value = Fraction(top, bottom)
        return (-value if match[1] == "-" else value), False
    return None


@lru_cache(maxsize=4096)
def _polynomial(text: str) -> dict[tuple[str, int], int] | None:
    """Coefficients by (letter, degree) of a sum of integer monomials in x, y or z, or None."""
    if not text or len(text) > 200 or not any(letter in text for letter in "xyz"):
        return None
    coefficients: dict[tuple[str, int], int] = {}
    position = 0
    while position < len(text):
        term = _TERM.match(text, position)
        if term is None or (position and not term[1]):
            return None
        sign, factor, letter, bare, braced, constant = term.groups()
        degree = int(bare or braced or 1) if letter else 0
        key = (letter, degree) if degree else ("", 0)
        value = int(constant or factor or 1) * (-1 if sign == "-" else 1)
        coefficients[key] = coefficients.get(key, 0) + value
        position = term.end()
    return {key: value for key, value in coefficients.items() if value}


def _same_words(gold: str, answer: str) -> bool | None:
    wrapped, answer_text = _TEXT.fullmatch(gold), _TEXT.fullmatch(answer)
    expected = wrapped[1].strip() if wrapped else gold
    given = answer_text[1].strip() if answer_text else answer
    is_words = (_WORDS if wrapped else _BARE_WORDS).fullmatch(expected)
    return expected.casefold() == given.casefold() if is_words and _WORDS.fullmatch(given) else None
