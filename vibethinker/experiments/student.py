"""Student's t distribution.

The tail is half of the regularised incomplete beta function at df / (df + t²), which is computed by its continued
fraction (Lentz's method); quantiles are found by Newton's. Good to about ten digits, and free of SciPy, which the
base install hasn't got.
"""

from __future__ import annotations

import math
from statistics import NormalDist

_TINY, _DIGITS, _TERMS = 1e-300, 1e-15, 500


def two_sided(t: float, df: float) -> float:
    """The probability of a value at least as far from 0 as t, at `df` degrees of freedom."""
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(df / (df + t * t), df / 2, 0.5)


def quantile(upper: float, df: float) -> float:
    """The t of at least 0 that is exceeded with the probability `upper`, which is a half at most."""
    # From the normal's, which is smaller, each step comes nearer and none goes too far, since the tail is convex.
    t = max(0.0, -NormalDist().inv_cdf(upper))
    constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    while True:
        density = math.exp(constant - (df + 1) / 2 * math.log1p(t * t / df))
        step = (two_sided(t, df) / 2 - upper) / density
        if not step > 1e-12 * t:
            return t
        t += step


def _incomplete_beta(x: float, a: float, b: float) -> float:
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction of the other side converges faster
        return 1 - _incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        for part in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away(1 + part * d)
            c = _away(1 + part / c)
            value *= c * d
        if abs(c * d - 1) < _DIGITS:
            break
    return front * value


def _away(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
