"""What differences between an arm and its control say, paired by seed and problem.

Where all seeds are measured on the same problems, a difference varies with the seed, with the problem, and with both;
the variance of their mean is at most the sum of two, which are estimated by MS of seeds / (seeds x problems), with
seeds - 1 degrees of freedom, and MS of problems / (seeds x problems), with problems - 1. An interval is half as wide as

    sqrt(t_1² s_1² + t_2² s_2²),   t_i Student's quantile at the degrees of freedom of the standard error s_i

(S. Banerjee, Sankhyā 22, 1960), which covers the truth at least as often as it says whatever the two are, since the
distribution function of a squared normal is concave. Satterthwaite's degrees of freedom, the usual choice, are
estimated too, and with two seeds call a difference that isn't there significant at 5 % in 12 of 100 cases, at 0.4 % in
6. So an interval speaks of other seeds and of other problems of the same kind. Where each seed has problems of its
own, the seeds' means vary with both, and theirs is the ordinary t interval; of a single seed, the problems'.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vibethinker.errors import DataError
from vibethinker.experiments.student import quantile, two_sided

Problem = tuple[str, str]  # set, id
LEAST = 1e-100  # of p, which is told no smaller
VERSION = 2  # of what is computed here, a part of an experiment's id
SHARED = 0.5  # share of all problems that each seed must have, for them to count as the same


class Paired(NamedTuple):
    """A mean difference: its standard errors, each with its degrees of freedom, and what it is over.

    `method` is `seeds and problems`, `seeds` or `problems`: what it generalises to.
    """

    difference: float
    errors: tuple[tuple[float, int], ...]
    seeds: int
    problems: int
    method: str

    @property
    def error(self) -> float:
        """The standard error of all sources together."""
        return math.hypot(*(error for error, _ in self.errors))

    @property
    def p(self) -> float:
        """The probability of a difference at least as large, were there none: 1 less the level of the interval that
        ends at 0."""
        if self.difference == 0 or self.error == 0:
            return float(self.difference == 0)
        # It lies between what the most and what the fewest degrees of freedom would give alone.
        alone = [two_sided(self.difference / self.error, df) for _, df in self.errors]
        low, high = (max(LEAST, p) for p in (min(alone), max(alone)))
        while high > low * (1 + 1e-9):
            middle = math.sqrt(low) * math.sqrt(high)
            low, high = (middle, high) if self._half(middle / 2) > abs(self.difference) else (low, middle)
        return high

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided confidence interval."""
        half = self._half((1 - level) / 2)
        return self.difference - half, self.difference + half

    def upper(self, risk: float) -> float:
        """What the true difference exceeds with the probability `risk` at most."""
        return self.difference + self._half(risk)

    def _half(self, tail: float) -> float:
        return math.hypot(*(error and error * quantile(tail, df) for error, df in self.errors))


def paired(differences: Mapping[int, Mapping[Problem, float]]) -> Paired:
    """The mean of differences (seed → problem → difference).

    Raises:
        DataError: a seed has no problem, or the only seed has but one.
    """
    if not differences or not all(differences.values()):
        raise DataError("An arm and its control have no graded problem in common: give both the same evaluation sets.")
    sets = [set(of_seed) for of_seed in differences.values()]
    common, every = sorted(set.intersection(*sets)), set.union(*sets)
    if len(sets) == 1:
        return _simple(np.array(list(next(iter(differences.values())).values())), len(every), "problems")
    if len(common) < max(2, SHARED * len(every)):
        means = np.array([np.mean(list(of_seed.values())) for of_seed in differences.values()])
        return _simple(means, len(every), "seeds")
    table = np.array([[of_seed[problem] for problem in common] for of_seed in differences.values()])
    seeds, problems = table.shape
    mean = float(table.mean())
    of_seeds = problems * float(((table.mean(axis=1) - mean) ** 2).sum()) / (seeds - 1)
    of_problems = seeds * float(((table.mean(axis=0) - mean) ** 2).sum()) / (problems - 1)
    errors = ((of_seeds / table.size) ** 0.5, seeds - 1), ((of_problems / table.size) ** 0.5, problems - 1)
    return Paired(mean, errors, seeds, problems, "seeds and problems")


def _simple(values: np.ndarray, problems: int, over: str) -> Paired:
    if len(values) < 2:
        raise DataError("One seed with one problem says nothing of how sure a difference is: give more of either.")
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    seeds = len(values) if over == "seeds" else 1
    return Paired(float(values.mean()), ((error, len(values) - 1),), seeds, problems, over)


def hopeless(differences: Sequence[Paired | None], gain: float, risk: float) -> tuple[list[float | None], bool]:
    """The upper bound of each difference, where two seeds or more tell one, and whether all of them lie below `gain`.
    Where any true difference is `gain` or more, that happens with the probability `risk` at most."""
    bounds = [one.upper(risk) if one and one.seeds > 1 else None for one in differences]
    return bounds, all(bound is not None and bound < gain for bound in bounds)


def standardised(seed_means: Sequence[float]) -> float | None:
    """The mean over the standard deviation of the seeds' mean differences, with Hedges' correction for few of them;
    None where there are fewer than three, or all are equal."""
    values = np.asarray(seed_means, dtype=np.float64)
    if len(values) < 3 or values.max() == values.min():
        return None
    return float(values.mean()) / float(values.std(ddof=1)) * (1 - 3 / (4 * (len(values) - 1) - 1))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: each below `alpha` may be called significant, with the probability `alpha` at most that
    any of them wrongly is."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        most = max(most, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = most
    return adjusted
