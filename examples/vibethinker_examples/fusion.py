"""A fusion method: of each weight the median over the models. Used by `spectrum.fusion.method: median`.

It heeds no outlier, and no weights of the models either. Coordinate-wise median, as in arXiv 1803.01498.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

from vibethinker.errors import ConfigurationError
from vibethinker.fusion.arrays import Array
from vibethinker.fusion.engine import Piece, Tensor
from vibethinker.settings import Fusion


class Median:
    """See `vibethinker.fusion.methods.Method`."""

    needs_base: ClassVar[bool] = False

    @classmethod
    def configured(cls, settings: Fusion, weights: Sequence[float], labels: Sequence[str], seed: int) -> Self:
        """Nothing is configured."""
        if len(weights) < 3:
            raise ConfigurationError(f"The median of {len(weights)} models is their mean: use the method linear.")
        return cls()

    def facts(self, tensor: Tensor) -> Any:
        """Nothing of the whole tensor matters."""
        return None

    def merge(self, piece: Piece, facts: Any) -> Array:
        """The middle of the models' slices once they are sorted, or the mean of the two that are."""
        xp, values = piece.arrays.xp, piece.models
        for end in range(len(values) - 1, 0, -1):
            for i in range(end):
                a, b = values[i], values[i + 1]
                values[i], values[i + 1] = xp.minimum(a, b), xp.maximum(a, b)
        middle = len(values) // 2
        return (values[middle] + values[-1 - middle]) / 2
