"""What a run's journal says to attach to an MLflow run: files, data sets, tables of generations, the final model.

Each may be attached twice without harm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vibethinker.tracking import registry, samples

LISTED = "mlflow.loggedArtifacts"  # the tag by which MLflow's pages know tables
Operation = Mapping[str, Any]


def artifact(client: Any, run: str, operation: Operation) -> None:
    """A file, or a folder's contents."""
    path = Path(operation["path"])
    if path.is_dir():
        client.log_artifacts(run, str(path), operation["under"])
    else:
        client.log_artifact(run, str(path), operation["under"] or None)


def table(client: Any, run: str, operation: Operation) -> None:
    """Generations of a published file, as MLflow's own table; `log_table` would append to one that is there."""
    text = json.dumps(samples.table(Path(operation["path"])), ensure_ascii=False)
    client.log_text(run, text, operation["name"])
    listed = json.loads(client.get_run(run).data.tags.get(LISTED, "[]"))
    entry = {"path": operation["name"], "type": "table"}
    if entry not in listed:
        client.set_tag(run, LISTED, json.dumps([*listed, entry]))


def dataset(client: Any, run: str, operation: Operation) -> None:
    """A data set, with its digest and number of rows."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    files = [Path(file) for file in operation["files"]]
    rows = _rows(files)
    one = Dataset(
        operation["name"],
        operation["digest"][:36],  # MLflow keeps no more; the whole is a tag
        "local",
        json.dumps({"uri": str(files[0] if len(files) == 1 else files[0].parent)}),
        profile=None if rows is None else json.dumps({"num_rows": rows, "num_files": len(files)}),
    )
    tags = [InputTag("mlflow.data.context", operation["context"]), InputTag("sha256", operation["digest"])]
    client.log_inputs(run, [DatasetInput(one, tags)])


def model(client: Any, run: str, operation: Operation) -> None:
    """The final model with its outcomes; it becomes a candidate of the registry, and perhaps the champion."""
    folder = Path(operation["folder"])
    if not folder.is_dir():
        raise FileNotFoundError(2, "no such folder", str(folder))
    client.log_artifacts(run, str(folder), "model")
    outcomes = None if operation["outcomes"] is None else Path(operation["outcomes"])
    if outcomes:
        client.log_artifact(run, str(outcomes), registry.FOLDER)
    one = registry.Offer(
        operation["name"],
        artifact=f"{folder.parent.name}/{folder.name}",
        run=run,
        time_ms=operation["time_ms"],
        sets=operation["sets"],
        benchmark=operation["benchmark"],
        outcomes=registry.read_outcomes(outcomes) if outcomes else (),
        tags=operation["tags"],
    )
    client.set_tag(run, f"{registry.PREFIX}promotion", registry.offer(client, one))


ACTIONS: dict[str, Callable[[Any, str, Operation], None]] = {
    "artifact": artifact,
    "table": table,
    "dataset": dataset,
    "model": model,
}


def _rows(files: list[Path]) -> int | None:
    """Rows of Parquet files; None of others, and where one is gone."""
    if not all(file.suffix == ".parquet" for file in files):
        return None
    from pyarrow import parquet

    with suppress(OSError):
        return sum(parquet.read_metadata(file).num_rows for file in files)
    return None
