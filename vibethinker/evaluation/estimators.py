"""What n graded samples a problem say about a model, and how sure that is.

Pass@K is the unbiased estimator of Chen et al., arXiv 2107.03374, equation 1. Intervals are percentile
bootstrap intervals over problems: problems are drawn with replacement, the samples of a problem stay
together. Two models are compared on the differences of the same problems, which takes the problems'
difficulty out of the variance.

Left out: bias-corrected intervals. Where all problems score the same, the interval has no width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vibethinker.errors import ConfigurationError, DataError

RESAMPLES = 10_000
CONFIDENCE = 0.95
_BLOCK = 1 << 22  # resampled values held at once


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
        right: samples whose answer is equivalent to the gold answer.
        wrong: size of each group of equivalent wrong answers; samples without an answer don't vote.

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
    block = max(1, _BLOCK // data.size)
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
    return bootstrap(np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64), seed)
