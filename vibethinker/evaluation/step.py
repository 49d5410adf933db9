"""The step `evaluation`: one model measured on the evaluation sets.

Output: scores.json, evaluation.json (what was measured how, and the scores by domain and level), outcomes.jsonl (one
row a problem, for paired comparison), and generations.jsonl (the first problems of each set with all their samples,
for reading). A specialist is measured at the checkpoint that its probe chose.

Completions are kept in the workspace as they are sampled (`vibethinker.generation.kept`): a killed evaluation goes on
with them, and one that only scores otherwise samples nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vibethinker import verifiers
from vibethinker.artifacts import write_json
from vibethinker.data.schema import Problem, read_records
from vibethinker.errors import DataError
from vibethinker.evaluation.benchmarks import set_digest
from vibethinker.evaluation.measured import SCHEMA
from vibethinker.evaluation.measuring import (
    Outcome,
    Score,
    derived_seed,
    faults,
    labelled,
    longest_sequence,
    measure,
    scores,
    tables,
    votes,
    write_rows,
)
from vibethinker.settings import Evaluation, Prompts
from vibethinker.steps import KEPT, Metrics, StepContext

READABLE_PROBLEMS = 20


def run(context: StepContext) -> Metrics:
    """Measure `context.inputs["model"]` on `settings["sets"]`, or on every set there is.

    Raises:
        ConfigurationError: the model folder is incomplete.
        DataError: a set is missing or malformed.
    """
    from vibethinker.generation.kept import sampler
    from vibethinker.generation.opening import Engines
    from vibethinker.models import set_threads

    settings = Evaluation.model_validate(context.settings["evaluation"])
    prompts = Prompts.model_validate(context.settings["prompts"])
    sets = read_sets(context.inputs["data"] / "evaluation", context.settings["sets"])
    set_threads(context.execution["threads"])
    everything = [problem for problems in sets.values() for problem in problems]
    total = settings.samples * sum(map(len, sets.values()))
    done = 0
    outcomes: dict[str, list[Outcome]] = {}
    found: dict[str, dict[str, Score]] = {}
    how: dict[str, Evaluation] = {}
    parts: dict[str, Any] = {}
    voted: dict[str, dict[str, float]] = {}
    kept = Path(context.execution["generations"]) if "generations" in context.execution else None
    context.emit.progress(0, total, "loading")
    with (
        verifiers.of_step(context) as grader,
        Engines(context.execution, lambda t: longest_sequence(t, everything, prompts, settings.max_tokens)) as engines,
        sampler(engines, model_folder(context), context.inputs.get("base"), context.execution, kept) as engine,
    ):
        for number, (name, problems) in enumerate(sets.items(), start=1):

            def report(finished: int, _: int, doing: str, name: str = name, done: int = done) -> None:
                context.emit.progress(done + finished, total, f"{name}: {doing}")

            seed = derived_seed(context.settings["seed"], "evaluation", name)
            how[name] = settings.of(name, any(problem.tests is not None for problem in problems))
            outcomes[name] = measure(engine, engine.tokenizer, grader, problems, how[name], prompts, seed, report)
            context.emit.metrics(number, engine.speed())
            voted[name] = votes(outcomes[name], settings, grader, report)
            found[name] = scores(outcomes[name], settings, voted[name])
            parts[name] = tables(outcomes[name], settings, voted[name])
            done += settings.samples * len(problems)
            for fault in faults(outcomes[name]):
                context.emit.warning(f"{name}: {fault}")
    write_json(context.output / "scores.json", found)
    measured = {
        "schema": SCHEMA,
        "seed": context.settings["seed"],
        "prompts": prompts.semantic(),
        "sets": {
            name: {"digest": set_digest(some), "problems": len(some), "settings": how[name].semantic()}
            for name, some in sets.items()
        },
        "tables": parts,
    }
    write_json(context.output / "evaluation.json", measured)
    rows = (labelled(name, outcome, voted[name]) for name, some in outcomes.items() for outcome in some)
    write_rows(context.output / "outcomes.jsonl", rows)
    write_rows(
        context.output / "generations.jsonl",
        ({"set": s, **o.generations()} for s, some in outcomes.items() for o in some[:READABLE_PROBLEMS]),
    )
    metrics = {f"{name}/{metric}": value["value"] for name, of_set in found.items() for metric, value in of_set.items()}
    return metrics | ({KEPT: engine.found} if engine.found else {})


def read_sets(folder: Path, names: Sequence[str] | None) -> dict[str, list[Problem]]:
    """set → problems, in the names' order.

    Raises:
        DataError: there is no such set, or it has no problems.
    """
    present = sorted(file.stem for file in folder.glob("*.parquet"))
    sets = {}
    for name in present if names is None else names:
        if name not in present:
            raise DataError(f"There is no evaluation set {name!r}; the sets are {', '.join(present)}.")
        sets[name] = read_records(folder / f"{name}.parquet", Problem)
        if not sets[name]:
            raise DataError(f"The evaluation set {folder / name}.parquet is empty: remove it or fill it.")
    return sets


def model_folder(context: StepContext) -> Path:
    """The folder of the model to measure: of a specialist, the checkpoint that its probe chose."""
    folder = context.inputs["model"]
    if "probe" not in context.inputs:
        return folder
    selected = json.loads((context.inputs["probe"] / "probe.json").read_text())["selected"]
    return folder / "checkpoints" / selected
