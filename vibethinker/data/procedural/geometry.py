"""Geometry: rectangles, trapezoids, angles of a triangle, and distances by Pythagorean triples."""

from __future__ import annotations

from random import Random

from vibethinker.data.procedural.common import Draft, Family, Work, maths

_TRIPLES = {
    1: ((3, 4, 5), (6, 8, 10)),
    2: ((3, 4, 5), (6, 8, 10), (5, 12, 13), (9, 12, 15)),
    3: ((5, 12, 13), (8, 15, 17), (9, 12, 15), (12, 16, 20), (7, 24, 25), (20, 21, 29)),
}


def perimeter(rng: Random, level: int) -> Draft:
    """Of a rectangle: double the sum, add the doubles, or add the sum to itself."""
    top = (40, 99, 400)[level - 1]
    a, b = rng.randint(2, top), rng.randint(2, top)

    double = Work()
    doubled = double.boxed(double.mul(2, double.add(a, b)))

    sides = Work()
    by_sides = sides.boxed(sides.add(sides.mul(2, a), sides.mul(2, b)))

    running = Work()
    half = running.add(a, b)
    added = running.boxed(running.add(half, half))
    return maths(f"Find the perimeter of a {a} by {b} rectangle.", 2 * (a + b), doubled, by_sides, added)


def missing_side(rng: Random, level: int) -> Draft:
    """The length of a rectangle from perimeter and width: halve first, or take off both widths first."""
    top = (30, 90, 300)[level - 1]
    a, b = rng.randint(2, top), rng.randint(2, top)
    p = 2 * (a + b)

    halve = Work()
    halved = halve.boxed(halve.sub(halve.div(p, 2), a))

    take = Work()
    taken = take.boxed(take.div(take.sub(p, take.mul(2, a)), 2))

    twice = Work()
    once = twice.boxed(twice.div(twice.sub(twice.sub(p, a), a), 2))
    return maths(f"A rectangle has perimeter {p} and width {a}. Find the length.", b, halved, taken, once)


def trapezoid(rng: Random, level: int) -> Draft | None:
    """Its area: mean of the bases times height, their product halved, or half the height first."""
    top = (12, 30, 60)[level - 1]
    a, b = rng.randint(2, top), rng.randint(2, top)
    h = rng.randint(2, (12, 12, 20)[level - 1])
    if ((a + b) % 2 and h % 2) or (a + b) * h > (200, 700, 2400)[level - 1]:
        return None
    area = (a + b) * h // 2

    product = Work()
    by_product = product.boxed(product.div(product.mul(product.add(a, b), h), 2))
    by_mean = by_half = None
    if (a + b) % 2 == 0:
        mean = Work()
        by_mean = mean.boxed(mean.mul(mean.div(mean.add(a, b), 2), h))
    if h % 2 == 0:
        half = Work()
        by_half = half.boxed(half.mul(half.div(h, 2), half.add(a, b)))
    return maths(f"Trapezoid with bases {a} and {b}, height {h}: find the area.", area, by_mean, by_half, by_product)


def third_angle(rng: Random, level: int) -> Draft | None:
    """Of a triangle: take the sum from 180, or one angle after the other."""
    grid = (5, 1, 1)[level - 1]
    a, b = (grid * rng.randint(10 // grid, 150 // grid) for _ in range(2))
    if a + b >= 180:
        return None

    total = Work()
    by_sum = total.boxed(total.sub(180, total.add(a, b)))
    first, second = Work(), Work()
    in_order = first.boxed(first.sub(first.sub(180, a), b))
    reversed_order = second.boxed(second.sub(second.sub(180, b), a))
    text = f"Two angles of a triangle are {a} and {b}. Find the third."
    return maths(text, 180 - a - b, by_sum, in_order, reversed_order)


def distance(rng: Random, level: int) -> Draft:
    """Between two grid points a Pythagorean triple apart: by the squares, or by the scaled 3-4-5 triangle."""
    *legs, hypotenuse = rng.choice(_TRIPLES[level])
    rng.shuffle(legs)
    width, height = legs
    reach = (9, 15, 30)[level - 1]
    x, y = rng.randint(0, reach), rng.randint(0, reach)

    squares = Work()
    dx, dy = squares.sub(x + width, x), squares.sub(y + height, y)
    squares.add(dx * dx, dy * dy)

    backwards = Work()
    dy, dx = backwards.sub(y + height, y), backwards.sub(x + width, x)
    backwards.add(dy * dy, dx * dx)

    scaled = None
    if 5 * sum(legs) == 7 * hypotenuse and hypotenuse > 5:
        scale = Work()
        dx = scale.sub(x + width, x)
        factor = hypotenuse // 5
        scale.div(dx, factor)
        scaled = scale.boxed(scale.mul(factor, 5))
    return maths(
        f"Find the distance from ({x},{y}) to ({x + width},{y + height}).",
        hypotenuse,
        squares.boxed(hypotenuse),
        backwards.boxed(hypotenuse),
        scaled,
    )


FAMILIES: tuple[Family, ...] = (perimeter, missing_side, trapezoid, third_angle, distance)
