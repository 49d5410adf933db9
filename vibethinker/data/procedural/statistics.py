"""Statistics: mean, median, range, a number missing from a mean, and a chance as a fraction."""

from __future__ import annotations

from fractions import Fraction
from math import gcd
from random import Random

from vibethinker.data.procedural.common import Draft, Family, Work, maths


def listed(values: list[int]) -> str:
    """Numbers as a problem lists them."""
    return ", ".join(map(str, values))


def mean(rng: Random, level: int) -> Draft | None:
    """A running sum divided, the sum from the other end, or the mean of what exceeds the smallest."""
    size = 3 if level == 1 else rng.randint(3, level + 2)
    values = [rng.randint(1, (15, 30, 90)[level - 1]) for _ in range(size)]
    if sum(values) % size:
        return None

    def running(order: list[int]) -> str:
        work = Work()
        total = order[0]
        for value in order[1:]:
            total = work.add(total, value)
        return work.boxed(work.div(total, size))

    base = min(values)
    above = Work()
    total = 0
    for value in values:
        if value != base:
            excess = above.sub(value, base)
            total = above.add(total, excess) if total else excess
    from_smallest = above.boxed(above.add(base, above.div(total, size))) if total else None
    text = f"Find the mean of {listed(values)}."
    return maths(text, sum(values) // size, running(values), running(values[::-1]), from_smallest)


def median(rng: Random, level: int) -> Draft:
    """Of an odd number of values: sort them, or strike out the smallest and the largest in turn."""
    size = (5, 5, 7)[level - 1]
    values = rng.sample(range(1, (13, 60, 99)[level - 1]), size)
    ordered = sorted(values)
    sort, strike = Work(), Work()
    sort.note(" ".join(map(str, ordered)))
    for i in range(size // 2):
        strike.note(f"drop {ordered[i]} {ordered[-1 - i]}")
    answer = ordered[size // 2]
    return maths(f"Find the median of {listed(values)}.", answer, sort.boxed(answer), strike.boxed(answer))


def spread(rng: Random, level: int) -> Draft:
    """The range: largest minus smallest, or the sum of the gaps between the sorted values."""
    size = (4, 5, 6)[level - 1]
    values = rng.sample(range(1, (20, 60, 200)[level - 1]), size)
    ordered = sorted(values)
    direct = Work()
    answer = direct.sub(ordered[-1], ordered[0])
    sort = Work()
    sort.note(" ".join(map(str, ordered)))
    sort.sub(ordered[-1], ordered[0])
    count = Work()
    count.note(f"min {ordered[0]} max {ordered[-1]}")
    count.add(ordered[0], answer)
    text = f"Find the range of {listed(values)}."
    return maths(text, answer, direct.boxed(answer), sort.boxed(answer), count.boxed(answer))


def missing_value(rng: Random, level: int) -> Draft | None:
    """The third value from the mean: the total less the others, one after the other, or balanced
    deviations."""
    top = (12, 40, 120)[level - 1]
    a, b = rng.randint(1, top), rng.randint(1, top)
    m = rng.randint(2, (12, 40, 120)[level - 1])
    n = 3 * m - a - b
    if n < 1:
        return None
    together, apart = Work(), Work()
    total = together.mul(3, m)
    by_sum = together.boxed(together.sub(total, together.add(a, b)))
    one_by_one = apart.boxed(apart.sub(apart.sub(apart.mul(3, m), a), b))
    balanced = None
    if a <= m and b <= m:
        balance = Work()
        short = balance.add(balance.sub(m, a), balance.sub(m, b))
        balanced = balance.boxed(balance.add(m, short))
    return maths(f"If {a}, {b} and n have mean {m}, find n.", n, by_sum, one_by_one, balanced)


def chance(rng: Random, level: int) -> Draft:
    """Of a colour: part of the total, from the reduced ratio, or from the other colour's chance."""
    top = (18, 40, 99)[level - 1]
    red, blue = rng.randint(1, top), rng.randint(1, top)
    asked, part, other = rng.choice((("red", red, blue), ("blue", blue, red)))
    answer = Fraction(part, red + blue)
    common = gcd(red, blue)

    total = Work()
    total.add(red, blue)
    if common > 1:
        total.div(part, common)
        total.div(red + blue, common)
    ratio = Work()
    if common > 1:
        ratio.add(ratio.div(part, common), ratio.div(other, common))
    else:
        ratio.note(f"{part}:{other}")
        ratio.add(part, other)
    rest = Work()
    whole = rest.add(red, blue)
    rest.sub(whole, other)
    if common > 1:
        rest.note(f"{part}/{whole}={answer}")
    text = f"{red} red, {blue} blue balls. Chance of {asked}?"
    return maths(text, str(answer), total.boxed(str(answer)), ratio.boxed(str(answer)), rest.boxed(str(answer)))


FAMILIES: tuple[Family, ...] = (mean, median, spread, missing_value, chance)
