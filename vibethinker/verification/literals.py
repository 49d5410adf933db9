r"""Numbers written out: integers, decimals, fractions, mixed numbers, powers of ten. Their exact value, or nothing.

No number is read that is too long for exact arithmetic to be instant.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

LONGEST = 60  # characters
_LARGEST_EXPONENT = 60
ROUNDED_PLACES = 6

_UNSIGNED = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)?(?:\.\d+)?"
_DECIMAL = re.compile(rf"([+-]?)({_UNSIGNED})", re.ASCII)
_REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\(?:overline|bar)\{?(\d+)\}?", re.ASCII)
_FRACTION = re.compile(r"([+-]?)\\frac\{([^{}]{1,20})\}\{([^{}]{1,20})\}", re.ASCII)
_RATIO = re.compile(r"([+-]?[\d.]{1,20})/([+-]?[\d.]{1,20})", re.ASCII)
_MIXED = re.compile(r"([+-]?)(\d{1,20}) ?(?:\\frac\{(\d{1,9})\}\{(\d{1,9})\}|(?<= )(\d{1,9})/(\d{1,9}))", re.ASCII)
_SCIENTIFIC = re.compile(
    rf"([+-]?{_UNSIGNED})(?:\\times ?|\\cdot ?|\*|x|(?<=\d)[eE])10\^\{{?([+-]?\d{{1,3}})\}}?", re.ASCII
)
_E_NOTATION = re.compile(rf"([+-]?{_UNSIGNED})[eE]([+-]?\d{{1,3}})", re.ASCII)
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}  # powers of ten
_SCALE = re.compile(rf"(.+?) ?(?:\\text\{{)?({'|'.join(SCALES)})s?\}}?", re.IGNORECASE)


class Literal(NamedTuple):
    """A value, and the decimal places it is written with; None for what isn't a decimal."""

    value: Fraction
    places: int | None

    def hundredth(self) -> Literal:
        """What so many per cent are."""
        return Literal(self.value / 100, None if self.places is None else self.places + 2)

    def __str__(self) -> str:
        if self.places is None:
            return f"\\frac{{{self.value.numerator}}}{{{self.value.denominator}}}"
        digits = f"{abs(int(self.value * 10**self.places)):0{self.places + 1}d}"
        return f"{'-' if self.value < 0 else ''}{digits[: -self.places]}.{digits[-self.places :]}"


def same(first: Literal, second: Literal) -> bool:
    """Whether two written numbers are equal: exactly, or the one is the other rounded to six places or more."""
    if first.value == second.value:
        return True
    if (first.places is None) == (second.places is None):
        return False
    rounded, exact = (first, second) if first.places is not None else (second, first)
    return rounds_to(exact.value, rounded)


def rounds_to(exact: Fraction, rounded: Literal) -> bool:
    """Whether `rounded`, a decimal other than 0, has at least six places, and is `exact` rounded to them."""
    places = rounded.places or 0
    return rounded.value != 0 and places >= ROUNDED_PLACES and abs(exact - rounded.value) * 2 * 10**places <= 1


@lru_cache(maxsize=8192)
def read(text: str) -> Literal | None:
    """The number that a normalised text is, or None where it isn't only a number."""
    if not text or len(text) > LONGEST:
        return None
    if text[0] == "(" and text[-1] == ")" and not set("(,") & set(text[1:]):  # (1,100) is a pair
        text = text[1:-1]
    return _decimal(text) or _quotient(text) or _mixed(text) or _scientific(text) or _scaled(text)


def _decimal(text: str) -> Literal | None:
    if (match := _DECIMAL.fullmatch(text)) and match[2]:
        digits = match[2].replace(",", "").replace(" ", "")
        value = Fraction(digits)
        places = len(digits.partition(".")[2]) if "." in digits else None
        return Literal(-value if match[1] == "-" else value, places)
    if match := _REPEATING.fullmatch(text):
        sign, whole, start, period = match.groups()
        value = Fraction(int((whole or "0") + start + period) - int((whole or "0") + start or "0"))
        value /= (10 ** len(period) - 1) * 10 ** len(start)
        return Literal(-value if sign == "-" else value, None)
    return None


def _quotient(text: str) -> Literal | None:
    if match := _FRACTION.fullmatch(text):
        sign, top, bottom = match.groups()
    elif match := _RATIO.fullmatch(text):
        sign, (top, bottom) = "", match.groups()
    else:
        return None
    numerator, denominator = _decimal(top), _decimal(bottom)
    if numerator is None or denominator is None or denominator.value == 0:
        return None
    value = numerator.value / denominator.value
    return Literal(-value if sign == "-" else value, None)


def _mixed(text: str) -> Literal | None:
    match = _MIXED.fullmatch(text)
    if match is None:
        return None
    top, bottom = int(match[3] or match[5]), int(match[4] or match[6])
    if not 0 < top < bottom:
        return None  # a product, perhaps
    value = int(match[2]) + Fraction(top, bottom)
    return Literal(-value if match[1] == "-" else value, None)


def _scientific(text: str) -> Literal | None:
    if match := _SCIENTIFIC.fullmatch(text):
        factor, exponent = _decimal(match[1] or "1"), int(match[2] or match[3])
    elif match := _E_NOTATION.fullmatch(text):
        factor, exponent = _decimal(match[1]), int(match[2])
    else:
        return None
    if factor is None or abs(exponent) > _LARGEST_EXPONENT:
        return None
    return Literal(factor.value * Fraction(10) ** exponent, None)


def _scaled(text: str) -> Literal | None:
    match = _SCALE.fullmatch(text)
    number = match and read(match[1])
    return Literal(number.value * 10 ** SCALES[match[2].lower()], None) if match and number else None
