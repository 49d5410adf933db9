"""The ways to merge weights, a file each; `vibethinker.fusion.engine` applies them tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from vibethinker.errors import ConfigurationError
from vibethinker.fusion.methods.dare import Dare
from vibethinker.fusion.methods.linear import Linear
from vibethinker.fusion.methods.slerp import Slerp
from vibethinker.fusion.methods.task_arithmetic import TaskArithmetic
from vibethinker.fusion.methods.ties import Ties
from vibethinker.settings import Fusion

if TYPE_CHECKING:
    from vibethinker.fusion.arrays import Array
    from vibethinker.fusion.engine import Piece, Tensor


class Method(Protocol):
    """One way to merge a tensor. An identity on its numbers, so that tests can hold it to a formula.

    Attributes:
        needs_base: whether it merges changes from the base model instead of weights.
    """

    needs_base: ClassVar[bool]

    def facts(self, tensor: Tensor) -> Any:
        """What merging has to know of the whole tensor."""
        ...

    def merge(self, piece: Piece, facts: Any) -> Array:
        """The merged slice, as float64."""
        ...


def make(settings: Fusion, weights: Sequence[float], labels: Sequence[str], seed: int = 0) -> Method:
    """The method that settings name.

    Args:
        weights: one a model, of sum 1; for slerp the second is its `t`.
        labels: names of the models, from which each has random numbers of its own.

    Raises:
        ConfigurationError: slerp with other than two models.
    """
    if settings.method == "task_arithmetic":
        return TaskArithmetic(weights, settings.scale)
    if settings.method == "ties":
        return Ties(weights, settings.scale, settings.kept)
    if settings.method == "dare":
        return Dare(weights, settings.scale, settings.kept, seed, labels)
    if settings.method == "slerp":
        if len(weights) != 2:
            raise ConfigurationError(f"slerp lies between two models and got {len(weights)}: choose another method.")
        return Slerp(weights[1])
    return Linear(weights)
