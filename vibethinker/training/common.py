"""What supervised and reinforcement training share: how a step runs, the trainers' common arguments,
adapters."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer

from vibethinker.errors import OutOfMemoryError
from vibethinker.models.trainable import PROJECTIONS as PROJECTIONS
from vibethinker.models.trainable import lora_config as lora_config
from vibethinker.settings import BaseModelSettings
from vibethinker.steps import Emitter, StepContext

# TRL warns that rollout functions are experimental; its version is pinned.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


@dataclass(frozen=True)
class Run:
    """How and where one training runs; `dtype` is the type of computation and of the stored weights."""

    seed: int
    deterministic: bool
    device: str
    dtype: torch.dtype
    micro_tokens: int
    emit: Emitter
    metrics_file: Path
    state: Path

    @classmethod
    def of(cls, context: StepContext, base_model: BaseModelSettings, micro_tokens: int) -> Run:
        """The run that a step's context describes."""
        return cls(
            seed=context.settings["seed"],
            deterministic=context.settings["deterministic"],
            device=context.execution["device"],
            dtype=torch.bfloat16 if base_model.precision == "bfloat16" else torch.float32,
            micro_tokens=micro_tokens,
            emit=context.emit,
            metrics_file=context.output / "metrics.jsonl",
            state=context.checkpoints,
        )

    def weights_dtype(self, method: str) -> torch.dtype:
        """The type of the weights in memory: float32 where they are trained, since updates of 1e-6 vanish in
        bfloat16."""
        return self.dtype if method == "lora" else torch.float32


def trainer_arguments(run: Run, steps: int, batch_size: int) -> dict[str, Any]:
    """The arguments that all trainers share; `batch_size` sequences make an optimizer step.

    TRL's defaults are bfloat16 and gradient checkpointing, which a CPU must not get; the library's own
    logging, checkpoints, progress bar and NaN filter are off, since this package reports, saves and halts
    itself.
    """
    micro_batch = largest_divisor(batch_size, run.micro_batch)
    return {
        "output_dir": str(run.state),
        "max_steps": steps,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": batch_size // micro_batch,
        "seed": run.seed,
        "use_cpu": run.device == "cpu",
        "bf16": run.dtype == torch.bfloat16,
        "gradient_checkpointing": run.device != "cpu",
        "optim": "adamw_torch_fused",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": run.device != "cpu",
    }


def train_quietly(trainer: Trainer) -> None:
    """Train without the lines that transformers prints where it shows no progress bar.

    cuDNN's attention is off: with a mask and a length of 64 modulo 128 its backward pass gives NaN (pytorch#196678),
    and the other kernels are there too.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def training_order(count: int, total: int, seed: int) -> list[int]:
    """The numbers of the `count` examples in the order in which training sees them, `total` in all.

    Pass after pass over all of them, each shuffled with the seed and the pass's number.
    """
    order: list[int] = []
    for number in range(-(-total // count)):
        one_pass = list(range(count))
        random.Random(f"{seed}:{number}").shuffle(one_pass)
        order += one_pass
    return order[:total]


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is at most `at_most`."""
    return next(d for d in range(min(number, at_most), 0, -1) if number % d == 0)


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns torch's out-of-memory error into this project's."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"The device's memory did not suffice ({str(error).splitlines()[0]}): halve the micro-batch."
        ) from error
