"""SLERP: along the arc between two models instead of the chord.

Of a tensor's numbers as one vector, with omega the angle between a and b:

    theta = (sin((1 - t) omega) a + sin(t omega) b) / sin(omega)

Where there is no such arc (the same or opposite directions, a tensor of zeros) it is (1 - t) a + t b.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from vibethinker.errors import ConfigurationError

if TYPE_CHECKING:
    from vibethinker.fusion.arrays import Array
    from vibethinker.fusion.engine import Piece, Tensor
    from vibethinker.settings import Fusion

STRAIGHT = 1e-12  # of 1 - |cos omega|: there arc and chord differ by less than float64 can tell


class Slerp:
    """See `Method`; facts are what the two models are multiplied by."""

    needs_base: ClassVar[bool] = False

    def __init__(self, t: float) -> None:
        self._t = t

    @classmethod
    def configured(cls, settings: Fusion, weights: Sequence[float], labels: Sequence[str], seed: int) -> Slerp:
        """See `Method`."""
        if len(weights) != 2:
            raise ConfigurationError(f"slerp lies between two models and got {len(weights)}: choose another method.")
        return cls(weights[1])

    def facts(self, tensor: Tensor) -> tuple[float, float]:
        """See `Method`."""
        aa, bb, ab = reduce(np.add, tensor.each(_products)).tolist()
        length = math.sqrt(aa) * math.sqrt(bb)
        cosine = ab / length if length else 1.0
        if 1 - abs(cosine) < STRAIGHT:
            return 1 - self._t, self._t
        omega = math.acos(cosine)
        return math.sin((1 - self._t) * omega) / math.sin(omega), math.sin(self._t * omega) / math.sin(omega)

    def merge(self, piece: Piece, facts: tuple[float, float]) -> Array:
        """See `Method`."""
        first, second = piece.models
        first *= facts[0]
        second *= facts[1]
        first += second
        return first


def _products(piece: Piece) -> np.ndarray:
    a, b = piece.models
    return np.array([float((x * y).sum()) for x, y in ((a, a), (b, b), (a, b))])
