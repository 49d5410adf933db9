"""The policy canary: does the engine that samples still have the policy's weights?

Trainers elsewhere have sampled from a stale or a base model for days, without an error. A few
rollouts are kept; after later updates, once the engine has been given the new weights, engine and trainer each say how
likely their tokens are. Two things must hold:

- where the trainer's log-probabilities have moved since the last look, the engine's have moved too: the engine repeats
  its values to the bit while its weights stay the same, and hundreds of tokens never all keep theirs when weights
  change;
- the two agree up to what rounding explains, from the first look on.

It looks at the start and after each of the first updates, when a wrong set-up shows, and then now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vibethinker.errors import DivergedError
from vibethinker.generation import Engine

Sequences = Sequence[tuple[Sequence[int], Sequence[int]]]
Score = Callable[[Sequences], list[list[float]]]

KEPT, TOKENS = 4, 128  # rollouts, and tokens of each
FIRST, EVERY = 3, 10  # updates
# Mean difference of log-probabilities in nats a token. Three tokens scored by vLLM and by transformers in
# bfloat16 differed by 0.000 to 0.008 on an H100; the bound is a choice, far above that.
TOLERANCE = 0.1


class Canary:
    """Compares an engine with the policy that it should sample from; see the module.

    Args:
        engine: samples the rollouts.
        score: log-probabilities by the trainer's own weights, at temperature 1.

    Attributes:
        gap: mean absolute difference of the two, in nats a token, at the last look; None before the first.
    """

    def __init__(self, engine: Engine, score: Score) -> None:
        self._engine, self._score = engine, score
        self._kept: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        self._last: tuple[list[float], list[float]] = [], []
        self.gap: float | None = None

    def renew(self, update: int, rollouts: Sequences) -> None:
        """After a look, keep some of the rollouts that were sampled by the weights that both have now: old ones grow
        unlikely, and rounding grows with that.

        Raises:
            DivergedError: engine and policy disagree.
        """
        if not self._due(update):
            return
        self._kept = [(tuple(prompt), tuple(ids[:TOKENS])) for prompt, ids in rollouts if len(ids)][:KEPT]
        if self._kept:
            self._last = self._look()
            self._compare(update)

    def check(self, update: int) -> None:
        """Look after `update` updates, where it is time to.

        Raises:
            DivergedError: the engine's weights are not the policy's.
        """
        if not self._kept or not self._due(update):
            return
        engine, trainer = self._look()
        stale = trainer != self._last[1] and engine == self._last[0]
        self._last = engine, trainer
        if stale:
            raise DivergedError(
                f"The engine that samples has not taken the policy's weights after {update} updates: its "
                "log-probabilities stayed the same while the trainer's moved. Nothing that it sampled since is of use; "
                "set execution.engine to transformers, and report this with the versions of vllm and transformers."
            )
        self._compare(update)

    def remembered(self) -> dict[str, Any]:
        """What it has kept and seen, as JSON holds it."""
        return {"kept": self._kept, "last": self._last, "gap": self.gap}

    def recall(self, state: dict[str, Any]) -> None:
        """Take on what `remembered` gave."""
        self._kept = [(tuple(prompt), tuple(ids)) for prompt, ids in state["kept"]]
        self._last = tuple(state["last"])
        self.gap = state["gap"]

    def _due(self, update: int) -> bool:
        return update <= FIRST or update % EVERY == 0

    def _compare(self, update: int) -> None:
        engine, trainer = self._last
        self.gap = sum(abs(a - b) for a, b in zip(engine, trainer, strict=True)) / len(engine)
        if not self.gap <= TOLERANCE:
            raise DivergedError(
                f"Engine and trainer disagree by {self.gap:.3f} nats a token after {update} updates: the engine does "
                "not sample from the policy, so nothing can be learned from its rollouts; set execution.engine to "
                "transformers, and report this with the versions of vllm and transformers."
            )

    def _look(self) -> tuple[list[float], list[float]]:
        engine, trainer = self._engine.score(self._kept), self._score(self._kept)
        return [x for row in engine for x in row], [x for row in trainer for x in row]
