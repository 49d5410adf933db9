"""Diversity probing: of a specialist's checkpoints, the one with the widest spectrum of solutions. [1.5B]

Every kept checkpoint draws n samples of each probe problem of its domain; the highest mean unbiased Pass@K
wins, whatever its loss or Pass@1 (`select` has other choices, for comparison). A tie goes to the earlier
checkpoint, which has moved less from the base and so fuses better. The winner is then measured on the validation
split, since the maximum of several measurements flatters. Neither split has a training problem; which is which, the
data step decides. One engine serves all checkpoints: their weights are swapped, the engine isn't started again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vibethinker import verifiers
from vibethinker.artifacts import write_json
from vibethinker.data.schema import Problem, read_records
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.evaluation.measuring import (
    Outcome,
    derived_seed,
    faults,
    longest_sequence,
    measure,
    pass_scores,
    write_rows,
)
from vibethinker.settings import Probing, Prompts
from vibethinker.steps import Metrics, StepContext, measured

METRICS = "metrics.jsonl"  # of a specialist
Candidate = dict[str, Any]


def run(context: StepContext) -> Metrics:
    """The step `probe`: choose one checkpoint of `context.inputs["specialist"]` for one domain.

    Raises:
        ConfigurationError: there are no checkpoints, or one is incomplete.
        DataError: a split is missing, malformed or empty.
    """
    from vibethinker.generation.opening import Engines
    from vibethinker.models import set_threads

    settings = Probing.model_validate(context.settings["probing"])
    check_k(settings)
    domain, seed = context.settings["domain"], context.settings["seed"]
    prompts = Prompts.model_validate(context.settings["prompts"])
    splits = {s: read_split(context.inputs["data"], s, domain) for s in ("probe", "validation")}
    folders = checkpoints(context.inputs["specialist"])
    by_loss = settings.select == "loss" and len(folders) > 1  # a second stage that learned nothing has no losses
    losses = training_losses(context.inputs["specialist"], folders) if by_loss else {}
    set_threads(context.execution["threads"])
    total = settings.samples * (len(folders) * len(splits["probe"]) + len(splits["validation"]))
    rows: list[dict[str, Any]] = []
    speeds: list[dict[str, float]] = []
    done = 0

    def assess(folder: Path, split: str) -> Candidate:
        nonlocal done

        def report(finished: int, _: int, doing: str) -> None:
            context.emit.progress(done + finished, total, f"{folder.name}: {doing}")

        context.emit.progress(done, total, f"{folder.name}: loading")
        engine = engines.at(folder, context.inputs["base"])
        purpose = derived_seed(seed, split, domain)
        outcomes = measure(engine, engine.tokenizer, grader, splits[split], settings, prompts, purpose, report)
        done += settings.samples * len(splits[split])
        speeds.append(engine.meter.take())
        rows.extend({"checkpoint": folder.name, "split": split, **outcome.row()} for outcome in outcomes)
        for fault in faults(outcomes):
            context.emit.warning(f"{folder.name}: {fault}")
        return candidate(folder.name, outcomes, settings)

    problems = [problem for split in splits.values() for problem in split]
    with (
        verifiers.of_step(context) as grader,
        Engines(context.execution, lambda t: longest_sequence(t, problems, prompts, settings.max_tokens)) as engines,
    ):
        candidates = [assess(folder, "probe") | losses.get(folder.name, {}) for folder in folders]
        for number, (found, speed) in enumerate(zip(candidates, speeds, strict=True), start=1):
            context.emit.metrics(number, {f"pass@{k}": s["value"] for k, s in found["pass_at"].items()} | speed)
        selected = choose(candidates, settings.k, settings.select)
        validation = assess(folders[[f.name for f in folders].index(selected)], "validation")
    write_json(
        context.output / "probe.json",
        {
            "domain": domain,
            "k": settings.k,
            "select": settings.select,
            "selected": selected,
            "candidates": candidates,
            "validation": validation,
        },
    )
    write_rows(context.output / "outcomes.jsonl", rows)
    scores = {f"pass@{k}": s["value"] for k, s in validation["pass_at"].items()}
    tokens = sum(speed.get("generated_tokens", 0) for speed in speeds)
    return scores | {"checkpoints": len(candidates), "generated_tokens": tokens}


def choose(candidates: Sequence[Mapping[str, Any]], k: int, select: str = "pass_at_k") -> str:
    """The name of the candidate that `select` asks for; of equal ones the first.

    Args:
        candidates: as `candidate` makes them, in the order of training; for `loss` with that of `training_losses`.
        k: of Pass@k.
        select: as in the settings.
    """
    if select == "last" or len(candidates) == 1:
        return candidates[-1]["checkpoint"]
    if select == "loss":
        return min(candidates, key=lambda found: found["loss"])["checkpoint"]
    draws = str(k if select == "pass_at_k" else 1)
    return max(candidates, key=lambda found: found["pass_at"][draws]["value"])["checkpoint"]


def training_losses(specialist: Path, folders: Sequence[Path]) -> dict[str, dict[str, float]]:
    """checkpoint → its `loss`: the mean training loss of the updates since the checkpoint before. In a first pass over
    the traces that is a loss on traces not seen before.

    Raises:
        ConfigurationError: the specialist's training left no record of it.
    """
    try:
        rows = dict(measured(specialist / METRICS))
        ends = [int(folder.name.rpartition("-")[2]) for folder in folders]
        parts = [[row["loss"] for step, row in rows.items() if a < step <= b] for a, b in pairwise([0, *ends])]
        return {f.name: {"loss": sum(part) / len(part)} for f, part in zip(folders, parts, strict=True)}
    except (OSError, ValueError, KeyError, ZeroDivisionError):
        raise ConfigurationError(
            f"spectrum.probing.select is loss, and {specialist} has no {METRICS} that tells it for each checkpoint: "
            "choose by pass_at_k, or train the specialist here."
        ) from None


def candidate(name: str, outcomes: Sequence[Outcome], settings: Probing) -> Candidate:
    """One entry of probe.json: Pass@K for K and each K to report, and what stands behind it.

    Raises:
        DataError: the verifier left no problem with K samples.
    """
    by_one = {1} if settings.select == "pass_at_1" else set()
    ks = sorted({settings.k, *by_one, *(k for k in settings.report_k if k <= settings.samples)})
    return {
        "checkpoint": name,
        "pass_at": {
            str(k): {bound: score[bound] for bound in ("value", "low", "high")}
            for k, score in pass_scores(outcomes, ks).items()
        },
        "problems": len(outcomes),
        "samples": settings.samples,
        "left_out": sum(outcome.left_out for outcome in outcomes),
        "truncated": sum(outcome.truncated for outcome in outcomes) / len(outcomes),
    }


def check_k(settings: Probing) -> None:
    """Refuse more draws than samples.

    Raises:
        ConfigurationError: K > n.
    """
    if settings.k > settings.samples:
        raise ConfigurationError(
            f"K is {settings.k} but only {settings.samples} samples are drawn: Pass@K needs K <= n, so raise the "
            "samples or lower K."
        )


def checkpoints(specialist: Path) -> list[Path]:
    """The checkpoint folders of a specialist in the order of training.

    Raises:
        ConfigurationError: there are none.
    """
    folders = sorted(folder for folder in (specialist / "checkpoints").glob("*") if folder.is_dir())
    if not folders:
        raise ConfigurationError(f"{specialist} has no folder in checkpoints/: train the specialist again.")
    return folders


def read_split(data: Path, split: str, domain: str) -> list[Problem]:
    """A domain's problems of `probe` or `validation`, of which training has none.

    Raises:
        DataError: the file is missing, malformed or empty.
    """
    path = data / split / f"{domain}.parquet"
    problems = read_records(path, Problem)
    if not problems:
        raise DataError(f"{path} has no problems to probe with: raise data.probe and data.validation.")
    return problems
