r"""A normalised text taken apart into a form (`forms`), down to its leaves; nothing is evaluated.

Whatever isn't recognised is one leaf. A name in front (`x =`, `f(x) =`, `x \in`) is told apart from the form that it
names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import product

from vibethinker.verification import literals
from vibethinker.verification.brackets import DEEPEST, depth, spans, split
from vibethinker.verification.forms import (
    EMPTY,
    REALS,
    Answer,
    Bracketed,
    Exactly,
    FiniteSet,
    Form,
    Leaf,
    Matrix,
    Named,
    Several,
    Union,
    Words,
)

_MOST_SIGNS = 3

_CONNECTIVE = re.compile(r"(?:(?<=[^A-Za-z\\])|^)(?:and|or)(?=[^A-Za-z]|$)")
_RELATIONS = {"<": "<", ">": ">", "\\le": "<=", "\\ge": ">="}
_GREEK = (
    r"\\(?:alpha|beta|gamma|delta|epsilon|theta|lambda|mu|nu|phi|psi|rho|sigma|tau|omega|Delta|Omega|Theta)(?![a-z])"
)
_LETTER = (
    rf"(?:[A-Za-z]{{1,4}}|{_GREEK}|"
    r"\\(?:vec|hat|bar|overline|overrightarrow|mathbf|mathcal|text|operatorname) ?\{?[A-Za-z ]+\}?)"
)
_NAME = re.compile(
    rf"{_LETTER}(?:_(?:\w|\{{[^{{}}]*\}}))?'*(?:\([^()=]{{1,40}}\))?|\([A-Za-z](?:_\w)?(?:, ?[A-Za-z](?:_\w)?)+\)|"
    r"\\(?:angle|measuredangle|triangle|operatorname\{m\}\\angle) ?[A-Za-z]+|m\\angle ?[A-Za-z]+|\|[A-Za-z]+\||"
    r"\\frac\{d[a-z]?\}\{d[a-z]\}|[A-Za-z ]{2,40}"
)
_VARIABLE = re.compile(rf"(?:[A-Za-z]|{_GREEK})(?:_(?:\w|\{{[^{{}}]*\}}))?(?:\([A-Za-z]\))?")
_DENIAL = re.compile(r"\b(?:not|but|isn|never|except)\b", re.IGNORECASE)
_SEPARATED = re.compile(r"=.*(?:,|;|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])).*=")
_NO_NAMES = frozenset({"\\pi", "e", "i", "\\infty", "-\\infty"})
_RATIO = re.compile(
    r"(\d{1,9}(?:\.\d{1,9})?)((?: ?: ?\d{1,9}(?:\.\d{1,9})?)+)( ?(?:\\text\{ ?)?[ap]\.? ?m\.?\}?)?", re.IGNORECASE
)
_BASE = re.compile(r"(-?)\(?(\d[0-9A-Za-z]*|[0-9A-Fa-f]{2,})\)?_(?:\{?(\d{1,2})\}?|\{?\\text\{ ?(\w+)\}\}?)")
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "twelve": 12}
_MATRIX = re.compile(
    r"(?:[\[(])?\\begin\{(p|b|B|small)?(?:matrix|array)\}(?:\{[clr|]+\})?(.*)\\end\{(?:p|b|B|small)?(?:matrix|array)\}(?:[\])])?",
    re.DOTALL,
)
# ]0,1] and the like: brackets turned away exclude the end.
_TURNED = re.compile(r"(\])([^()\[\]]+,[^()\[\]]+)([\[\])])|([\[(])([^()\[\]]+,[^()\[\]]+)(\[)")
_OPENED, _CLOSED = {"]": "(", "[": "[", "(": "("}, {"[": ")", "]": "]", ")": ")"}
_OTHER_COMMA = re.compile(r",(?!\d{3}(?!\d))(?! )")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_TEXT = re.compile(r"\\text\{([^{}\\$]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' ,-]*")
_BARE_WORDS = re.compile(r"[a-z]{4,}(?:[ -][a-z']+)*|[a-z]+(?: [a-z']+)+")  # fewer letters may be a product
_CAPITALS = re.compile(r"[A-Z]{2,}")
_SHORT_WORDS = frozenset({"yes", "no", "odd", "all", "any", "one", "two", "six", "ten", "dne"})
_EMPTY = frozenset(
    {"no solution", "no solutions", "none", "empty set", "no real solution", "no real solutions", "null"}
)
_REALS = frozenset({"all real numbers", "all reals", "all real", "real numbers", "any real number"})
_ARTICLE = re.compile(r"^(?:an?|the) (?=.)")


@lru_cache(maxsize=8192)
def read(text: str) -> Answer:
    """A normalised text as an answer."""
    if depth(text) > DEEPEST:
        return Answer(None, Leaf(text), text)
    name, rest = _strip_name(text)
    form = _form(rest)
    if name is None and isinstance(form, Several):
        name = form.name
    if name is None and isinstance(form, Bracketed):
        name = form.variable
    if name is None and isinstance(form, Union):
        names = {part.variable for part in form.items if isinstance(part, Bracketed)}
        name = names.pop() if len(names) == 1 else None
    letters = name[1:-1].split(",") if name and name[0] == "(" else []
    if isinstance(form, Bracketed) and len(letters) == len(form.items) > 0:
        return Answer(None, Named(tuple(sorted(zip(letters, form.items, strict=True), key=lambda pair: pair[0]))), text)
    return Answer(name, form, text)


def _strip_name(text: str) -> tuple[str | None, str]:
    approximate = [part for part in split(text, frozenset({"\\approx"})) if part[1]] or [("", text)]
    text = text if len(approximate) > 1 else approximate[0][1]
    if len(approximate) > 1:
        first = approximate[0][1]
        text = approximate[1][1] if _is_name(first) and "=" not in first else first
        if _is_name(first) and "=" not in first:
            return _plain(first), text
    membership = split(text, frozenset({"\\in"}))
    if len(membership) == 2 and _is_name(membership[0][1]):
        return _plain(membership[0][1]), membership[1][1]
    sides = [side for _, side in split(text, frozenset({"="}))]
    if len(sides) > 1 and all(sides) and not _SEPARATED.search(text):
        if _is_name(sides[0]):
            return _plain(sides[0]), sides[-1]
        if len(sides) == 2 and _is_name(sides[1]) and not _is_name(sides[0]):
            return _plain(sides[1]), sides[0]
        if len(sides) > 2 or _numeric(sides[0]):
            return None, sides[-1]
    return None, text


def _numeric(text: str) -> bool:
    """Whether it has no variable, so that it names nothing and has nothing to solve for."""
    return not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", re.sub(_GREEK, " a ", text)))


def _is_name(text: str) -> bool:
    return text not in _NO_NAMES and _NAME.fullmatch(text) is not None and not _DENIAL.search(text)


def _plain(name: str) -> str:
    return _TEXT.sub(r"\1", name).replace("{", "").replace("}", "").replace(" ", "").replace("\\", "")


def _form(text: str) -> Form:
    if literals.read(text):
        return Leaf(text)
    return _worded(text) or _structured(text) or Leaf(text)


def _worded(text: str) -> Form | None:
    wrapped = _TEXT.fullmatch(text)
    plain = " ".join((wrapped[1] if wrapped else text).replace('"', "").replace("'", "'").strip(" .'").lower().split())
    if plain in _EMPTY or text == "\\emptyset" or text == "\\{\\}":
        return EMPTY
    if plain in _REALS or text == "\\mathbb{R}":
        return REALS
    if plain in ("infinity", "-infinity"):
        return Leaf(text.replace("infinity", "\\infty"))
    if _CAPITALS.fullmatch(text):
        return Words("".join(sorted(plain)) if len(plain) == 2 else plain)  # AB is the segment BA
    pattern = _WORDS if wrapped or plain in _SHORT_WORDS else _BARE_WORDS
    if pattern.fullmatch(plain) and (wrapped or not _CONNECTIVE.search(plain)):
        return Words(_ARTICLE.sub("", plain, count=1).replace(" ", ""))
    return None


def _structured(text: str) -> Form | None:
    return (
        _union(text)
        or _several(text)
        or _bracketed(text)
        or _matrix(text)
        or _inequality(text)
        or _plus_minus(text)
        or _exactly(text)
    )


def _union(text: str) -> Form | None:
    parts = [part.strip() for part in text.split("\\cup")]
    if len(parts) == 1:
        parts = re.split(r"(?<=[\])}]) ?U ?(?=[\[({\\])", text)
    return Union(tuple(_form(part) for part in parts)) if len(parts) > 1 and all(parts) else None


def _several(text: str) -> Form | None:
    marked = _CONNECTIVE.sub(lambda m: ";" if m[0] == "and" else "\\or ", text)
    if not _OTHER_COMMA.search(text):
        # In 1,234 and 5,678 the commas that no space follows are of the numbers.
        marked = _THOUSANDS.sub("\0", marked)
    parts = split(marked, frozenset({",", ";", "\\or"}))
    parts = [(mark, part.replace("\0", ",")) for mark, part in parts if part]
    if len(parts) < 2:
        return None
    answers = [read(part) for _, part in parts]
    either = any(mark == "\\or" for mark, _ in parts)
    variables = {a.form.variable if isinstance(a.form, Bracketed) else None for a in answers}
    if either and len(variables) == 1 and None not in variables:
        return Union(tuple(answer.form for answer in answers))
    names = [answer.name for answer in answers]
    if not either and all(names) and len(set(names)) == len(names) and not all("_" in str(name) for name in names):
        return Named(tuple(sorted((str(a.name), a.form) for a in answers)))
    if names[0] and len(set(filter(None, names))) > 1 and not all("_" in str(name) for name in names if name):
        return None
    items: list[Form] = []
    for answer in answers:
        items += answer.form.items if isinstance(answer.form, Several) else (answer.form,)
    return Several(tuple(items), names[0] if len(set(filter(None, names))) == 1 else None, either)


def _bracketed(text: str) -> Form | None:
    for opening, closing in (("\\{", "\\}"), ("\\langle", "\\rangle")):
        if text.startswith(opening) and text.endswith(closing) and spans(text):
            items = _items(text[len(opening) : -len(closing)])
            if opening == "\\{":
                items = tuple(i for item in items for i in (item.items if isinstance(item, Several) else (item,)))
                return FiniteSet(items) if not any(_is_condition(item) for item in items) else None
            return Bracketed("(", ")", items)
    if turned := _TURNED.fullmatch(text):
        left, ends, right = filter(None, turned.groups())
        text = f"{_OPENED[left]}{ends}{_CLOSED[right]}"
    if text[:1] not in ("(", "[") or text[-1:] not in (")", "]") or not spans(text):
        return None
    items = _items(text[1:-1])
    if len(items) == 1:
        return _form(text[1:-1])
    left, right = text[0], text[-1]
    if len(items) > 2 and left + right == "[]":
        left, right = "(", ")"  # no interval: brackets are a matter of taste
    return Bracketed(left, right, items)


def _items(text: str) -> tuple[Form, ...]:
    separators = frozenset({";"}) if len(split(text, frozenset({";"}))) > 1 else frozenset({","})
    return tuple(_form(part) for _, part in split(text, separators) if part)


def _is_condition(item: Form) -> bool:
    return isinstance(item, Leaf) and ("\\mid" in item.text or "|" in item.text or ":" in item.text)


def _matrix(text: str) -> Form | None:
    match = _MATRIX.fullmatch(text)
    if match is None or "\\begin" in match[2]:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[2].replace("\\hline", "")) if row.strip()]
    return Matrix(tuple(tuple(_form(entry.strip()) for entry in row.split("&")) for row in rows))


def _inequality(text: str) -> Form | None:
    parts = split(text, frozenset(_RELATIONS))
    signs = [_RELATIONS[mark] for mark, _ in parts[1:]]
    sides = [side for _, side in parts]
    if not signs or not all(sides):
        return None
    if len(signs) == 1:
        if _VARIABLE.fullmatch(sides[0]):
            variable, end, sign = sides[0], sides[1], signs[0]
        elif _VARIABLE.fullmatch(sides[1]):
            variable, end, sign = sides[1], sides[0], signs[0].translate(str.maketrans("<>", "><"))
        else:
            return None
        if sign[0] == "<":
            return Bracketed("(", "]" if sign == "<=" else ")", (Leaf("-\\infty"), _form(end)), _plain(variable))
        return Bracketed("[" if sign == ">=" else "(", ")", (_form(end), Leaf("\\infty")), _plain(variable))
    if len(signs) == 2 and _VARIABLE.fullmatch(sides[1]) and signs[0][0] == signs[1][0]:
        if signs[0][0] == ">":
            sides, signs = sides[::-1], signs[::-1]
        left, right = "[" if "=" in signs[0] else "(", "]" if "=" in signs[1] else ")"
        return Bracketed(left, right, (_form(sides[0]), _form(sides[2])), _plain(sides[1]))
    return None


def _plus_minus(text: str) -> Form | None:
    count = text.count("\\pm")
    if not count and "\\mp" not in text:
        return None
    if count > _MOST_SIGNS:
        return Leaf(text)
    # One sign for all where a \mp says that they belong together, else each by itself.
    together = count <= 1 or "\\mp" in text
    choices = [("+",) * count, ("-",) * count] if together else list(product("+-", repeat=count))
    found = []
    for signs in choices:

        def following(_: re.Match[str], upper: Iterator[str] = iter(signs)) -> str:  # noqa: B008 - one a round
            return next(upper)

        written = re.sub(r"\\pm ?", following, text)
        written = re.sub(r"\\mp ?", "-" if signs[:1] != ("-",) else "+", written)
        found.append(_form(written.removeprefix("+")))
    return Several(tuple(found))


def _exactly(text: str) -> Form | None:
    if match := _RATIO.fullmatch(text):
        numbers = [str(int(n)) if n.isdigit() else n for n in re.split(r" ?: ?", match[1] + match[2])]
        half = re.sub(r"[^apm]", "", re.sub(r"\\text", "", match[3] or "").lower())
        return Exactly(tuple(numbers) + ((half,) if half else ()))
    if match := _BASE.fullmatch(text):
        base = int(match[3]) if match[3] else _BASES.get(match[4].lower(), 0)
        digits = match[2].lstrip("0").lower() or "0"
        if 2 <= base <= 36 and all(int(digit, 36) < base for digit in digits):
            return Exactly((match[1] + digits,), base)
    return None
