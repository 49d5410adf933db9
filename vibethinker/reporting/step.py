"""The step `report`: everything that a report says and that a repeated run would say again, in report.json.

It reads the published folders of the steps before it: the data card, probe tables, training curves, fusion
weights, scores and outcomes, and some generations. What depends on the day (times, versions, the run's id) is
not in here: the page (vibethinker.reporting.html) takes it from the run's summary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vibethinker.artifacts import write_json
from vibethinker.data.schema import Problem, read_records
from vibethinker.errors import DataError
from vibethinker.reporting.results import Model, Results, warnings
from vibethinker.steps import Metrics, StepContext
from vibethinker.verification.schema import RIGHT

SCHEMA = 1
SAMPLES_A_SET = 2  # generations of each sort shown of each evaluation set
TEXT_LIMIT = 4000  # characters kept of one generation


def run(context: StepContext) -> Metrics:
    """Write report.json to `context.output`.

    Settings: profile, domains, math_domains, and models: `{id, evaluation}`, in the order of the recipe.
    Inputs: data, and whatever was made of specialists, probes, fusion, signal stages and evaluations, by step
    id.

    Returns: `scores`: model → scope → metric → value with interval, and the number of `warnings`.

    Raises: DataError: no model was measured, or an evaluation speaks of a problem that the data doesn't have.
    """
    settings, inputs = context.settings, context.inputs
    problems = _problems(inputs["data"])
    measured = [m for m in settings["models"] if m["evaluation"] in inputs]
    if not measured:
        raise DataError("There is no evaluation to report on: run at least one evaluation step.")
    models = []
    for done, model in enumerate(measured):
        context.emit.progress(done, len(measured) + 1, model["id"])
        models.append(_model(model["id"], inputs[model["evaluation"]], problems))
    results = Results(models, settings["domains"], settings["math_domains"], _k(models))
    comparisons = results.comparisons()
    report = {
        "schema": SCHEMA,
        "profile": settings["profile"],
        "domains": results.domains,
        "groups": results.groups,
        "benchmarks": results.benchmarks,
        "sets": {name: len(rows) for name, rows in problems.items()},
        "k": results.k,
        "final": results.final,
        "models": [
            {"id": id, "scores": model.scores, "means": results.means(id), "pass_at_k": results.curves(id)}
            for id, model in results.models.items()
        ],
        "comparisons": comparisons,
        "warnings": warnings(results, comparisons),
        "data": _json(inputs["data"] / "card.json"),
        "probes": {
            id.removeprefix("probe-"): _json(folder / "probe.json")
            for id, folder in sorted(inputs.items())
            if id.startswith("probe-") and (folder / "probe.json").exists()
        },
        "fusion": _json(inputs["fusion"] / "fusion.json") if "fusion" in inputs else {},
        "signals": {id: _json(folder / "signal.json") for id, folder in inputs.items() if id.startswith("signal-")},
        "curves": {
            id: curves(folder / "metrics.jsonl") for id, folder in inputs.items() if (folder / "metrics.jsonl").exists()
        },
        "samples": _samples(inputs, measured, results.final),
    }
    write_json(context.output / "report.json", report)
    context.emit.progress(len(measured) + 1, len(measured) + 1, "done")
    return {
        "scores": {m["id"]: m["means"] for m in report["models"]},
        "warnings": len(report["warnings"]),
    }


def curves(file: Path) -> dict[str, dict[str, list[Any]]]:
    """metric → its steps and values, from a metrics.jsonl; a value may be a list (a histogram)."""
    found: dict[str, dict[str, list[Any]]] = {}
    for row in _rows(file):
        for name, value in row.items():
            if name != "step":
                column = found.setdefault(name, {"step": [], "value": []})
                column["step"].append(row["step"])
                column["value"].append(value)
    return found


def select_samples(final: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Generations to show: of each set the first problems with a right answer, a wrong and a truncated one.

    Args: final, base: rows of generations.jsonl of the final and the base model.

    Returns: Rows with the set, problem, gold, why it is shown (`right`, `wrong`, `truncated`), the final
    model's sample and the base model's first sample for the same problem, if there is one.
    """
    before = {(row["set"], row["id"]): row["samples"][0] for row in base if row["samples"]}
    taken: dict[tuple[str, str], int] = {}
    chosen = []
    for row in final:
        for sample in row["samples"]:
            sort = "right" if sample["verdict"] in RIGHT else "truncated" if sample["truncated"] else "wrong"
            if taken.get((row["set"], sort), 0) < SAMPLES_A_SET:
                taken[row["set"], sort] = taken.get((row["set"], sort), 0) + 1
                first = before.get((row["set"], row["id"]))
                chosen.append(
                    {
                        **{key: row[key] for key in ("set", "id", "problem", "gold")},
                        "sort": sort,
                        "final": _cut(sample),
                        "base": _cut(first) if first else None,
                    }
                )
                break  # one sample a problem
    return chosen


def _samples(
    inputs: Mapping[str, Path], measured: Sequence[Mapping[str, str]], final: str | None
) -> list[dict[str, Any]]:
    rows = {}
    for model in measured:
        file = inputs[model["evaluation"]] / "generations.jsonl"
        if model["id"] in ("base", final) and file.exists():
            rows[model["id"]] = _rows(file)
    return select_samples(rows.get(final or "", []), rows.get("base", []) if final != "base" else [])


def _cut(sample: Mapping[str, Any]) -> dict[str, Any]:
    text = sample["text"]
    return {**sample, "text": text if len(text) <= TEXT_LIMIT else text[:TEXT_LIMIT] + " …"}


def _problems(data: Path) -> dict[str, dict[str, str]]:
    """evaluation set → problem id → domain."""
    files = sorted((data / "evaluation").glob("*.parquet"))
    return {file.stem: {p.id: p.domain for p in read_records(file, Problem)} for file in files}


def _model(id: str, folder: Path, problems: Mapping[str, Mapping[str, str]]) -> Model:
    rows = []
    for row in _rows(folder / "outcomes.jsonl"):
        try:
            rows.append({**row, "domain": problems[row["set"]][row["id"]]})
        except KeyError:
            raise DataError(
                f"{folder.name} has an outcome of {row['id']} in {row['set']}, which the data doesn't have: evaluate "
                f"{id} again."
            ) from None
    return Model(id, rows, _json(folder / "scores.json"))


def _k(models: Sequence[Model]) -> int:
    """The largest K that scores.json reports."""
    names = {m for model in models for of_set in model.scores.values() for m in of_set}
    return max((int(name.removeprefix("pass@")) for name in names if name.startswith("pass@")), default=1)


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _rows(file: Path) -> list[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
