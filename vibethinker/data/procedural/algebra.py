"""Algebra: linear equations, brackets, two unknowns, and roots of a quadratic (from difficulty 2 on)."""

from __future__ import annotations

from random import Random

from vibethinker.data.procedural.common import Draft, Family, Work, maths, signed


def linear(rng: Random, level: int) -> Draft:
    """`ax+b=c`: undo the constant first, divide first where it goes, or recall the product."""
    a = rng.randint(2, (9, 12, 12)[level - 1])
    x = rng.randint(1, (9, 20, 60)[level - 1])
    b = rng.randint(1, (15, 60, 200)[level - 1])
    minus = rng.random() < 0.5 and a * x > b
    c = a * x - b if minus else a * x + b

    undo = Work()
    product = undo.add(c, b) if minus else undo.sub(c, b)
    undone = undo.boxed(undo.div(product, a))

    recall = Work()
    recall.mul(a, (recall.add(c, b) if minus else recall.sub(c, b)) // a)
    recalled = recall.boxed(x)

    divided = None
    if b % a == 0:
        divide = Work()
        part, whole = divide.div(b, a), divide.div(c, a)
        divided = divide.boxed(divide.add(whole, part) if minus else divide.sub(whole, part))
    return maths(f"Solve {a}x{'-' if minus else '+'}{b}={c}.", x, undone, recalled, divided)


def bracket(rng: Random, level: int) -> Draft | None:
    """`a(x+b)` at a value of x: the bracket first, or multiplied out."""
    a = rng.randint(2, (9, 12, 12)[level - 1])
    x = rng.randint(2, (9, 30, 90)[level - 1])
    b = rng.randint(1, (9, 30, 90)[level - 1])
    minus = rng.random() < 0.4 and x > b
    inner = x - b if minus else x + b
    if a * inner > (144, 600, 2000)[level - 1]:
        return None

    inside = Work()
    first = inside.boxed(inside.mul(a, inside.sub(x, b) if minus else inside.add(x, b)))

    expand = Work()
    ax, ab = expand.mul(a, x), expand.mul(a, b)
    expanded = expand.boxed(expand.sub(ax, ab) if minus else expand.add(ax, ab))
    return maths(f"Find {a}(x{'-' if minus else '+'}{b}) for x={x}.", a * inner, first, expanded)


def both_sides(rng: Random, level: int) -> Draft | None:
    """`ax+b=cx+d` with a > c: collect the unknown first, the numbers first, or recall the product."""
    top = (9, 15, 30)[level - 1]
    c = rng.randint(2, top - 1)
    a = rng.randint(c + 1, top)
    x = rng.randint(1, (9, 20, 50)[level - 1])
    b = rng.randint(1, (12, 60, 200)[level - 1])
    d = (a - c) * x + b
    if a - c == 1 or d > (60, 300, 1500)[level - 1]:
        return None

    unknown = Work()
    slope = unknown.sub(a, c)
    unknown_first = unknown.boxed(unknown.div(unknown.sub(d, b), slope))

    number = Work()
    rest = number.sub(d, b)
    number_first = number.boxed(number.div(rest, number.sub(a, c)))

    recall = Work()
    recall.sub(d, b)
    recall.mul(recall.sub(a, c), x)
    return maths(f"Solve {a}x+{b}={c}x+{d}.", x, unknown_first, number_first, recall.boxed(x))


def sum_and_difference(rng: Random, level: int) -> Draft:
    """`x+y=s, x-y=d`: add the equations, or subtract them; then the other unknown from the sum."""
    x = rng.randint(2, (30, 80, 400)[level - 1])
    y = rng.randint(1, x - 1)
    s, d = x + y, x - y
    asked, value, other = rng.choice((("x", x, y), ("y", y, x)))

    direct = Work()
    directly = direct.boxed(direct.div(direct.add(s, d) if asked == "x" else direct.sub(s, d), 2))

    detour = Work()
    detour.div(detour.sub(s, d) if asked == "x" else detour.add(s, d), 2)
    by_sum = detour.boxed(detour.sub(s, other))

    step = Work()
    step.div(step.sub(s, d) if asked == "x" else step.add(s, d), 2)
    by_difference = step.boxed(step.add(other, d) if asked == "x" else step.sub(other, d))
    return maths(f"If x+y={s} and x-y={d}, find {asked}.", value, directly, by_sum, by_difference)


def larger_root(rng: Random, level: int) -> Draft | None:
    """The larger (or smaller) root of `x^2-sx+p`: by the discriminant, or by splitting p and s into the
    roots."""
    if level == 1:
        return None
    top = (20, 40)[level - 2]
    p, q = rng.randint(1, top), rng.randint(1, top)
    if p == q:
        return None
    low, high = sorted((p, q))
    s, product = low + high, low * high
    asked, value = rng.choice((("larger", high), ("smaller", low)))

    formula = Work()
    formula.sub(formula.mul(s, s), formula.mul(4, product))
    root = high - low
    formula.mul(root, root)
    total = formula.add(s, root) if asked == "larger" else formula.sub(s, root)
    by_formula = formula.boxed(formula.div(total, 2))

    split = Work()
    split.mul(low, high)
    split.add(low, high)
    text = f"Find the {asked} root of x^2{signed(-s)}x{signed(product)}=0."
    return maths(text, value, split.boxed(value), by_formula)


FAMILIES: tuple[Family, ...] = (linear, bracket, both_sides, sum_and_difference, larger_root)
