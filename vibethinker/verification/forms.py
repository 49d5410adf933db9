"""The structure of an answer: one value, several, a set, a tuple or interval, a union, a matrix, words, a ratio…

A form's leaves are single values, which `answers` compares; `reading` takes a text apart into forms.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Leaf:
    """One value, as LaTeX; or anything that has no structure."""

    text: str


@dataclass(frozen=True)
class Words:
    """Plain words, in one spelling and without blanks."""

    text: str


@dataclass(frozen=True)
class Several:
    """Values without brackets: order doesn't matter, number does. `name` is what stands in front of each."""

    items: tuple[Form, ...]
    name: str | None = None
    either: bool = False  # joined by "or"


@dataclass(frozen=True)
class FiniteSet:
    """Values in braces: neither order nor number matters. The empty set has none."""

    items: tuple[Form, ...]


@dataclass(frozen=True)
class Bracketed:
    """A tuple, a point or an interval: items in order between brackets, `left` and `right`."""

    left: str
    right: str
    items: tuple[Form, ...]
    variable: str | None = field(default=None, compare=False)  # of the inequality that it was written as


@dataclass(frozen=True)
class Union:
    """Intervals and sets joined; order doesn't matter."""

    items: tuple[Form, ...]


@dataclass(frozen=True)
class Matrix:
    """Rows of entries."""

    rows: tuple[tuple[Form, ...], ...]


@dataclass(frozen=True)
class Exactly:
    """A ratio, a time or a number in a base: equal to itself alone. `base` is None where none is stated."""

    parts: tuple[str, ...]
    base: int | None = None


@dataclass(frozen=True)
class Named:
    """Values by distinct names."""

    values: tuple[tuple[str, Form], ...]


Form = Leaf | Words | Several | FiniteSet | Bracketed | Union | Matrix | Exactly | Named


@dataclass(frozen=True)
class Answer:
    """A form, the name in front of it if there is one, and the text as a whole."""

    name: str | None
    form: Form
    text: str


REALS = Bracketed("(", ")", (Leaf("-\\infty"), Leaf("\\infty")))
EMPTY = FiniteSet(())
