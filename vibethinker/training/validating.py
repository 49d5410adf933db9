"""Validation while a signal stage trains: held-out problems are answered at the start, after every so many updates, and
at the end, by the engine that samples the rollouts and with the weights in training.

An update's weights are measured where the next one begins: the engine gets them there anyway, and a request to stop can
be let through, since nothing has moved since the state that would be saved. Rollouts have random numbers of their own,
so that a stage that is measured ends in the same weights as one that isn't; those of the measurements are the same each
time, so that two of them differ by the weights alone.

Of the updates measured the best by the share of right samples is kept, the later one of two that are equal. The start
isn't chosen from, since a stage's output is what it has trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from vibethinker.evaluation.measuring import Outcome
from vibethinker.settings import Validation
from vibethinker.training import processes
from vibethinker.training.common import Run
from vibethinker.training.phases import Phases

if TYPE_CHECKING:
    from vibethinker.training.trainer import SignalTrainer

# The trainer at whose weights to measure, and the update that they are of.
Measure = Callable[["SignalTrainer", int], Sequence[Outcome]]


class Validating(TrainerCallback):
    """Measures a training, and keeps its best weights; a callback only so that its state is saved with the trainer's.

    Args:
        settings: how often; whether the best is to be kept.
        run: of the training; its file of metrics gets a row a measurement, as its emitter does.
        steps: of the training, at most.
        folder: where the best update's model, or adapter, is kept: `step-%06d`.
        measure: see `Measure`.
        phases: where the time is booked.

    Attributes:
        values: update → share of right samples.
    """

    def __init__(
        self, settings: Validation, run: Run, steps: int, folder: Path, measure: Measure, phases: Phases
    ) -> None:
        self._settings, self._run, self._steps, self._folder = settings, run, steps, folder
        self._measure, self._phases = measure, phases
        self.values: dict[int, float] = {}

    @property
    def best(self) -> int | None:
        """The update whose weights were right most often; None before one was measured."""
        found = [update for update in self.values if update]
        return max(found, key=lambda update: (self.values[update], update)) if found else None

    @property
    def selected(self) -> int:
        """The update whose weights are published."""
        return self.best if self._settings.select == "best_val" and self.best else self._steps

    def __call__(self, trainer: SignalTrainer, last: bool = False) -> None:
        """Measure the weights in training, where it is time to and it hasn't been done.

        Args:
            last: whether the training is over, so that they count whatever their update.
        """
        update = trainer.state.global_step
        if last:
            self._steps = update  # fewer than planned where the stage's rollouts were used up before
        if update in self.values or not (last or update % self._settings.every == 0):
            return
        with self._phases("validation") as phase, trainer.interruptible():
            outcomes = self._measure(trainer, update)
            phase.tokens = sum(completion.tokens for outcome in outcomes for completion in outcome.completions)
        graded = [outcome for outcome in outcomes if outcome.samples]
        if not graded:
            self._run.emit.warning(f"The verifier failed on all samples of the validation after update {update}.")
            return
        self._tell(update, outcomes, graded)
        if self._settings.select == "best_val" and self.best == update and not last:
            self._keep(trainer, update)
        trainer.note()  # what is saved from within this update knows of the measurement

    def chosen(self) -> Path | None:
        """The folder of the weights to publish; None for those that the training has ended with."""
        update = self.selected
        return None if update == self._steps else self._place(update)

    def record(self) -> dict[str, Any]:
        """What signal.json tells: which update is published, and the share of right samples after each measured."""
        values = {str(update): value for update, value in self.values.items()}
        return {"select": self._settings.select, "update": self.selected, "values": values}

    def metrics(self) -> dict[str, float]:
        """What the manifest tells."""
        found = {"selected_update": float(self.selected)}
        for name, update in (("start", 0), ("best", self.best), ("last", self._steps)):
            if update in self.values:
                found[f"validation/{name}"] = self.values[update]
        return found

    def remembered(self) -> dict[str, Any]:
        """See `resumable.Remembers`."""
        return {"values": [[update, value] for update, value in self.values.items()]}

    def recall(self, state: dict[str, Any]) -> None:
        """See `resumable.Remembers`."""
        self.values = dict(state["values"])

    def _tell(self, update: int, outcomes: Sequence[Outcome], graded: Sequence[Outcome]) -> None:
        count = self._settings.samples
        right = sum(outcome.correct / outcome.samples for outcome in graded) / len(graded)
        row = {
            f"validation/avg@{count}": right,
            f"validation/pass@{count}": sum(outcome.correct > 0 for outcome in graded) / len(graded),
            "validation/truncated": sum(outcome.truncated for outcome in outcomes) / len(outcomes),
            "validation/mean_tokens": sum(outcome.mean_tokens for outcome in outcomes) / len(outcomes),
        }
        self.values[update] = right
        with self._run.metrics_file.open("a") as file:
            file.write(json.dumps({"step": update, **row}, sort_keys=True) + "\n")
        self._run.emit.metrics(update, row)
        self._run.emit.progress(update, self._steps, f"validation: {right:.1%} right")

    def _keep(self, trainer: SignalTrainer, update: int) -> None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        processes.save(model, trainer.processing_class, self._place(update), self._run.dtype)
        if processes.rank() == 0:
            for other in self._folder.iterdir():
                if other != self._place(update):
                    shutil.rmtree(other)
        processes.barrier()

    def _place(self, update: int) -> Path:
        return self._folder / f"step-{update:06d}"
