"""Code: small Python functions of a number or of a list, with several implementations and tests.

A problem is a few operations in words, such as `Write f(x): times 3, then minus 2.` The expected values
come from applying the operations as Python functions, never from the written solutions; the arguments
include both sides of every threshold, so that a wrong constant fails.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from vibethinker.data.procedural.common import Draft, Family, Work


class Operation(NamedTuple):
    """`times 3` and the like; `amount` is unused by `squared`."""

    verb: str
    amount: int = 0

    @property
    def words(self) -> str:
        """The operation as a problem says it."""
        return self.verb if self.verb == "squared" else f"{self.verb} {self.amount}"

    def __call__(self, x: int) -> int:
        """The operation's result."""
        if self.verb == "squared":
            return x * x
        return {"times": x * self.amount, "plus": x + self.amount, "minus": x - self.amount}[self.verb]

    def on(self, operand: str) -> str:
        """The operation as an expression; the operand is bracketed where it is a sum."""
        if self.verb in ("plus", "minus"):
            return f"{operand}{'+' if self.verb == 'plus' else '-'}{self.amount}"
        if not operand.isidentifier() and ("+" in operand or "-" in operand):
            operand = f"({operand})"
        return f"{operand}*{operand}" if self.verb == "squared" else f"{operand}*{self.amount}"

    @property
    def short(self) -> str:
        """The operation as an expression without its operand."""
        return self.on("")


def completion(plan: str, lines: list[str], argument: str) -> str:
    """A finished solution: the plan as reasoning, then the function in a fenced block."""
    body = "\n".join(f"    {line}" for line in lines)
    return f"<think>{plan}</think>\n```python\ndef f({argument}):\n{body}\n```"


def function_tests(cases: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Tests of a function `f` of one argument, each case an argument and what it gives."""
    return {
        "kind": "function",
        "entry_point": "f",
        "cases": [{"args": [argument], "expected": expected} for argument, expected in cases],
    }


def scale(rng: Random, level: int) -> Operation:
    """A multiplication whose factor grows with the level."""
    return Operation("times", rng.randint(2, (9, 20, 60)[level - 1]))


def shift(rng: Random, level: int) -> Operation:
    """An addition or subtraction whose amount grows with the level."""
    return Operation(rng.choice(("plus", "minus")), rng.randint(1, (9, 40, 150)[level - 1]))


def chain(rng: Random, level: int) -> Draft:
    """Two or three operations in turn: one expression, a variable step by step, or the sum multiplied out."""
    operations = [scale(rng, level), shift(rng, level)]
    if rng.random() < 0.5:
        operations.reverse()
    if rng.random() < (0.6, 0.7, 1.0)[level - 1]:
        operations.append(shift(rng, level) if operations[-1].verb == "times" else scale(rng, level))
    if rng.random() < 0.15:
        operations[-1 if operations[-1].verb == "times" else -2] = Operation("squared")

    def value(x: int) -> int:
        for operation in operations:
            x = operation(x)
        return x

    expression = "x"
    for operation in operations:
        expression = operation.on(expression)
    *first, last = operations
    steps = [f"x={operation.on('x')}" for operation in first] + [f"return {last.on('x')}"]
    solutions = [
        completion(" ".join(one.short for one in operations), [f"return {expression}"], "x"),
        completion("steps", steps, "x"),
    ]
    expanded = _expand(operations)
    if expanded is not None:
        solutions.append(completion(expanded[0], [f"return {expanded[1]}"], "x"))

    *head, tail = (operation.words for operation in operations)
    text = f"Write f(x): {', '.join(head)}, then {tail}."
    return Draft(text, tuple(solutions), tests=function_tests([(x, value(x)) for x in (-3, 0, 1, 4, 7, 11)]))


def _expand(operations: list[Operation]) -> tuple[str, str] | None:
    """A shift followed by a scale, multiplied out: the step computing the constant, and the expression."""
    if operations[0].verb not in ("plus", "minus") or operations[1].verb != "times":
        return None
    (sign, b), (_, a) = operations[:2]
    expression = f"x*{a}{'+' if sign == 'plus' else '-'}{a * b}"
    if len(operations) > 2:
        expression = operations[2].on(expression)
    return f"{b}*{a}={a * b}", expression


def pipeline(rng: Random, level: int) -> Draft | None:
    """Keep some items of a list, change each, and return them or their sum: a comprehension, or a loop."""
    size = (9, 40, 150)[level - 1]
    kind = rng.choice(("above", "below", "even", "odd"))
    limit = rng.randint(1, size) if kind in ("above", "below") else 0
    keep = kind if kind in ("even", "odd") else f"{kind} {limit}"
    condition = {"above": f"x>{limit}", "below": f"x<{limit}", "even": "x%2==0", "odd": "x%2==1"}[kind]
    kept: Callable[[int], bool] = {
        "above": lambda x: x > limit,
        "below": lambda x: x < limit,
        "even": lambda x: x % 2 == 0,
        "odd": lambda x: x % 2 == 1,
    }[kind]
    each = rng.choice((scale(rng, level), shift(rng, level), Operation("squared")))
    summed = rng.random() < 0.5
    changed = each.on("x")
    if summed and limit and any(each(item) == 0 for item in (limit - 1, limit, limit + 1)):
        return None  # an item at the limit adds 0 to the sum, so a wrong limit would be right

    def value(items: list[int]) -> Any:
        result = [each(x) for x in items if kept(x)]
        return sum(result) if summed else result

    generator = f"{changed} for x in a if {condition}"
    start, collect = ("s=0", f"s+={changed}") if summed else ("s=[]", f"s.append({changed})")
    solutions = [
        completion(condition, [f"return sum({generator})" if summed else f"return [{generator}]"], "a"),
        completion("loop", [start, "for x in a:", f"    if {condition}:", f"        {collect}", "return s"], "a"),
    ]
    if summed and each.verb == "times":
        lines = [f"return {each.amount}*sum(x for x in a if {condition})"]
        solutions.append(completion(f"sum then {each.short}", lines, "a"))
    text = f"Write f(a): keep {keep}, each {each.words}{', sum' if summed else ''}."
    near = [limit + offset for offset in (-2, -1, 0, 1, 2)]
    lists: tuple[list[int], ...] = (
        near,
        [limit],
        [limit + 1, limit - 1],
        [3, 8, 5, 2],
        [limit + 7, limit - 7, 4, 1],
        [],
    )
    return Draft(text, tuple(solutions), tests=function_tests([(items, value(items)) for items in lists]))


def within(rng: Random, level: int) -> Draft:
    """Items of a list near a centre: by the distance, by the two bounds, or by a range."""
    centre = rng.randint(15, (60, 150, 600)[level - 1])
    reach = rng.randint(2, (14, 60, 250)[level - 1])
    low, high = centre - reach, centre + reach
    ending, expression = rng.choice(
        (
            ("", "[x for x in a if {}]"),
            (", sum", "sum(x for x in a if {})"),
            (", count", "sum({} for x in a)"),
        )
    )

    def value(items: list[int]) -> Any:
        kept = [x for x in items if abs(x - centre) <= reach]
        return {"": kept, ", sum": sum(kept), ", count": len(kept)}[ending]

    bounds, span = Work(), Work()
    bounds.sub(centre, reach)
    bounds.add(centre, reach)
    span.sub(centre, reach)
    span.add(span.add(centre, reach), 1)
    solutions = (
        completion("abs", [f"return {expression.format(f'abs(x-{centre})<={reach}')}"], "a"),
        completion(bounds.reasoning, [f"return {expression.format(f'{low}<=x<={high}')}"], "a"),
        completion(span.reasoning, [f"return {expression.format(f'x in range({low},{high + 1})')}"], "a"),
    )
    lists: tuple[list[int], ...] = (
        [low - 1, low, low + 1],
        [high + 1, high, high - 1],
        [centre, 2, -3],
        [low, 1, high],
        [],
    )
    text = f"Write f(a): keep within {reach} of {centre}{ending}."
    return Draft(text, solutions, tests=function_tests([(items, value(items)) for items in lists]))


def sequence(rng: Random, level: int) -> Draft:
    """Term n of an arithmetic sequence: from the zeroth term, from the first, or by a loop."""
    step = rng.randint(2, (12, 40, 150)[level - 1])
    start = rng.randint(1, (70, 300, 900)[level - 1])
    sign = rng.choice((1, -1)) if start > 2 * step else 1
    first, second, third = (start + sign * step * k for k in range(3))

    def difference(work: Work, left: int, right: int) -> None:
        work.sub(*((right, left) if sign > 0 else (left, right)))

    closed, anchored, loop = Work(), Work(), Work()
    difference(closed, first, second)
    zeroth = closed.sub(first, step) if sign > 0 else closed.add(first, step)
    difference(anchored, first, second)
    difference(loop, second, third)
    plus = "+" if sign > 0 else "-"
    solutions = (
        completion(closed.reasoning, [f"return {zeroth}{plus}n*{step}"], "n"),
        completion(anchored.reasoning, [f"return {first}{plus}(n-1)*{step}"], "n"),
        completion(
            loop.reasoning,
            [f"s={first}", "for i in range(n-1):", f"    s{plus}={step}", "return s"],
            "n",
        ),
    )
    cases = [(n, first + sign * step * (n - 1)) for n in (1, 2, 3, 5, 8, 12)]
    text = f"Write f(n): term n of {first}, {second}, {third}."
    return Draft(text, solutions, tests=function_tests(cases))


def line(rng: Random, level: int) -> Draft:
    """The linear function through two points: slope and intercept, or from either point."""
    slope = rng.randint(2, (9, 12, 20)[level - 1])
    intercept = rng.randint(0, (20, 60, 200)[level - 1])
    left = rng.randint(0, (3, 6, 9)[level - 1])
    right = left + rng.randint(2, (6, 9, 12)[level - 1])
    y, z = slope * left + intercept, slope * right + intercept

    def sloped() -> Work:
        work = Work()
        rise = work.sub(z, y)
        work.div(rise, work.sub(right, left) if left else right)
        return work

    by_intercept = sloped()
    if left:
        by_intercept.sub(y, by_intercept.mul(slope, left) if left > 1 else slope)
    solutions = [
        completion(by_intercept.reasoning, [f"return x*{slope}+{intercept}"], "x"),
        completion(sloped().reasoning, [f"return (x-{right})*{slope}+{z}"], "x"),
    ]
    if left:
        solutions.append(completion(sloped().reasoning, [f"return (x-{left})*{slope}+{y}"], "x"))
    cases = [(x, slope * x + intercept) for x in (-2, 0, 1, 3, 6, 10)]
    text = f"Write f(x): linear, f({left})={y}, f({right})={z}."
    return Draft(text, tuple(solutions), tests=function_tests(cases))


FAMILIES: tuple[Family, ...] = (chain, pipeline, within, sequence, line)
