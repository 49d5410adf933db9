"""What the families of all domains share: the draft of a problem, and the worked steps of its solutions.

Every step is one elementary operation written as `a op b = c` and computed as it is written, so a solution
cannot state a false equation. Divisions must be exact.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple


class Draft(NamedTuple):
    """A problem of a family before it gets its id: text, gold answer or tests, and the solutions."""

    text: str
    solutions: tuple[str, ...]
    answer: str | None = None
    tests: dict[str, Any] | None = None


# A family draws one problem of a difficulty (1 to 3); None where the numbers drawn make no good problem.
Family = Callable[[Random, int], Draft | None]


class Work:
    """The steps of one solution. Each operation writes its step and returns the result."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def add(self, a: int, b: int) -> int:
        """a + b."""
        return self._write(a, "+", b, a + b)

    def sub(self, a: int, b: int) -> int:
        """a - b."""
        return self._write(a, "-", b, a - b)

    def mul(self, a: int, b: int) -> int:
        """a * b."""
        return self._write(a, "*", b, a * b)

    def div(self, a: int, b: int) -> int:
        """a / b; ValueError if it is no integer."""
        if a % b:
            raise ValueError(f"{a}/{b} is no integer")
        return self._write(a, "/", b, a // b)

    def note(self, text: str) -> None:
        """Write a step that is no operation, such as the sorted numbers."""
        self.steps.append(text)

    @property
    def reasoning(self) -> str:
        """The steps so far, a space between them."""
        return " ".join(self.steps)

    def boxed(self, answer: int | str) -> str:
        """The finished solution: the steps as reasoning, then the boxed answer."""
        return f"<think>{self.reasoning}</think>\\boxed{{{answer}}}"

    def _write(self, a: int, sign: str, b: int, result: int) -> int:
        self.steps.append(f"{a}{sign}{b}={result}")
        return result


def maths(text: str, answer: int | str, *solutions: str | None) -> Draft:
    """The draft of a problem with a boxed answer; None stands for a way that these numbers don't allow."""
    return Draft(text, tuple(one for one in solutions if one is not None), answer=str(answer))


def signed(value: int) -> str:
    """A value with its sign, as it stands inside an expression: `+5`, `-3`, nothing for 0."""
    return f"{value:+d}" if value else ""
