"""The step `specialist`: supervised training of one model on the full reasoning traces of its domains.

Every trace becomes prompt, trace and EOS (`vibethinker.data.prompts`), with the loss on trace and EOS alone.
transformers' Trainer does the training; what it sees, and in which order, is decided here: each pass over the
traces is a seeded shuffle, an update's examples are split into micro-batches of similar length (`batches`), and the
loss is the mean over the update's completion tokens. So neither the micro-batch, nor the number of processes, nor the
position of a resumed run changes what is computed, but for rounding.

A trace that exceeds `max_length` is left out and counted, never cut. `packing` joins traces to sequences of
`max_length` whose parts don't attend to each other, and an update takes `batch_size` of those. On a GPU sequences
are laid end to end either way (`packed`); on a CPU they are padded, and the parts of a packed one told apart by their
positions.

A second stage [3B] trains on from the first one's last checkpoint, on the traces of problems that it rarely solves,
for a number of passes; the schedule begins anew.

Left out: activation offloading, context parallelism.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments
from trl import pack_dataset

from vibethinker.data.prompts import all_training_ids
from vibethinker.data.schema import Trace, read_records
from vibethinker.errors import DataError
from vibethinker.models import load_tokenizer
from vibethinker.probing import checkpoints
from vibethinker.settings import Prompts, Sft
from vibethinker.steps import Metrics, StepContext
from vibethinker.training import packed, processes
from vibethinker.training.batches import accumulate, split_alike
from vibethinker.training.callbacks import Checkpoints, Reporter
from vibethinker.training.common import Run, begin_supervised, memory_errors, train, trainer_arguments, training_order
from vibethinker.training.divergence import Watch
from vibethinker.training.halting import Rollbacks
from vibethinker.training.logprobs import IGNORED
from vibethinker.training.phases import Phases
from vibethinker.training.processes import Shardable
from vibethinker.training.resuming import Resuming

Layout = Literal["packed", "unsloth", "padded"]
METRICS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "token_accuracy": "token_accuracy",
}


@dataclass(frozen=True)
class Example:
    """One sequence: token ids, and for each the label, -100 where no loss counts."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Row:
    """A sequence as the trainer takes it, or several that were packed; on the CPU.

    Attributes:
        ids, labels: shape (tokens,); the first token of each sequence has the label -100, since nothing predicts it.
        lengths: of the sequences.
        counted: how many labels count.
    """

    ids: Tensor
    labels: Tensor
    lengths: list[int]
    counted: int

    @classmethod
    def of(cls, ids: list[int], labels: list[int], lengths: list[int]) -> Row:
        """A row from its token ids, labels and sequences' lengths."""
        first = [0, *itertools.accumulate(lengths[:-1])]
        masked = torch.tensor(labels)
        masked[first] = IGNORED
        return cls(torch.tensor(ids), masked, lengths, int((masked != IGNORED).sum()))


def run(context: StepContext) -> Metrics:
    """Train a specialist from `inputs["base"]` on `inputs["data"]`; leaves `checkpoints/step-*` and
    metrics.jsonl. With `settings["hard"]` it is the second stage of `inputs["specialist"]`.

    Raises:
        DataError: there are no traces, or none is short enough.
        DivergedError: loss or gradient became NaN or infinite; the evidence is beside the step's checkpoints.
        RolledBackError: likewise, and the step is to be run again.
        OutOfMemoryError: the device's memory did not suffice.
    """
    settings, prompts, run = begin_supervised(context)
    tokenizer = load_tokenizer(context.inputs["base"])
    domains, start = context.settings["domains"], context.inputs["base"]
    traces = [t for d in domains for t in read_records(context.inputs["data"] / "sft" / f"{d}.parquet", Trace)]
    hard = context.settings.get("hard")
    if hard:
        start = checkpoints(context.inputs["specialist"])[-1]
        traces = rarely_solved(traces, context.inputs["solutions"], hard["accuracy"])
        if not traces:
            context.emit.warning(
                f"No problem is solved in at most {hard['accuracy']:g} of its samples: nothing learned."
            )
            if processes.rank() == 0:
                shutil.copytree(start, context.output / "checkpoints" / "step-000000")
            processes.barrier()
            return {"traces": 0}
    examples, left_out = to_examples(tokenizer, traces, prompts, settings.max_length)
    if not examples:
        raise DataError(
            f"{', '.join(domains)}: none of the {len(traces)} traces has at most spectrum.sft.max_length = "
            f"{settings.max_length} tokens: raise it, or give shorter traces."
        )
    if left_out:
        context.emit.warning(f"{left_out} of {len(traces)} traces exceed {settings.max_length} tokens: left out.")
    if hard:
        settings = of_epochs(settings, examples, hard["epochs"])
    with memory_errors():
        model = run.load(start, settings, settings.max_length)
        phases = Phases(run.device)
        last = fine_tune(model, tokenizer, examples, settings, run, context.output / "checkpoints", phases=phases)
    counts = {"traces": len(examples), "traces_left_out": left_out, "loss": last["loss"]}
    return counts | phases.summary() | Rollbacks(run.state).metrics()


def rarely_solved(traces: Sequence[Trace], solutions: Path, most: float) -> list[Trace]:
    """The traces of problems whose share of right samples is at most `most`.

    Args:
        solutions: what a step `solutions` left; a problem that it doesn't know, or couldn't grade, isn't hard.
    """
    rows = map(json.loads, (solutions / "outcomes.jsonl").read_text().splitlines())
    hard = {row["id"] for row in rows if row["samples"] and row["correct"] <= most * row["samples"]}
    return [trace for trace in traces if trace.problem_id in hard]


def of_epochs(settings: Sft, examples: Sequence[Example], epochs: int) -> Sft:
    """The settings with as many steps as so many passes over the examples take."""
    rows = len(to_rows(examples, settings.max_length if settings.packing else None))
    steps = math.ceil(epochs * rows / settings.batch_size)
    return settings.model_copy(update={"steps": steps, "checkpoints": min(settings.checkpoints, steps)})


def to_examples(
    tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace], prompts: Prompts, max_length: int
) -> tuple[list[Example], int]:
    """The traces of at most `max_length` tokens as training sequences, and how many were longer."""
    examples = [
        Example(ids, [token if counts else IGNORED for token, counts in zip(ids, mask, strict=True)])
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
    phases: Phases | None = None,
) -> Metrics:
    """Train `model`, or the adapters on it, in place and return the last step's metrics; into the folder
    `checkpoints`, if given, go the evenly spaced checkpoints. Without `optimizer` it is AdamW."""
    rows = to_rows(examples, settings.max_length if settings.packing else None)
    lengths = [len(row.ids) for row in rows]
    order = training_order(len(rows), settings.steps * settings.batch_size, run.seed)
    arguments = TrainingArguments(
        **trainer_arguments(run, settings.steps, settings.batch_size, settings.optimizer),
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr": settings.final_learning_rate},
        warmup_steps=math.ceil(settings.steps * settings.warmup),
        weight_decay=settings.weight_decay,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
    )
    reporter = Reporter(run.emit, run.metrics_file, settings.steps, METRICS, tokens="num_tokens", phases=phases)
    callbacks = [Watch(run.divergence), reporter]
    if checkpoints is not None:
        kept = checkpoint_steps(settings.steps, settings.checkpoints)
        callbacks.append(Checkpoints(checkpoints, kept, tokenizer, run.dtype))
    layout: Literal["packed", "unsloth", "padded"] = "unsloth"
    if run.backend == "transformers":
        compiled = run.quantization == "none"
        layout = "packed" if packed.prepare(model, run.dtype, compiled=compiled) else "padded"
    trainer = SpecialistTrainer(
        run.micro_tokens,
        layout=layout,
        pad=tokenizer.pad_token_id or 0,
        model=model,
        args=arguments,
        train_dataset=[rows[i] for i in batches_by_length(order, lengths, settings.batch_size, run.processes)],
        data_collator=lambda rows: {"rows": rows},
        callbacks=callbacks,
        optimizers=(optimizer, None),
    )
    train(trainer, run, [checkpoints] if checkpoints is not None else [])
    return reporter.last


class SpecialistTrainer(Resuming, Shardable):
    """transformers' Trainer over whole updates.

    Args:
        micro_tokens: most tokens of a forward and backward pass.
        layout: `packed` where `packed.prepare` has made the model ready, `unsloth` for that library's models, else
            `padded`.
        pad: the token that fills a rectangle.
        **trainer: what Trainer takes. The dataset is a list of `Row`.
    """

    def __init__(self, micro_tokens: int, *, layout: Layout, pad: int, **trainer: Any) -> None:
        super().__init__(**trainer)
        self._micro_tokens, self._padded, self._pad = micro_tokens, layout == "padded", pad
        self._nll = {"packed": self._packed_nll, "unsloth": self._unsloth_nll, "padded": self._padded_nll}[layout]
        self._row: dict[str, float] = {}
        self._tokens = 0

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """One update's forward and backward passes; the loss is the mean over its completion tokens."""
        with self.interruptible():
            return self._update(model, inputs["rows"])

    def _update(self, model: torch.nn.Module, rows: list[Row]) -> Tensor:
        model.train()
        device = self.accelerator.device
        own = torch.tensor([sum(row.counted for row in rows), sum(len(row.ids) for row in rows)], device=device)
        counted, tokens = self.accelerator.reduce(own, reduction="sum").tolist()
        right = torch.zeros((), device=device)

        def loss(part: list[int]) -> Tensor:
            nonlocal right
            # An empty part runs for the sake of the other processes, and counts for nothing.
            chosen, share = ([rows[i] for i in part], 1.0) if part else (rows[:1], 0.0)
            weight = share * self.accelerator.num_processes / max(1, counted)
            value, hits = self._nll(model, chosen, weight)
            right = right + share * hits.detach()
            return value

        total = accumulate(self, model, self._parts(rows), loss)
        self._tokens += tokens
        right = self.accelerator.reduce(right, reduction="sum")
        self._row = {"num_tokens": self._tokens}
        if not math.isnan(right):
            self._row["token_accuracy"] = float(right) / max(1, counted)
        return total

    def remembered(self) -> dict[str, Any]:
        """See `resumable.Remembers`."""
        return {"tokens": self._tokens}

    def recall(self, state: dict[str, Any]) -> None:
        """See `resumable.Remembers`."""
        self._tokens = state["tokens"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the row of this update to the Trainer's log."""
        logs.update(self._row)
        super().log(logs, start_time)

    def _parts(self, rows: Sequence[Row]) -> list[list[int]]:
        return split_alike([len(row.ids) for row in rows], self._micro_tokens, padded=self._padded)

    def _packed_nll(self, model: torch.nn.Module, rows: Sequence[Row], weight: float) -> tuple[Tensor, Tensor]:
        inner = packed.plain(self.accelerator.unwrap_model(model))
        return packed.nll(model, inner, *_joined(rows), weight)

    def _unsloth_nll(self, model: torch.nn.Module, rows: Sequence[Row], weight: float) -> tuple[Tensor, Tensor]:
        loss = packed.unsloth_nll(model, *_joined(rows), self.accelerator.device, weight)
        return loss, torch.full_like(loss, torch.nan)  # it doesn't tell how many were the likeliest

    def _padded_nll(self, model: torch.nn.Module, rows: Sequence[Row], weight: float) -> tuple[Tensor, Tensor]:
        def rectangle(of: list[Tensor], fill: int) -> Tensor:
            return pad_sequence(of, batch_first=True, padding_value=fill).to(self.accelerator.device)

        ids = rectangle([row.ids for row in rows], self._pad)
        labels = rectangle([row.labels for row in rows], IGNORED)
        if any(len(row.lengths) > 1 for row in rows):
            # Positions that start anew keep the sequences, of which each padding is one, from attending to each other.
            starts = rectangle([torch.cat([torch.arange(n) for n in row.lengths]) for row in rows], 0)
            logits = model(input_ids=ids, position_ids=starts, use_cache=False).logits
        else:
            mask = rectangle([torch.ones_like(row.ids) for row in rows], 0)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        targets = labels[:, 1:].flatten()
        flat = logits[:, :-1].flatten(0, 1)
        value = torch.nn.functional.cross_entropy(flat.float(), targets, ignore_index=IGNORED, reduction="sum")
        return value * weight, (flat.detach().argmax(-1) == targets).sum()


def batches_by_length(order: Sequence[int], lengths: Sequence[int], batch_size: int, processes: int = 1) -> list[int]:
    """The order with each batch sorted by length, and dealt out so that each process's part of it takes as long as the
    others'."""
    batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    found: list[int] = []
    for batch in batches:
        by_length = sorted(batch, key=lambda n: lengths[n])
        found += [number for process in range(processes) for number in by_length[process::processes]]
    return found


def checkpoint_steps(steps: int, count: int) -> list[int]:
    """`count` evenly spaced steps, the last one included."""
    return sorted({round(steps * (i + 1) / count) for i in range(count)})


def to_rows(examples: Sequence[Example], packed_to: int | None = None) -> list[Row]:
    """The rows of training: an example each, or packed to so many tokens, best fit first."""
    if packed_to is None:
        return [Row.of(example.ids, example.labels, [len(example.ids)]) for example in examples]
    plain = {"input_ids": [e.ids for e in examples], "labels": [e.labels for e in examples]}
    found = pack_dataset(Dataset.from_dict(plain), packed_to, "bfd")
    return [Row.of(row["input_ids"], row["labels"], row["seq_lengths"]) for row in found]


def _joined(rows: Sequence[Row]) -> tuple[Tensor, Tensor, list[int]]:
    """Token ids and labels end to end, and the lengths of all sequences."""
    lengths = [length for row in rows for length in row.lengths]
    return torch.cat([row.ids for row in rows]), torch.cat([row.labels for row in rows]), lengths
