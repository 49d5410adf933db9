"""The step `selection`: of the traces that the signal stages' models wrote, those from which a student has something to
learn. [3B]

A trace's score is the student's mean negative log-likelihood a token of it, its end included: what the student would
have written anyway scores low. Within a domain the very short are dropped, and the others parted into buckets of
similar length, since longer traces score lower whatever they say. In each bucket the extreme are dropped, and of the
rest those that score from the middle up are kept.

Output: sft/<domain>.parquet (the traces, as the data step has them), scores.jsonl (every trace's length and score, and
what became of it) and selection.json (the counts, by domain).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from vibethinker.artifacts import write_json
from vibethinker.data.prompts import all_training_ids
from vibethinker.data.schema import Trace, read_records, write_records
from vibethinker.errors import DataError
from vibethinker.evaluation.measuring import write_rows
from vibethinker.models import load_model, load_tokenizer, set_threads
from vibethinker.settings import Prompts, Selection
from vibethinker.steps import Metrics, StepContext
from vibethinker.training import packed
from vibethinker.training.batches import split
from vibethinker.training.common import memory_errors
from vibethinker.training.rollouts import scored_alone

Fate = Literal["kept", "short", "outlier", "low"]


@dataclass(frozen=True)
class Scored:
    """One trace: its length in tokens, its end included, and its score in nats a token."""

    trace: Trace
    tokens: int
    score: float


def run(context: StepContext) -> Metrics:
    """Choose among the traces of all inputs but `student` by the scores of that model.

    Raises:
        ConfigurationError: the student's folder is incomplete, or a trace contradicts the prompt format.
        DataError: there are no traces, or none is left.
        OutOfMemoryError: the device's memory did not suffice.
    """
    settings = Selection.model_validate(context.settings["selection"])
    prompts = Prompts.model_validate(context.settings["prompts"])
    domains = context.settings["domains"]
    set_threads(context.execution["threads"])
    traces = gathered([folder for role, folder in sorted(context.inputs.items()) if role != "student"], domains)
    if not traces:
        raise DataError(
            "The signal stages' models solve no training problem, so there is nothing to distil: train them longer, "
            "raise distillation.samples or max_tokens, or leave distillation unset."
        )
    with memory_errors():
        scored = scores(context, traces, prompts)
    fates = choose(scored, settings)
    if "kept" not in fates:
        raise DataError(f"None of the {len(scored)} traces is left: lower distillation.selection's shares.")
    (context.output / "sft").mkdir()
    for domain in domains:
        kept = [s.trace for s, fate in zip(scored, fates, strict=True) if fate == "kept" and s.trace.domain == domain]
        write_records(context.output / "sft" / f"{domain}.parquet", Trace, kept)
    rows = (
        {"problem": s.trace.problem_id, "domain": s.trace.domain, "teacher": s.trace.teacher, "tokens": s.tokens,
         "score": round(s.score, 6), "fate": fate}
        for s, fate in zip(scored, fates, strict=True)
    )  # fmt: skip
    write_rows(context.output / "scores.jsonl", rows)
    counts = {d: Counter(f for s, f in zip(scored, fates, strict=True) if s.trace.domain == d) for d in domains}
    write_json(context.output / "selection.json", {"counts": counts})
    mean = sum(s.score for s in scored) / len(scored)
    return {"traces": len(scored), **{f"traces_{fate}": n for fate, n in sorted(Counter(fates).items())}, "nll": mean}


def gathered(folders: Sequence[Path], domains: Sequence[str]) -> list[Trace]:
    """The traces of all folders, each text for a problem once: by the first that wrote it."""
    found: dict[tuple[str, str], Trace] = {}
    for domain in domains:
        for file in (folder / "sft" / f"{domain}.parquet" for folder in folders):
            for trace in read_records(file, Trace) if file.is_file() else ():
                found.setdefault((trace.problem_id, trace.text), trace)
    return list(found.values())


def scores(context: StepContext, traces: Sequence[Trace], prompts: Prompts) -> list[Scored]:
    """The student's score of each trace."""
    folder, device = context.inputs["student"], context.execution["device"]
    tokenizer = load_tokenizer(folder)
    pairs = []
    for ids, mask in all_training_ids(tokenizer, traces, prompts):
        prompt = len(mask) - sum(mask)
        pairs.append((ids[:prompt], ids[prompt:]))
    context.emit.progress(0, len(pairs), "loading the student")
    model = load_model(folder, device=device)
    found, done = [0.0] * len(pairs), 0
    end_to_end = packed.prepare(model, model.dtype, compiled=False)
    lengths = [len(prompt) + len(completion) for prompt, completion in pairs]
    parts = split(lengths, context.execution["sft_micro_tokens"], padded=False)
    with torch.no_grad():
        for part in parts if end_to_end else [[row] for row in range(len(pairs))]:
            together = [pairs[row] for row in part]
            told = packed.score(model, model, together) if end_to_end else [scored_alone(model, *together[0])]
            for row, one in zip(part, told, strict=True):
                found[row] = -sum(one) / len(one)
            done += len(part)
            context.emit.progress(done, len(pairs), "scoring traces")
    return [Scored(t, len(c), s) for t, (_, c), s in zip(traces, pairs, found, strict=True)]


def choose(scored: Sequence[Scored], settings: Selection) -> list[Fate]:
    """What becomes of each trace."""
    fates: list[Fate] = ["kept"] * len(scored)
    for domain in dict.fromkeys(one.trace.domain for one in scored):
        rows = [row for row, one in enumerate(scored) if one.trace.domain == domain]
        rows.sort(key=lambda row: (scored[row].tokens, row))
        short = int(len(rows) * settings.shortest)
        for row in rows[:short]:
            fates[row] = "short"
        rows = rows[short:]
        buckets = min(settings.buckets, len(rows))
        for bucket in range(buckets):
            own = rows[len(rows) * bucket // buckets : len(rows) * (bucket + 1) // buckets]
            own.sort(key=lambda row: (scored[row].score, row))
            low, high = int(len(own) * settings.lowest), len(own) - int(len(own) * settings.outliers)
            for place, row in enumerate(own):
                fates[row] = "low" if place < low else "kept" if place < high else "outlier"
    return fates
