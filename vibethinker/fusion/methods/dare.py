"""DARE: drop changes at random and rescale the rest. arXiv 2311.03099.

    theta = theta_0 + scale x sum of w_i m_i (theta_i - theta_0) / density,   m_i in {0, 1}, P(m_i = 1) = density

Whether a number is dropped follows from the seed, the model's name, the tensor's name and its place in the tensor: from
a counter, not from a stream, so that neither the order of the work nor the number of threads matters.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

if TYPE_CHECKING:
    from vibethinker.fusion.arrays import Array
    from vibethinker.fusion.engine import Piece, Tensor
    from vibethinker.settings import Fusion

BLOCK = 8  # numbers of 32 bits that one step of the counter gives; slices start at multiples of it


class Dare:
    """See `Method`."""

    needs_base: ClassVar[bool] = True

    def __init__(
        self, weights: Sequence[float], scale: float, density: float, seed: int, labels: Sequence[str]
    ) -> None:
        self._weights, self._scale, self._density = weights, scale, density
        self._seed, self._labels = seed, labels

    @classmethod
    def configured(cls, settings: Fusion, weights: Sequence[float], labels: Sequence[str], seed: int) -> Dare:
        """See `Method`."""
        return cls(weights, settings.scale, settings.kept, seed, labels)

    def facts(self, tensor: Tensor) -> Any:
        """See `Method`."""
        return None

    def merge(self, piece: Piece, facts: Any) -> Array:
        """See `Method`."""
        total = piece.arrays.xp.zeros_like(piece.base)
        for values, weight, label in zip(piece.models, self._weights, self._labels, strict=True):
            values -= piece.base
            values *= piece.arrays.moved(kept(self._seed, label, piece.name, piece.start, len(values), self._density))
            values /= self._density
            values *= weight
            total += values
        total *= self._scale
        total += piece.base
        return total


def kept(seed: int, label: str, name: str, start: int, count: int, density: float) -> np.ndarray:
    """Which of `count` changes stay, from place `start` on, a multiple of BLOCK."""
    key = hashlib.sha256(f"{seed}\0{label}\0{name}".encode()).digest()[:16]
    numbers = np.random.Philox(key=int.from_bytes(key, "little"), counter=start // BLOCK)
    drawn = numbers.random_raw(-(-count // 2)).view(np.uint32)[:count]
    return drawn < np.float64(density * 2**32)
