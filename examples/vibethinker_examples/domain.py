"""A domain: remainders and last digits. Used by naming `remainders` in `domains`.

A family draws a problem of a difficulty from 1 to 3, with two solutions or more that differ in their steps.
"""

from random import Random

from vibethinker.data.procedural.common import Draft, Work, maths

TOP = (99, 400, 999)  # by difficulty


def remainder(rng: Random, level: int) -> Draft | None:
    """`a mod b`: take away the largest multiple, or ten times b first."""
    a, b = rng.randint(20, TOP[level - 1]), rng.randint(2, 12)
    if a < 10 * b:
        return None
    answer = a % b
    at_once, in_parts = Work(), Work()
    at_once.sub(a, at_once.mul(b, a // b))
    rest = in_parts.sub(a, in_parts.mul(b, 10))
    in_parts.sub(rest, in_parts.mul(b, rest // b))
    return maths(f"Find {a} mod {b}.", answer, at_once.boxed(answer), in_parts.boxed(answer))


def last_digit(rng: Random, level: int) -> Draft:
    """The last digit of a product: of the whole product, or of the last digits'."""
    a, b = rng.randint(11, TOP[level - 1]), rng.randint(11, 99)
    whole, digits = Work(), Work()
    answer = whole.mul(a, b) % 10
    digits.note(f"{a} ends in {a % 10}, {b} in {b % 10}")
    digits.mul(a % 10, b % 10)
    return maths(f"Last digit of {a}*{b}?", answer, whole.boxed(answer), digits.boxed(answer))


FAMILIES = (remainder, last_digit)
