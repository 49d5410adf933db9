"""The step `specialist`: supervised training of one model on the full reasoning traces of its domains.

Every trace becomes prompt, trace and EOS (`vibethinker.data.prompts`), with the loss on trace and EOS alone.
TRL's SFTTrainer does the training; what it sees, and in which order, is decided here: each pass over the
traces is a seeded shuffle, the examples of one optimizer step are sorted by length, so that its micro-batches
hold little padding, and the loss is the mean over the step's completion tokens. So neither the micro-batch
nor the position of a resumed run changes what is computed.

A trace that exceeds `max_length` is left out and counted, never cut. `packing` joins traces to sequences of
`max_length` whose parts don't attend to each other.

Left out: fused losses, activation offloading, several GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer, pack_dataset

from vibethinker.data.prompts import all_training_ids
from vibethinker.data.schema import Trace, read_records
from vibethinker.errors import DataError
from vibethinker.models import load_model, load_tokenizer, seed_everything, set_threads
from vibethinker.settings import BaseModelSettings, Prompts, Sft
from vibethinker.steps import Metrics, StepContext
from vibethinker.training.callbacks import Checkpoints, Reporter
from vibethinker.training.common import (
    Run,
    lora_config,
    memory_errors,
    train_quietly,
    trainer_arguments,
    training_order,
)

METRICS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "mean_token_accuracy": "token_accuracy",
}


@dataclass(frozen=True)
class Example:
    """One sequence: token ids, and for each the label, -100 where no loss counts."""

    ids: list[int]
    labels: list[int]


def run(context: StepContext) -> Metrics:
    """Train a specialist from `inputs["base"]` on `inputs["data"]`; leaves `checkpoints/step-*` and
    metrics.jsonl.

    Raises:
        DataError: there are no traces, or none is short enough.
        DivergedError: loss or gradient became NaN or infinite.
        OutOfMemoryError: the device's memory did not suffice.
    """
    settings = Sft.model_validate(context.settings["sft"])
    prompts = Prompts.model_validate(context.settings["prompts"])
    base_model = BaseModelSettings.model_validate(context.settings["base_model"])
    run = Run.of(context, base_model, micro_tokens=context.execution["sft_micro_tokens"])
    set_threads(context.execution["threads"])
    seed_everything(run.seed, run.deterministic)
    tokenizer = load_tokenizer(context.inputs["base"])
    domains = context.settings["domains"]
    traces = [t for d in domains for t in read_records(context.inputs["data"] / "sft" / f"{d}.parquet", Trace)]
    examples, left_out = to_examples(tokenizer, traces, prompts, settings.max_length)
    if not examples:
        raise DataError(
            f"{', '.join(domains)}: none of the {len(traces)} traces has at most spectrum.sft.max_length = "
            f"{settings.max_length} tokens: raise it, or give shorter traces."
        )
    if left_out:
        context.emit.warning(f"{left_out} of {len(traces)} traces exceed {settings.max_length} tokens: left out.")
    with memory_errors():
        weights = run.weights_dtype(settings.method)
        model = load_model(context.inputs["base"], device=run.device, dtype=weights)
        last = fine_tune(model, tokenizer, examples, settings, run, context.output / "checkpoints")
    return {"traces": len(examples), "traces_left_out": left_out, "loss": last["loss"]}


def to_examples(
    tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace], prompts: Prompts, max_length: int
) -> tuple[list[Example], int]:
    """The traces of at most `max_length` tokens as training sequences, and how many were longer."""
    examples = [
        Example(ids, [token if counts else -100 for token, counts in zip(ids, mask, strict=True)])
        for ids, mask in all_training_ids(tokenizer, traces, prompts)
        if len(ids) <= max_length
    ]
    return examples, len(traces) - len(examples)


def fine_tune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: Sft,
    run: Run,
    checkpoints: Path | None = None,
    optimizer: Optimizer | None = None,
) -> Metrics:
    """Train `model` in place (with `method: lora`, adapters on it) and return the last step's metrics; into
    the folder `checkpoints`, if given, go the evenly spaced checkpoints. Without `optimizer` it is AdamW."""
    rows = _packed(examples, settings.max_length) if settings.packing else _plain(examples)
    lengths = [len(ids) for ids in rows["input_ids"]]
    order = training_order(len(rows), settings.steps * settings.batch_size, run.seed)
    arguments = SFTConfig(
        **trainer_arguments(run, settings.steps, settings.batch_size),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": settings.final_learning_rate},
        warmup_steps=math.ceil(settings.steps * settings.warmup),
        weight_decay=settings.weight_decay,
        train_sampling_strategy="sequential",
        max_length=None,
        padding_free=settings.packing,
        # The chunked loss saves memory with a real vocabulary and costs time with a tiny one.
        loss_type="nll" if len(tokenizer) <= 4096 else "chunked_nll",
    )
    reporter = Reporter(run.emit, run.metrics_file, settings.steps, METRICS, tokens="num_tokens")
    callbacks = [reporter]
    if checkpoints is not None:
        kept = checkpoint_steps(settings.steps, settings.checkpoints)
        callbacks.append(Checkpoints(checkpoints, kept, tokenizer, run.dtype))
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=rows.select(batches_by_length(order, lengths, settings.batch_size)),
        processing_class=tokenizer,
        peft_config=lora_config(settings.lora) if settings.method == "lora" else None,
        callbacks=callbacks,
        optimizers=(optimizer, None),
    )
    train_quietly(trainer)
    return reporter.last


def batches_by_length(order: Sequence[int], lengths: Sequence[int], batch_size: int) -> list[int]:
    """The order with each batch sorted by length, so that its micro-batches hold little padding."""
    batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    return [number for batch in batches for number in sorted(batch, key=lambda n: lengths[n])]


def checkpoint_steps(steps: int, count: int) -> list[int]:
    """`count` evenly spaced steps, the last one included."""
    return sorted({round(steps * (i + 1) / count) for i in range(count)})


def _plain(examples: Sequence[Example]) -> Dataset:
    return Dataset.from_dict({"input_ids": [e.ids for e in examples], "labels": [e.labels for e in examples]})


def _packed(examples: Sequence[Example], length: int) -> Dataset:
    return pack_dataset(_plain(examples), length, "bfd")
