"""Calculus: derivatives as expressions and at a point, points of slope 0, and definite integrals."""

from __future__ import annotations

from random import Random

from vibethinker.data.procedural.common import Draft, Family, Work, maths, signed


def term(coefficient: int, power: int) -> str:
    """`6x`, `x^2`, `5`: a term with a positive coefficient, without the 1 before x."""
    if power == 0:
        return str(coefficient)
    return f"{'' if coefficient == 1 else coefficient}x{f'^{power}' if power > 1 else ''}"


def differentiate(rng: Random, level: int) -> Draft:
    """Of a polynomial, as an expression: the power rule, or the product rule's sum for x*x; or term by
    term."""
    power = rng.randint(2, (2, 3, 5)[level - 1])
    a = rng.randint(2, (9, 12, 20)[level - 1])
    b = rng.randint(2, (9, 20, 40)[level - 1]) * rng.choice((1, -1))
    c = rng.randint(1, 9)
    lead = term(power * a, power - 1)
    answer = f"{lead}{signed(b)}"

    rule = Work()
    rule.mul(power, a)

    summed = Work()
    total = a
    for _ in range(power - 1):
        total = summed.add(total, a)

    terms = f"{term(a, power)}:{lead} {signed(b)}x:{signed(b)} +{c}:0"
    by_term = Work()
    by_term.note(terms)
    text = f"Differentiate {term(a, power)}{signed(b)}x+{c}."
    return maths(text, answer, rule.boxed(answer), summed.boxed(answer), by_term.boxed(answer))


def derivative_at(rng: Random, level: int) -> Draft | None:
    """Of `ax^2+bx` at a point: the rule and then the value, or the value of 2x first."""
    a = rng.randint(2, (6, 9, 12)[level - 1])
    b = rng.randint(1, (12, 30, 90)[level - 1])
    x = rng.randint(1, (9, 12, 20)[level - 1])
    minus = rng.random() < 0.4 and 2 * a * x > b
    value = 2 * a * x - b if minus else 2 * a * x + b
    if value > (144, 400, 1000)[level - 1]:
        return None

    def finish(work: Work, slope: int) -> str:
        return work.boxed(work.sub(slope, b) if minus else work.add(slope, b))

    rule, point = Work(), Work()
    first = finish(rule, rule.mul(rule.mul(2, a), x))
    second = finish(point, point.mul(a, point.mul(2, x)))
    twice = Work()
    part = twice.mul(a, x)
    third = finish(twice, twice.add(part, part))
    return maths(f"Find f'({x}) for f(x)={a}x^2{'-' if minus else '+'}{b}x.", value, first, second, third)


def flat_point(rng: Random, level: int) -> Draft | None:
    """Where `ax^2-bx+c` has slope 0: set 2ax = b, or halve b first, or divide by a first."""
    a = rng.randint(1, (6, 9, 12)[level - 1])
    x = rng.randint(1, (12, 15, 40)[level - 1])
    c = rng.randint(1, (20, 30, 40)[level - 1])
    b = 2 * a * x
    if (a == 1 and level > 1) or b > (96, 300, 900)[level - 1]:
        return None
    rule, halve = Work(), Work()
    by_rule = rule.boxed(rule.div(b, rule.mul(2, a)))
    by_half = halve.boxed(halve.div(halve.div(b, 2), a))
    divided = None
    if a > 1:
        divide = Work()
        divided = divide.boxed(divide.div(divide.div(b, a), 2))
    return maths(f"Find x where {term(a, 2)}-{b}x+{c} has slope 0.", x, by_rule, by_half, divided)


def integral_from_zero(rng: Random, level: int) -> Draft | None:
    """Of `ax+b` from 0: the antiderivative term by term, or with x taken out as a factor."""
    half = rng.randint(1, (6, 9, 12)[level - 1])
    b = rng.randint(1, (20, 30, 60)[level - 1])
    end = rng.randint(2, (8, 10, 12)[level - 1])
    value = half * end * end + b * end
    if value > (144, 600, 2000)[level - 1]:
        return None

    terms = Work()
    coefficient = terms.div(2 * half, 2)
    square = terms.mul(terms.mul(coefficient, end), end)
    by_terms = terms.boxed(terms.add(square, terms.mul(b, end)))

    factor = Work()
    inner = factor.add(factor.mul(factor.div(2 * half, 2), end), b)
    factored = factor.boxed(factor.mul(inner, end))

    mean = Work()
    last = mean.add(mean.mul(2 * half, end), b)
    by_mean = None
    if (last + b) % 2 == 0:
        by_mean = mean.boxed(mean.mul(mean.div(mean.add(last, b), 2), end))
    return maths(f"Integrate {2 * half}x+{b} from 0 to {end}.", value, factored, by_terms, by_mean)


def integral_between(rng: Random, level: int) -> Draft | None:
    """Of `ax` between two limits: the difference of squares as such, or as difference times sum."""
    half = rng.randint(1, (5, 9, 12)[level - 1])
    low = rng.randint(1, (11, 15, 20)[level - 1])
    high = rng.randint(low + 1, low + (7, 8, 10)[level - 1])
    value = half * (high * high - low * low)
    if high > (12, 15, 30)[level - 1] or value > (200, 900, 4000)[level - 1]:
        return None

    squares = Work()
    upper, lower = squares.mul(high, high), squares.mul(low, low)
    by_squares = squares.boxed(squares.mul(half, squares.sub(upper, lower)))

    product = Work()
    width, total = product.sub(high, low), product.add(high, low)
    by_product = product.boxed(product.mul(product.mul(width, total), half))
    return maths(f"Integrate {2 * half}x from {low} to {high}.", value, by_product, by_squares)


FAMILIES: tuple[Family, ...] = (
    differentiate,
    derivative_at,
    flat_point,
    integral_from_zero,
    integral_between,
)
