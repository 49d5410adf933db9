"""What differences between an arm and its control say, paired by seed and problem.

Where all seeds are measured on the same problems, a difference varies with the seed, with the problem, and with both;
the variance of their mean is estimated by (MS of seeds + MS of problems) / (seeds x problems), from which the part
that both contain is not taken off again, with the degrees of freedom of Welch and Satterthwaite. So an interval speaks
of other seeds and of other problems of the same kind. Where each seed has problems of its own, the seeds' means vary
with both, and theirs is the ordinary t interval; of a single seed, the problems'. Simulated coverage of the 95 %
interval with two, three and five seeds: 94 to 99 % (tests/experiments/test_statistics.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vibethinker.errors import DataError
from vibethinker.experiments.student import quantile, two_sided

Problem = tuple[str, str]  # set, id
SHARED = 0.5  # share of all problems that each seed must have, for them to count as the same


class Paired(NamedTuple):
    """A mean difference: its standard error, degrees of freedom, and what it is over.

    `method` is `seeds and problems`, `seeds` or `problems`: what it generalises to.
    """

    difference: float
    error: float
    df: float
    seeds: int
    problems: int
    method: str

    @property
    def p(self) -> float:
        """The probability of a difference at least as large, were there none."""
        if self.error == 0:
            return float(self.difference == 0)
        return two_sided(self.difference / self.error, self.df)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided confidence interval."""
        half = self.error and self.error * quantile((1 - level) / 2, self.df)
        return self.difference - half, self.difference + half

    def upper(self, risk: float) -> float:
        """What the true difference exceeds with the probability `risk` at most."""
        return self.difference + (self.error and self.error * quantile(risk, self.df))


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
    both = of_seeds + of_problems
    df = both**2 / (of_seeds**2 / (seeds - 1) + of_problems**2 / (problems - 1)) if both else 1.0
    return Paired(mean, (both / table.size) ** 0.5, df, seeds, problems, "seeds and problems")


def _simple(values: np.ndarray, problems: int, over: str) -> Paired:
    if len(values) < 2:
        raise DataError("One seed with one problem says nothing of how sure a difference is: give more of either.")
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    seeds = len(values) if over == "seeds" else 1
    return Paired(float(values.mean()), error, len(values) - 1.0, seeds, problems, over)


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
