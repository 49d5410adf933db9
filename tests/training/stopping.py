"""Trainings of the tiny model that are stopped in the middle, and how their outputs are compared."""

from __future__ import annotations

import os
import shutil
import signal as signals
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.conftest import Emitted
from vibethinker import models, preemption
from vibethinker.steps import StepContext
from vibethinker.training import sft, signal

SFT = {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "checkpoints": 3, "max_length": 128}
LORA = {"method": "lora", "lora": {"rank": 4, "dropout": 0.3}}
OBJECTIVE = {"group_size": 4, "batch_size": 16, "learning_rate": 1e-3, "max_prompt_tokens": 32}
STAGE = {"name": "sums", "context": 64, "steps": 6, "reward": "math"}
BASE = {"hidden_size": 32, "layers": 1, "intermediate_size": 32, "vocabulary": 300, "positions": 64}
CASES = {
    "base": (models, {"base_model": {"source": "embedded", "embedded": BASE | {"steps": 6, "batch_size": 8}}}),
    "sft": (sft, {"sft": SFT}),
    "sft-packed-lora": (sft, {"sft": SFT | LORA | {"packing": True}}),
    "signal": (signal, {"stage": STAGE, "objective": OBJECTIVE}),
    "signal-refilled-lora": (
        signal,
        {"stage": STAGE, "objective": OBJECTIVE | LORA | {"refill": 2, "beta": 0.01, "difficulty_samples": 2}},
    ),
}


class Killed(Exception):
    """In the place of SIGKILL: nothing is saved for it."""


class Fragile(Emitted):
    """An emitter that does something when the given update is told, or while rollouts are sampled after it."""

    def __init__(self, update: int, then: Callable[[], None], *, sampling: bool = False) -> None:
        super().__init__()
        self._update, self._then, self._sampling = update, then, sampling

    def metrics(self, step, values) -> None:
        super().metrics(step, values)
        if not self._sampling and step == self._update:
            self._then()

    def progress(self, done, total, text="") -> None:
        super().progress(done, total, text)
        if self._sampling and done == self._update and "rollouts" in text:
            self._then()


def die() -> None:
    raise Killed


def ask() -> None:
    os.kill(os.getpid(), signals.SIGTERM)


def again() -> None:
    """As in a new process."""
    preemption.install()


def prepared(
    kind: str, new_step: Callable[..., StepContext], taught: Path, data: Path
) -> tuple[Callable[[StepContext], Any], Callable[..., StepContext]]:
    """The function of a step of `CASES`, and one that makes a fresh context of it, with these settings of its
    checkpoints; without any it saves after each update."""
    module, own = CASES[kind]
    settings = {
        "seed": 1, "deterministic": True, "domains": ["algebra"], "prompts": {}, "verification": {}, "base_model": {},
    } | own  # fmt: skip
    inputs = {"base" if module is sft else "model": taught, "data": data}
    run = models.run_base if module is models else module.run

    def new(**checkpoints: Any) -> StepContext:
        again()
        return new_step(settings, inputs, checkpoints={"seconds": 0} | checkpoints)

    return run, new


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def trained(emit: Emitted) -> list[int]:
    """The updates that were computed, and not only told again: those that took time."""
    return [step for step, row in emit.rows if step and any("tokens_per_second" in name for name in row)]


def restarted(context: StepContext) -> StepContext:
    """The step's context as the next process gets it: its state is there, its output is not."""
    again()
    shutil.rmtree(context.output)
    context.output.mkdir()
    return replace(context, emit=Emitted())
