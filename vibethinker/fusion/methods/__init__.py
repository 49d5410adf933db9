"""The ways to merge weights, a file each, by the names that `vibethinker.plugins` has; `vibethinker.fusion.engine`
applies them tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from vibethinker import plugins
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

    @classmethod
    def configured(cls, settings: Fusion, weights: Sequence[float], labels: Sequence[str], seed: int) -> Self:
        """The method as settings have it; for the arguments see `make`.

        Raises:
            ConfigurationError: it can't merge so many models.
        """
        ...

    def facts(self, tensor: Tensor) -> Any:
        """What merging has to know of the whole tensor."""
        ...

    def merge(self, piece: Piece, facts: Any) -> Array:
        """The merged slice, as float64."""
        ...


def named(name: str) -> type[Method]:
    """The class of a method.

    Raises:
        ConfigurationError: there is none, or a plugin's can't be imported.
    """
    return plugins.load(plugins.FUSION, name)


def make(settings: Fusion, weights: Sequence[float], labels: Sequence[str], seed: int = 0) -> Method:
    """The method that settings name.

    Args:
        weights: one a model, of sum 1; for slerp the second is its `t`.
        labels: names of the models, from which each has random numbers of its own.
        seed: of what it draws.

    Raises:
        ConfigurationError: see `Method.configured` and `named`.
    """
    return named(settings.method).configured(settings, weights, labels, seed)
