"""What was measured once, read again to be compared: an output of `vibethinker evaluate`, a published evaluation, or
a model of a run.

A run's model goes by its id (`base`, `fusion`, `signal-2`; `final` is the last one), alone for the latest run of the
workspace, or as `RUN:MODEL` with the id or the folder of a run; a run alone means its final model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vibethinker import runs, validation
from vibethinker.artifacts import Store
from vibethinker.errors import ConfigurationError, DataError

SCHEMA = 2  # of what `evaluate` writes, and of evaluation.json; 1 didn't say which problems it was about


@dataclass(frozen=True)
class Measured:
    """One model's measurement.

    Attributes:
        name: what it was asked for by.
        rows: of outcomes.jsonl.
        sets: set → `digest` and number of its problems, and the `settings` of their samples.
        seed: of the samples.
        prompts: the prompt format.
    """

    name: str
    rows: tuple[Mapping[str, Any], ...]
    sets: Mapping[str, Mapping[str, Any]]
    seed: int
    prompts: Mapping[str, Any]


def load(name: str, workspace: Path) -> Measured:
    """The measurement that a name means; see the module.

    Raises:
        ConfigurationError: there is none.
        DataError: it can't be read, or an older version wrote it.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return _of_output(name, path)
    if (path / "outcomes.jsonl").is_file():
        return _of_folder(name, path)
    if path.suffix == ".json":
        raise ConfigurationError(f"There is no file {name}: name an output of `vibethinker evaluate`.")
    run, colon, model = name.rpartition(":")
    if colon:
        return _of_run(name, _run_folder(run, workspace), model)
    if (folder := _known_run(name, workspace)) is not None:
        return _of_run(name, folder, "final")
    return _of_run(name, runs.latest(workspace), name)


def differences(first: Measured, second: Measured) -> list[str]:
    """Why the numbers of two measurements aren't comparable; empty where they are. Sets that only one has are passed
    over."""
    found = []
    for name in common(first, second):
        one, other = first.sets[name], second.sets[name]
        if one["digest"] != other["digest"]:
            found.append(f"the set {name} has other problems ({one['problems']} and {other['problems']})")
        for key in sorted(one["settings"].keys() | other["settings"].keys()):
            values = one["settings"].get(key), other["settings"].get(key)
            if values[0] != values[1] and key != "k":
                found.append(f"{name} was sampled with {key} {values[0]} and {values[1]}")
    if first.seed != second.seed:
        found.append(f"the seeds are {first.seed} and {second.seed}")
    if first.prompts != second.prompts:
        found.append("the prompts are written in other ways")
    return found


def common(first: Measured, second: Measured) -> list[str]:
    """The sets that both were measured on, in the first's order."""
    return [name for name in first.sets if name in second.sets]


def _of_output(name: str, path: Path) -> Measured:
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{path} isn't JSON: name an output of `vibethinker evaluate`.") from None
    _check(document, path)
    return _measured(name, document, document.get("outcomes", []), path)


def _of_folder(name: str, folder: Path) -> Measured:
    if reason := validation.check(folder, "digest"):
        raise DataError(f"{folder} is no whole output of an evaluation ({reason}): let its run make it anew.")
    path = folder / "evaluation.json"
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        raise DataError(f"{folder} was written by an older version: evaluate its model again to compare it.") from None
    _check(document, path)
    lines = (folder / "outcomes.jsonl").read_text().splitlines()
    return _measured(name, document, [json.loads(line) for line in lines], path)


def _check(document: Any, path: Path) -> None:
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"{path} is no measurement of this version, which reads schema {SCHEMA}, not {schema!r}: evaluate the "
            "model again to compare it."
        )


def _measured(name: str, document: Mapping[str, Any], rows: list[Any], path: Path) -> Measured:
    try:
        found = Measured(name, tuple(rows), document["sets"], document["seed"], document["prompts"])
        for row in rows:
            row["set"], row["id"], row["correct"], row["samples"]
        return found
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} lacks {error}: name an output of `vibethinker evaluate`.") from None


def _run_folder(run: str, workspace: Path) -> Path:
    folder = _known_run(run, workspace)
    if folder is None:
        known = ", ".join(_ids(workspace))
        raise ConfigurationError(f"There is no run {run!r} in {workspace}: name {known or 'another --workspace'}.")
    return folder


def _known_run(run: str, workspace: Path) -> Path | None:
    for folder in (Path(run).expanduser(), workspace / "runs" / run):
        if run and (folder / "summary.json").is_file():
            return folder
    return None


def _ids(workspace: Path) -> Iterator[str]:
    return (folder.name for folder in runs.folders(workspace)[:5])


def _of_run(name: str, folder: Path, model: str) -> Measured:
    steps = {
        step["id"].removeprefix("evaluation-"): step
        for step in runs.read_summary(folder)["steps"]
        if step["id"].startswith("evaluation-") and step["state"] in runs.FINISHED
    }
    if model == "final":
        model = next(reversed([id for id in steps if not id.startswith("specialist-")]), model)
    if model not in steps:
        raise ConfigurationError(
            f"{name!r} is neither a file nor a folder of an evaluation, and the run {folder.name} has measured "
            f"{', '.join(steps) or 'no model yet'}: name one of these, or a file."
        )
    step = steps[model]
    store = Store(folder.absolute().parent.parent)
    return _of_folder(name, store.folder(step["id"], step["fingerprint"]))
