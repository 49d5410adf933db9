"""The weighted mean, theta = sum of w_i theta_i with w_i >= 0 and sum 1. [1.5B]; model soups, arXiv 2203.05482."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from vibethinker.fusion.arrays import Array
    from vibethinker.fusion.engine import Piece, Tensor
    from vibethinker.settings import Fusion


class Linear:
    """See `Method`."""

    needs_base: ClassVar[bool] = False

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = weights

    @classmethod
    def configured(cls, settings: Fusion, weights: Sequence[float], labels: Sequence[str], seed: int) -> Linear:
        """See `Method`."""
        return cls(weights)

    def facts(self, tensor: Tensor) -> Any:
        """See `Method`."""
        return None

    def merge(self, piece: Piece, facts: Any) -> Array:
        """See `Method`."""
        for values, weight in zip(piece.models, self._weights, strict=True):
            values *= weight
        total = piece.models[0]
        for values in piece.models[1:]:
            total += values
        return total
