"""What n graded samples a problem say about a model, and how sure that is.

Pass@K is the unbiased estimator of Chen et al., arXiv 2107.03374, equation 1. Intervals are percentile
bootstrap intervals over problems: problems are drawn with replacement, the samples of a problem stay
together. Two models are compared on the differences of the same problems, which takes the problems'
difficulty out of the variance; how sure it is that they differ says a sign-flip test on those (`sign_flip`).

Left out: bias-corrected intervals. Where all problems score the same, the interval has no width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vibethinker.errors import ConfigurationError, DataError

RESAMPLES = 10_000
FLIPS = 9_999
_EXACT = 14  # differences of which all sign patterns are looked at
_EQUAL = 1e-9  # sums that differ by less are one, but for rounding
CONFIDENCE = 0.95
_DRAWN = 1 << 17  # values resampled at once, 2 MiB with their indices; 1 << 22 takes 1.7 times as long
_BLOCK = 1 << 22  # signs held at once; each block draws whole bytes, so that another size draws other signs


class Interval(NamedTuple):
    """A mean over problems and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased probability that one of k samples is right, from n samples of which c are: 1 − C(n−c, k) /
    C(n, k).

    Raises:
        ConfigurationError: not 1 <= k <= n.
        ValueError: not 0 <= c <= n.
    """
    if not 1 <= k <= n:
        raise ConfigurationError(f"Pass@{k} can't be estimated from {n} samples: it needs 1 <= K <= samples.")
    if not 0 <= c <= n:
        raise ValueError(f"{c} right samples of {n}")
    every = math.comb(n, k)
    return (every - math.comb(n - c, k)) / every


def cons_at_k(right: int, wrong: Sequence[int]) -> float:
    """The majority vote's score for one problem, over all its samples.

    Args:
        right: votes of the samples whose answer is equivalent to the gold answer, one each or weighted.
        wrong: votes of each group of equivalent wrong answers; samples without an answer don't vote.

    Returns:
        1 if the right group is the largest, 0 if another is; a tie of m largest groups is decided by lot: 1 /
        m.
    """
    largest = max(wrong, default=0)
    if right == 0 or right < largest:
        return 0.0
    return 1 / (1 + sum(size == right for size in wrong))


def bootstrap(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean of one value a problem, with its 95 % percentile bootstrap interval.

    Raises:
        DataError: there are no values.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        raise DataError("There are no graded problems to average: check the problem file and the verifier.")
    generator = np.random.default_rng(seed)
    block = max(1, _DRAWN // data.size)
    means = np.concatenate(
        [
            data[generator.integers(0, data.size, (min(block, RESAMPLES - start), data.size))].mean(axis=1)
            for start in range(0, RESAMPLES, block)
        ]
    )
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(data.mean()), float(low), float(high))


def paired_bootstrap(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Interval:
    """The mean difference b − a over the same problems in the same order, with its 95 % bootstrap interval.

    Raises:
        DataError: there are no values.
        ValueError: the numbers of values differ.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values can't be paired")
    return bootstrap((np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)).tolist(), seed)


def sign_flip(differences: Sequence[float], seed: int = 0, flips: int = FLIPS) -> float:
    """The two-sided p-value of the mean difference over problems, by a sign-flip permutation test.

    Where both models are equal, each problem's difference is as likely as its negative, whatever its size; so the sum
    is compared with the sums under random signs (all of them for up to 14 problems that differ). Sums equal to the
    observed one count half (the mid-p): on a grid of few values the plain p-value would reject far too seldom.

    Raises:
        DataError: there are no differences.
    """
    data = np.asarray(differences, dtype=np.float64)
    if data.size == 0:
        raise DataError("There are no graded problems to compare: check the problem files and the verifier.")
    telling = data[np.abs(data) > _EQUAL]
    observed = abs(telling.sum())
    if telling.size <= _EXACT:
        patterns = np.arange(1 << telling.size)[:, None] >> np.arange(telling.size) & 1
        beyond, equal = _counted((1 - 2 * patterns) @ telling, observed)
        return (beyond + equal / 2) / len(patterns) if telling.size else 1.0
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // telling.size)
    beyond, equal = 0, 1  # the observed signs are one of the patterns
    for start in range(0, flips, block):
        count = min(block, flips - start)
        bits = np.frombuffer(generator.bytes(-(-count * telling.size // 8)), dtype=np.uint8)
        turned = np.unpackbits(bits, count=count * telling.size).reshape(count, telling.size)
        found = _counted(telling.sum() - 2 * (turned.astype(np.float64) @ telling), observed)
        beyond, equal = beyond + found[0], equal + found[1]
    return (beyond + equal / 2) / (flips + 1)


def _counted(sums: np.ndarray, observed: float) -> tuple[int, int]:
    """How many sums lie farther from 0 than the observed one, and how many as far."""
    sizes = np.abs(sums)
    return int((sizes > observed + _EQUAL).sum()), int((np.abs(sizes - observed) <= _EQUAL).sum())
