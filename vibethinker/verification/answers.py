r"""Whether an answer equals the gold one: the comparison of forms, and the exact path for their leaves.

`decide` runs in the caller's process, so it evaluates nothing: regular expressions, exact fractions, dictionaries of
integer coefficients. Where a leaf is more than it can compare, it says None, and a worker compares the same forms
with a full comparison of leaves (`equivalence`). A property test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from vibethinker.verification import brackets, forms, literals, reading, units
from vibethinker.verification.forms import Answer, Form
from vibethinker.verification.notation import normalise

LONGEST_ANSWER = 2000  # characters
_MOST_ITEMS = 64

# True, False, or None where it can't be told cheaply.
Decision = bool | None
CompareLeaves = Callable[[str, str], Decision]

# Letters that may stand for a constant or a unit (e, i, d, m, t …) aren't read as variables.
_TERM = re.compile(
    r"([+-]?)(?:(\d{1,9})?(?:(?<=\d)(?:\*|\\cdot ?| ))?([xyz])(?:\^(?:(\d{1,2})|\{(\d{1,2})\}))?|(\d{1,9}))",
    re.ASCII,
)
_CHOICE = re.compile(r"\(?([A-Z])\)?|\\text\{\(?([A-Z])\)?\}|\(\\text\{([A-Z])\}\)")
_CHOSEN = re.compile(
    r"(?:\\text\{)?(?:option|choice|answer)?:? ?(?:\(([A-Za-z])\)|([A-Z])(?:[).:]|$|\}| ?$))\}?(?P<rest>.*)",
    re.IGNORECASE,
)
_OTHER_CHOICE = re.compile(r"(?<![A-Za-z\\])[A-Z](?![A-Za-z])|\b(?:or|and)\b|^,")


def decide(gold: str, answer: str, leaves: CompareLeaves | None = None) -> Decision:
    """Whether `answer` equals `gold`, both as they were written; `leaves` compares single values, exactly by default.

    None: a leaf that the exact path can't compare decides.
    """
    if gold == answer:
        return True
    if len(answer) > max(LONGEST_ANSWER, 2 * len(gold)):
        return False
    expected, given = normalise(gold), normalise(answer)
    if expected == given:
        return True
    if brackets.depth(given) > brackets.DEEPEST:
        return False
    if choice := _CHOICE.fullmatch(expected):
        return _chosen(given) == next(filter(None, choice.groups()))
    try:
        return _compare(reading.read(expected), reading.read(given), leaves or exact)
    except RecursionError:
        return False


def _chosen(answer: str) -> str | None:
    """The letter of a multiple-choice answer; a small one counts in brackets only."""
    match = _CHOSEN.fullmatch(answer)
    if match is None or _OTHER_CHOICE.search(match["rest"]):
        return None
    letter = match[1].upper() if match[1] else match[2]
    return letter if letter.isupper() else None


def _compare(gold: Answer, given: Answer, leaves: CompareLeaves) -> Decision:
    if gold.name and given.name and gold.name != given.name:
        # Different names, or an equation that happens to have one on a side: as equations.
        return leaves(gold.text, given.text)
    expected, found = gold.form, given.form
    if isinstance(expected, forms.Leaf) and "=" in expected.text and given.name:
        return leaves(gold.text, given.text)
    if gold.name and isinstance(found, forms.Leaf) and "=" in found.text:
        return leaves(gold.text, given.text)
    return _compare_forms(expected, found, leaves)


def _compare_forms(gold: Form, given: Form, leaves: CompareLeaves) -> Decision:
    def equal(pair: tuple[Form, Form]) -> Decision:
        return _compare_forms(*pair, leaves)

    if isinstance(gold, forms.Leaf) and isinstance(given, forms.Leaf):
        return True if gold.text == given.text else leaves(gold.text, given.text)
    match gold, given:
        case forms.Several(), forms.Leaf():
            given = _split_thousands(given)
        case forms.FiniteSet(items=(only,)), _ if not isinstance(given, forms.FiniteSet | forms.Several):
            return equal((only, given))
        case _, forms.FiniteSet(items=(only,)) if not isinstance(gold, forms.FiniteSet | forms.Several):
            return equal((gold, only))
    match gold, given:
        case forms.Words(text=first), forms.Words(text=second):
            return first == second
        case (forms.Words(text=words), forms.Leaf(text=text)) | (forms.Leaf(text=text), forms.Words(text=words)):
            return words == text.lower().replace(" ", "")
        case forms.Several(items=first), forms.Several(items=second):
            return _matching(first, second, equal)
        case (
            (forms.FiniteSet(items=first), forms.FiniteSet(items=second))
            | (forms.FiniteSet(items=first), forms.Several(items=second))
            | (forms.Several(items=first), forms.FiniteSet(items=second))
        ):
            return _same_set(first, second, equal)
        case forms.Bracketed(), forms.Bracketed():
            if (gold.left, gold.right) != (given.left, given.right):
                return False
            return _in_order(gold.items, given.items, equal)
        case (forms.Bracketed(left="(", right=")", items=first), forms.Several(items=second, either=False)) | (
            forms.Several(items=first, either=False),
            forms.Bracketed(left="(", right=")", items=second),
        ):
            return _in_order(first, second, equal)
        case forms.Union(items=first), forms.Union(items=second):
            return _same_set(first, second, equal)
        case forms.Matrix(), forms.Matrix():
            if [len(row) for row in gold.rows] != [len(row) for row in given.rows]:
                return False
            return _all(
                equal(pair) for a, b in zip(gold.rows, given.rows, strict=True) for pair in zip(a, b, strict=True)
            )
        case forms.Exactly(), forms.Exactly():
            return gold == given
        case (forms.Exactly(parts=(digits,), base=int()), forms.Leaf(text=text)) | (
            forms.Leaf(text=text),
            forms.Exactly(parts=(digits,), base=int()),
        ):
            return text.lstrip("0").lower() == digits
        case forms.Named(values=first), forms.Named(values=second):
            same_names = [name for name, _ in first] == [name for name, _ in second]
            return same_names and _in_order([f for _, f in first], [f for _, f in second], equal)
        case forms.Named(values=values), forms.Bracketed(left="(", right=")") | forms.Several(either=False):
            return _in_order([form for _, form in values], given.items, equal)
        case forms.Bracketed(left="(", right=")") | forms.Several(either=False), forms.Named(values=values):
            return _in_order(gold.items, [form for _, form in values], equal)
    return False


def _split_thousands(leaf: forms.Leaf) -> Form:
    """A number with commas as the list that it may be; where the other side is one."""
    parts = leaf.text.split(",")
    return forms.Several(tuple(map(forms.Leaf, parts))) if len(parts) > 1 and all(parts) else leaf


def _all(decisions: Iterable[Decision]) -> Decision:
    known: Decision = True
    for decision in decisions:
        if decision is False:
            return False
        if decision is None:
            known = None
    return known


def _in_order(
    first: Sequence[Form], second: Sequence[Form], equal: Callable[[tuple[Form, Form]], Decision]
) -> Decision:
    return len(first) == len(second) and _all(map(equal, zip(first, second, strict=True)))


def _same_set(
    first: Sequence[Form], second: Sequence[Form], equal: Callable[[tuple[Form, Form]], Decision]
) -> Decision:
    """Whether each item has an equal one on the other side."""
    if len(first) > _MOST_ITEMS or len(second) > _MOST_ITEMS:
        return False
    table = [[equal((a, b)) for b in second] for a in first]
    return bool(first) == bool(second) and _all(map(_any, [*table, *map(list, zip(*table, strict=True))]))


def _any(decisions: Sequence[Decision]) -> Decision:
    return True if True in decisions else None if None in decisions else False


def _matching(
    first: Sequence[Form], second: Sequence[Form], equal: Callable[[tuple[Form, Form]], Decision]
) -> Decision:
    """Whether the items pair up, each with an equal one."""
    if len(first) != len(second) or len(first) > _MOST_ITEMS:
        return False
    table = [[equal((a, b)) for b in second] for a in first]
    if _pairs_up([[value is True for value in row] for row in table]):
        return True
    return None if _pairs_up([[value is not False for value in row] for row in table]) else False


def _pairs_up(allowed: Sequence[Sequence[bool]]) -> bool:
    """Whether a perfect matching exists, by augmenting paths."""
    partner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, possible in enumerate(allowed[row]):
            if possible and column not in tried:
                tried.add(column)
                if column not in partner or place(partner[column], tried):
                    partner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(allowed)))


def exact(gold: str, answer: str) -> Decision:
    """Whether two single values are equal, by written numbers and polynomials alone."""
    first, second = units.split(gold), units.split(answer)
    return quantities(first, second, _exact_values)


def quantities(first: units.Quantity, second: units.Quantity, equal: CompareLeaves) -> Decision:
    """Compare two quantities, their values by `equal`."""
    if units.PERCENT in (first.unit, second.unit) and first.unit != second.unit:
        other = second.unit if first.unit == units.PERCENT else first.unit
        if other is not None:
            return False
        as_written = equal(first.core, second.core)
        if as_written:
            return True
        percent = first if first.unit == units.PERCENT else second
        number = literals.read(percent.core)
        hundredth = str(number.hundredth()) if number else f"\\frac{{{percent.core}}}{{100}}"
        scaled = equal(hundredth, second.core) if percent is first else equal(first.core, hundredth)
        return _any([as_written, scaled])
    if first.unit and second.unit and first.unit != second.unit:
        return False
    return equal(first.core, second.core)


def _exact_values(gold: str, answer: str) -> Decision:
    if gold == answer:
        return True
    first, second = literals.read(gold), literals.read(answer)
    if first is not None and second is not None:
        return literals.same(first, second)
    left, right = _polynomial(gold), _polynomial(answer)
    if left is not None and right is not None:
        return left == right
    if (first and right) or (left and second):
        return False  # a decimal or a fraction, and a polynomial with a letter or another number
    return None


@lru_cache(maxsize=8192)
def _polynomial(text: str) -> dict[tuple[str, int], int] | None:
    """Coefficients by (letter, degree) of a sum of integer monomials in x, y or z, or None."""
    if not text or len(text) > 200:
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
