"""What a step's code is given, and where the code of each kind of step lives.

A step is a function `run(context) -> metrics` that reads published inputs, fills `context.output`, and
returns the numbers worth keeping (they go into the manifest, MLflow and the summary). It neither publishes,
nor knows of Prefect or MLflow; `vibethinker.worker` does the first, the flow process the rest.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Metrics = dict[str, Any]
KEPT = "kept_completions"  # a metric: completions that an earlier process had sampled, so that the time tells no speed

STEP_FUNCTIONS: dict[str, str] = {
    "data": "vibethinker.data.prepare:run",
    "base": "vibethinker.models:run_base",
    "import": "vibethinker.models:run_import",
    "specialist": "vibethinker.training.sft:run",
    "solutions": "vibethinker.solutions:run",
    "probe": "vibethinker.probing:run",
    "fusion": "vibethinker.fusion.step:run",
    "signal": "vibethinker.training.signal:run",
    "selection": "vibethinker.training.selection:run",
    "distilled": "vibethinker.training.distilled:run",
    "evaluation": "vibethinker.evaluation.step:run",
    "report": "vibethinker.reporting.step:run",
}
# Kinds that train with the configured backend; the embedded base is transformers' alone.
# Unsloth replaces TRL's trainer of rollouts by its own, which MGPO can't extend; stages use transformers.
BY_UNSLOTH = ("specialist", "distilled")


class Emitter(Protocol):
    """How a running step tells its parent what it is doing; each call also proves that it is alive."""

    def progress(self, done: int, total: int, text: str = "") -> None:
        """`done` of `total` units of the step's own work (optimizer steps, problems) are finished."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Measurements at optimizer step `step`."""

    def warning(self, text: str) -> None:
        """Something the user should read, though the step goes on."""


@dataclass(frozen=True)
class StepContext:
    """Everything one step may read and write.

    Attributes:
        step_id: the step's name in the plan, for example `specialist-algebra`.
        settings: semantic settings, what the fingerprint covers, and limits at which the step only stops.
        execution: device, threads, micro-batches, sandbox permission: how, never what.
        inputs: role → published folder of the step that fills it.
        output: an empty staging folder; what is in it at the end is published.
        checkpoints: a folder that survives a kill of this step, for its own resumable state.
        emit: progress, metrics and warnings to the parent.
    """

    step_id: str
    settings: Mapping[str, Any]
    execution: Mapping[str, Any]
    inputs: Mapping[str, Path]
    output: Path
    checkpoints: Path
    emit: Emitter


def measured(metrics: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """What a training told its emitter, read again from the metrics.jsonl that it wrote: update and numbers."""
    for line in metrics.read_text().splitlines():
        row = json.loads(line)
        yield row.pop("step"), numbers(row)


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The measurements of one update, with those of a list apart: of `p_histogram`, a group's number of right rollouts
    of all, `p_histogram/03 of 16` is the fourth."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, list):
            found |= {f"{name}/{i:02d} of {len(value) - 1}": count for i, count in enumerate(value)}
        else:
            found[name] = value
    return found


def resolve(kind: str, backend: str = "transformers") -> Callable[[StepContext], Metrics]:
    """The function that runs a step of this kind; `module:function` names one outside the recipe.

    Its module imports transformers and trl. Unsloth patches these, so for a supervised training with the backend
    `unsloth` it comes first.

    Raises:
        ConfigurationError: Unsloth isn't installed, or refuses this machine.
    """
    if backend == "unsloth" and kind in BY_UNSLOTH:
        from vibethinker.models.trainable import import_unsloth

        import_unsloth()
    module, _, name = STEP_FUNCTIONS.get(kind, kind).partition(":")
    return getattr(importlib.import_module(module), name)
