"""What a trainer tells its surroundings: progress, metrics, kept checkpoints."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vibethinker.steps import Emitter, numbers
from vibethinker.training import processes
from vibethinker.training.phases import Phases


class Reporter(TrainerCallback):
    """Writes each logged step to metrics.jsonl and to the emitter.

    `names` maps the trainer's names of metrics to those kept, in the file's order; all others are dropped.
    The file holds what a repeated run would hold too; the emitter also gets seconds, tokens a second and memory by
    phase. The phase `training` is open from the first to the last step; whatever the trainer opens of `phases`
    inside it is booked apart. `tokens` is the trainer's name of the tokens trained on so far.

    Attributes:
        last: the row of the last logged step.
        phases: those given, or its own.
    """

    def __init__(
        self, emit: Emitter, file: Path, steps: int, names: Mapping[str, str], tokens: str, phases: Phases | None = None
    ) -> None:
        self._emit, self._file, self._steps, self._names, self._tokens = emit, file, steps, names, tokens
        self.phases = phases or Phases("cuda" if torch.cuda.is_available() else "cpu")
        self._counted = 0.0
        self.last: dict[str, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the file, unless the training goes on, and the phase `training`."""
        if state.global_step == 0:
            self._file.write_text("")
        self._emit.progress(state.global_step, self._steps, "training")
        self.phases.enter("training")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the phase `training`."""
        self.phases.leave()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Keep the step's row, and tell it with what was measured since the last one."""
        if logs is None or "loss" not in logs:  # the summary at the end
            return
        row = {"step": state.global_step}
        row |= {kept: plain(logs[name]) for name, kept in self._names.items() if logs.get(name) is not None}
        with self._file.open("a") as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
        self.last = row
        counted = float(logs.get(self._tokens, self._counted))
        self.phases.count("training", counted - self._counted)
        self._counted = counted
        told = numbers({name: value for name, value in row.items() if name != "step"})
        self._emit.metrics(state.global_step, told | self.phases.window())
        self._emit.progress(state.global_step, self._steps, f"loss {row['loss']:.4f}")

    def remembered(self) -> dict[str, Any]:
        """See `resumable.Remembers`."""
        return {"counted": self._counted, "last": self.last}

    def recall(self, state: dict[str, Any]) -> None:
        """See `resumable.Remembers`."""
        self._counted, self.last = state["counted"], state["last"]

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show that the training lives, between two steps."""
        self._emit.progress(state.global_step, self._steps, "training")


class Checkpoints(TrainerCallback):
    """Saves complete model (or adapter) folders `step-%06d` at the given steps, for probing to choose
    from."""

    def __init__(self, folder: Path, steps: Collection[int], tokenizer: Any, dtype: torch.dtype) -> None:
        self._folder, self._steps, self._tokenizer, self._dtype = folder, frozenset(steps), tokenizer, dtype

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Save the model, if this is one of the steps."""
        if state.global_step in self._steps:
            processes.save(model, self._tokenizer, self._folder / f"step-{state.global_step:06d}", self._dtype)


def plain(value: Any) -> Any:
    """A logged value as JSON has it: tensors become numbers."""
    return value.item() if isinstance(value, torch.Tensor) else value
