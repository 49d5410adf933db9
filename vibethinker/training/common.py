"""What supervised and reinforcement training share: how a step runs, and the trainers' common arguments."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PrinterCallback

from vibethinker.artifacts import UPDATES
from vibethinker.errors import OutOfMemoryError
from vibethinker.footprint import Shape, Training, checkpointing
from vibethinker.models import seed_everything, set_threads
from vibethinker.models.files import CONFIG
from vibethinker.models.trainable import load_trainable
from vibethinker.operations import Divergence, TrainerCheckpoints
from vibethinker.settings import BaseModelSettings, Objective, Prompts, Sft
from vibethinker.steps import Emitter, StepContext
from vibethinker.training import processes
from vibethinker.training.callbacks import Reporter
from vibethinker.training.divergence import Watch
from vibethinker.training.halting import Halt, Rollbacks
from vibethinker.training.resumable import Resumable
from vibethinker.training.resuming import Resuming, train_resumably

# TRL warns that rollout functions are experimental; its version is pinned.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


@dataclass(frozen=True)
class Run:
    """How and where one training runs; `dtype` is the type of computation and of the stored weights, `settings` are the
    step's, for the evidence of a divergence."""

    seed: int
    deterministic: bool
    device: str
    dtype: torch.dtype
    micro_tokens: int
    emit: Emitter
    metrics_file: Path
    state: Path
    backend: Literal["transformers", "unsloth"] = "transformers"
    quantization: Literal["none", "nf4"] = "none"
    gradient_checkpointing: bool | None = None
    gpu_share: float = 1.0
    processes: int = 1
    sharding: str = "ddp"
    checkpoints: TrainerCheckpoints = field(default_factory=TrainerCheckpoints)
    divergence: Divergence = field(default_factory=Divergence)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, context: StepContext, base_model: BaseModelSettings, micro_tokens: int) -> Run:
        """The run that a step's context describes."""
        execution = context.execution
        return cls(
            seed=context.settings["seed"],
            deterministic=context.settings["deterministic"],
            device=execution["device"],
            dtype=torch.bfloat16 if base_model.precision == "bfloat16" else torch.float32,
            micro_tokens=micro_tokens,
            emit=context.emit,
            metrics_file=context.output / "metrics.jsonl",
            state=context.checkpoints,
            backend=execution.get("backend", "transformers"),
            quantization=base_model.quantization,
            gradient_checkpointing=execution.get("gradient_checkpointing"),
            gpu_share=execution.get("gpu_share", 1.0),
            processes=execution.get("processes", 1),
            sharding=execution.get("sharding", "ddp"),
            checkpoints=TrainerCheckpoints.model_validate(execution.get("checkpoints", {})),
            divergence=Divergence.model_validate(execution.get("divergence", {})),
            settings=context.settings,
        )

    def load(self, folder: Path, settings: Sft | Objective, longest: int, beside: float = 0.0) -> PreTrainedModel:
        """The model of a folder, ready to be trained by `settings`.

        Args:
            longest: sequence in training, in tokens.
            beside: share of the GPU that an engine keeps while the model trains.
        """
        return load_trainable(
            folder,
            method=settings.method,
            quantization=self.quantization if settings.method == "lora" else "none",
            backend=self.backend,
            device=self.device,
            dtype=self.dtype,
            lora=settings.lora,
            gradient_checkpointing=self._checkpoints(folder, settings, longest, beside),
            max_length=longest,
        )

    def _checkpoints(self, folder: Path, settings: Sft | Objective, longest: int, beside: float) -> bool:
        if self.gradient_checkpointing is not None or self.device == "cpu":
            return bool(self.gradient_checkpointing)
        training = Training(
            Shape.of(json.loads((folder / CONFIG).read_text())),
            tokens=max(self.micro_tokens, longest),
            method=settings.method,
            rank=settings.lora.rank,
            precision="bfloat16" if self.dtype == torch.bfloat16 else "float32",
            quantization=self.quantization,
            optimizer=settings.optimizer,
            processes=self.processes,
            sharding=self.sharding,
        )
        return checkpointing(training, int(torch.cuda.mem_get_info()[1] * (self.gpu_share - beside)))


def begin_supervised(context: StepContext) -> tuple[Sft, Prompts, Run]:
    """What a step of supervised training begins with: its settings and run, once this process has its threads, its
    place among the run's processes, and the seed."""
    settings = Sft.model_validate(context.settings["sft"])
    prompts = Prompts.model_validate(context.settings["prompts"])
    base_model = BaseModelSettings.model_validate(context.settings["base_model"])
    run = Run.of(context, base_model, micro_tokens=context.execution["sft_micro_tokens"])
    set_threads(context.execution["threads"])
    processes.join(run.device)
    seed_everything(run.seed, run.deterministic)
    return settings, prompts, run


def trainer_arguments(run: Run, steps: int, batch_size: int, optimizer: str = "adamw") -> dict[str, Any]:
    """The arguments that all trainers share; `batch_size` sequences make an optimizer step, of which each process gets
    its part whole (see `batches`).

    TRL's defaults are bfloat16 and gradient checkpointing, which a CPU must not get and `Run.load` sees to; the
    library's own logging, checkpoints, progress bar and NaN filter are off, since this package reports, saves and
    halts itself.
    """
    return {
        "output_dir": str(run.state),
        "max_steps": steps,
        "per_device_train_batch_size": batch_size // run.processes,
        "gradient_accumulation_steps": 1,
        "seed": run.seed,
        "use_cpu": run.device == "cpu",
        "bf16": run.dtype == torch.bfloat16,
        "gradient_checkpointing": False,
        "optim": "adamw_torch_fused" if optimizer == "adamw" else "adamw_8bit",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **processes.arguments(run.processes, run.sharding),
    }


def train(trainer: Resuming, run: Run, written: Sequence[Path] = (), *, save_last: bool = False) -> None:
    """Train, or go on where an earlier process of this step was stopped, without the lines that transformers prints.

    `written` is what the step writes into its output meanwhile, beside the metrics; for `save_last` see
    `train_resumably`.

    cuDNN's attention is off: with a mask and a length of 64 modulo 128 its backward pass gives NaN (pytorch#196678),
    and the other kernels are there too.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    trainer.remove_callback(PrinterCallback)
    callbacks, rollbacks = trainer.callback_handler.callbacks, Rollbacks(run.state)
    trainer.phases = next(one.phases for one in callbacks if isinstance(one, Reporter))
    trainer.watch = next(one for one in callbacks if isinstance(one, Watch))
    trainer.watch.halt, trainer.rate = Halt(run, trainer, rollbacks), rollbacks.rate
    processes.seed_apart(trainer.args.seed)
    files = [run.metrics_file, *written]
    layout = "sharded by FSDP" if run.processes > 1 and run.sharding == "fsdp" else "whole"
    good = [one["healthy"] for one in rollbacks.made]
    resumable = Resumable(run.state / UPDATES, files, run.checkpoints, run.emit, layout, good)
    train_resumably(trainer, resumable, save_last=save_last)


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


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turns torch's out-of-memory error into this project's."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"The device's memory did not suffice ({str(error).splitlines()[0]}): halve the micro-batch."
        ) from error
