"""Task arithmetic, arXiv 2212.04089: theta = theta_0 + scale x sum of w_i (theta_i - theta_0).

The weights sum to 1, so a scale of 1 is the weighted mean, and the paper's plain sum of n changes is a scale of n.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from vibethinker.fusion.arrays import Array
    from vibethinker.fusion.engine import Piece, Tensor
    from vibethinker.settings import Fusion


class TaskArithmetic:
    """See `Method`."""

    needs_base: ClassVar[bool] = True

    def __init__(self, weights: Sequence[float], scale: float) -> None:
        self._weights, self._scale = weights, scale

    @classmethod
    def configured(cls, settings: Fusion, weights: Sequence[float], labels: Sequence[str], seed: int) -> TaskArithmetic:
        """See `Method`."""
        return cls(weights, settings.scale)

    def facts(self, tensor: Tensor) -> Any:
        """See `Method`."""
        return None

    def merge(self, piece: Piece, facts: Any) -> Array:
        """See `Method`."""
        total = piece.arrays.xp.zeros_like(piece.base)
        for values, weight in zip(piece.models, self._weights, strict=True):
            values -= piece.base
            values *= weight
            total += values
        total *= self._scale
        total += piece.base
        return total
