"""TIES: trim, elect a sign, mean of those that agree. arXiv 2306.01708.

Of each model's change delta_i of a tensor, the share `density` of largest size stays (what ties with the least of them
stays too, as in the authors' code, so that order plays no part) and the rest is 0. A number's sign is that of
sum of w_i delta_i, plus where that is 0; the changes of that sign are averaged by their weights, and

    theta = theta_0 + scale x mean of the agreeing delta_i.

The least size that stays is exact, and found without holding a tensor: a count by exponent and upper bits of the
fraction says in which class it is, and only that class's sizes are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from vibethinker.fusion.arrays import Array
    from vibethinker.fusion.engine import Piece, Tensor
    from vibethinker.settings import Fusion

DROPPED_BITS = 19  # of float32's 32; the rest are sign, exponent and 4 bits of the fraction
CLASSES = 1 << (31 - DROPPED_BITS)


class Ties:
    """See `Method`; facts are the least size that stays in each model."""

    needs_base: ClassVar[bool] = True

    def __init__(self, weights: Sequence[float], scale: float, density: float) -> None:
        self._weights, self._scale, self._density = weights, scale, density

    @classmethod
    def configured(cls, settings: Fusion, weights: Sequence[float], labels: Sequence[str], seed: int) -> Ties:
        """See `Method`."""
        return cls(weights, settings.scale, settings.kept)

    def facts(self, tensor: Tensor) -> list[float]:
        """See `Method`."""
        if self._density >= 1:
            return [0.0] * len(tensor.models)
        rank = max(1, int(self._density * tensor.count))
        counts = reduce(np.add, tensor.each(_counted))
        inside, ranks = [], []
        for row in counts:
            larger = row[::-1].cumsum()  # by class, from the largest
            place = int(np.searchsorted(larger, rank))
            inside.append(CLASSES - 1 - place)
            ranks.append(rank - (int(larger[place - 1]) if place else 0))
        found = list(tensor.each(lambda piece: _sizes(piece, inside)))
        return [_largest([sizes[i] for sizes in found], nth) if inside[i] else 0.0 for i, nth in enumerate(ranks)]

    def merge(self, piece: Piece, facts: list[float]) -> Array:
        """See `Method`."""
        xp = piece.arrays.xp
        total, size = xp.zeros_like(piece.base), xp.empty_like(piece.base)
        for values, least, weight in zip(piece.models, facts, self._weights, strict=True):
            values -= piece.base
            values *= xp.abs(values, out=size) >= least  # a NaN stays one
            values *= weight
            total += values
        positive = total >= 0
        mean, share = xp.zeros_like(total), xp.zeros_like(total)
        for values, weight in zip(piece.models, self._weights, strict=True):
            agrees = (values != 0) & ((values > 0) == positive)
            values *= agrees
            mean += values
            values[...] = weight
            values *= agrees
            share += values
        mean /= xp.where(share == 0, 1.0, share)
        mean *= self._scale
        mean += piece.base
        return mean


def _counted(piece: Piece) -> np.ndarray:
    """How many changes of each model are in each class of sizes."""
    xp, rows = piece.arrays.xp, []
    for values in piece.models:
        classes = _classes(piece, _size(piece, values))
        row = xp.bincount(classes, minlength=CLASSES)
        rows.append(row if xp is np else row.cpu().numpy())
    return np.stack(rows)


def _sizes(piece: Piece, wanted: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each model's different sizes in the wanted class, with how many of each; none of the class of zeros."""
    xp, found = piece.arrays.xp, []
    for values, of in zip(piece.models, wanted, strict=True):
        if not of:
            found.append((np.empty(0), np.empty(0, np.int64)))
            continue
        size = _size(piece, values)
        pair = xp.unique(size[_classes(piece, size) == of], return_counts=True)
        found.append(pair if xp is np else tuple(part.cpu().numpy() for part in pair))
    return found


def _size(piece: Piece, values: Array) -> Array:
    values -= piece.base
    return piece.arrays.xp.abs(values, out=values)


def _classes(piece: Piece, size: Array) -> Array:
    return piece.arrays.bits(size) >> DROPPED_BITS


def _largest(found: list[tuple[np.ndarray, np.ndarray]], nth: int) -> float:
    """The nth largest of numbers that are listed with how many there are."""
    numbers, counts = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.argsort(numbers)[::-1]
    return float(numbers[order][np.searchsorted(counts[order].cumsum(), nth)])
