"""Sending a run's journal to an MLflow store: parent and child runs, metrics in batches, and what is attached to them
(`contents`).

Operations are applied in order, and each may be applied twice without harm: runs are found again by their
tags, equal parameters and artefacts are written over, MLflow's SQL store keeps one of two equal metric rows,
and the position behind each success is recorded. So a crash between sending and recording doubles nothing.

Left out: `mlflow.transformers.log_model`, which needs torchvision; a model is its folder, as `artifacts` and
in the registry.
"""

from __future__ import annotations

import importlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from vibethinker import locks, telemetry
from vibethinker.redaction import passwords, redact
from vibethinker.tracking import contents
from vibethinker.tracking.creation import create_store, sqlite_file
from vibethinker.tracking.journal import STATE, Progress, delivering, read

# MLflow's own limits on one call of log_batch.
METRICS_A_CALL, PARAMS_A_CALL = 1000, 100
PREFIX = "vibethinker."
REGISTRY = "mlflow-registry.lock"  # of this workspace's runs
# Refusals of one operation, which no retry mends; any other error counts as an outage.
REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}

Operation = dict[str, Any]
Child = tuple[str, str]


def load_client(uri: str) -> Any:
    """An MlflowClient of `uri`."""
    _import_quietly()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


class Delivery:
    """Applies the operations of one run's journal to one store; used by one thread at a time."""

    def __init__(self, folder: Path, uri: str, workspace: Path, warn: Callable[[str], None]) -> None:
        self._folder, self._uri, self._workspace, self._warn = folder, uri, workspace, warn
        self._progress = Progress(folder, uri)
        self._client: Any = None
        self._children: dict[Child, str] = {}
        self._gathered: dict[Child, list[tuple[int, Operation]]] = {}
        self._sent: dict[Child, int] = {}
        self.experiment_id: str | None = None
        self.run_id: str | None = None

    def advance(self) -> int:
        """Send what the journal holds beyond the recorded position; returns the number of operations sent.

        Raises whatever the store raises when it can't be reached; what was sent before stays recorded.
        """
        count = 0
        with delivering(self._folder):
            if self.run_id is None and not self._open():
                return 0
            self._gathered.clear()
            position = self._progress.position(self._run)
            while window := list(read(self._folder, position)):
                for position, operation in window:
                    if operation["op"] == "metrics":
                        child = (operation.get("step", ""), operation.get("fingerprint", ""))
                        self._gathered.setdefault(child, []).append((position, operation))
                        continue
                    self._flush()
                    self._apply(operation)
                    self._progress.record(self._run, position)
                self._flush()
                self._progress.record(self._run, position)
                count += len(window)
        return count

    @property
    def _run(self) -> str:
        assert self.run_id is not None  # nothing is applied before it is open
        return self.run_id

    def _open(self) -> bool:
        """Find or create the parent run that the journal's first line describes; False if it is empty."""
        opening = next((o for _, o in read(self._folder) if o["op"] == "run"), None)
        if opening is None:
            return False
        if path := sqlite_file(self._uri):
            _import_quietly()
            create_store(path, self._workspace / "mlartifacts")
            _check_sqlite(path)
        self._client = self._client or load_client(self._uri)
        self.experiment_id = self._experiment(opening["experiment"])
        tags = {f"{PREFIX}run_id": opening["run_id"], f"{PREFIX}kind": "run"}
        self.run_id = self._find_or_create(tags, opening["name"], opening["time_ms"])
        return True

    def _experiment(self, name: str) -> str:
        from mlflow import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found:
            return found.experiment_id
        location = None
        if not self._uri.startswith(("http:", "https:", "databricks")):
            # Without a location MLflow writes ./mlruns into the current folder.
            location = (self._workspace.resolve() / "mlartifacts").as_uri()
        try:
            return self._client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._client.get_experiment_by_name(name).experiment_id  # another run was faster

    def _find_or_create(self, tags: dict[str, str], name: str, time_ms: int) -> str:
        query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        found = self._client.search_runs(
            [self.experiment_id], query, max_results=1, order_by=["attributes.start_time ASC"]
        )
        if found:
            return found[0].info.run_id
        if self.run_id:
            tags = {**tags, "mlflow.parentRunId": self.run_id}
        return self._client.create_run(self.experiment_id, time_ms, tags, name).info.run_id

    def _run_of(self, operation: Operation) -> str:
        """The run that an operation is about: a step's, or the parent."""
        if "step" not in operation:
            assert self.run_id is not None
            return self.run_id
        key = (operation["step"], operation["fingerprint"])
        if key not in self._children:
            tags = {
                f"{PREFIX}parent": self.run_id,
                f"{PREFIX}kind": "step",
                f"{PREFIX}step": key[0],
                f"{PREFIX}fingerprint": key[1],
            }
            self._children[key] = self._find_or_create(tags, key[0], operation["time_ms"])
        return self._children[key]

    def _flush(self) -> None:
        """Send the gathered metrics, each child's in order, in calls as large as MLflow takes."""
        from mlflow.entities import Metric

        for child, operations in self._gathered.items():
            unsent = [(p, o) for p, o in operations if p > self._sent.get(child, 0)]
            for part in _parts(unsent):
                batch = [
                    Metric(key, value, o["time_ms"], o["at"]) for _, o in part for key, value in o["values"].items()
                ]
                run = self._run_of(part[0][1])
                self._guard(partial(self._client.log_batch, run, metrics=batch), "metrics")
                # A later part of this window may fail: the retry must not send this one again.
                self._sent[child] = part[-1][0]
        self._gathered.clear()

    def _apply(self, operation: Operation) -> None:
        name = operation["op"]
        action = getattr(self, f"_on_{name}", None)
        if action is not None:
            self._guard(lambda: action(operation), name)
        elif name in contents.ACTIONS:
            self._guard(lambda: self._attach(operation), name)
        else:
            self._warn(f"{self._folder}/tracking.jsonl has a line that is no operation; it is left out of MLflow.")

    def _attach(self, operation: Operation) -> None:
        # Two models that stand at once would both be held against the same champion.
        alone = locks.held(self._workspace / REGISTRY) if operation["op"] == "model" else nullcontext()
        with alone:
            contents.ACTIONS[operation["op"]](self._client, self._run_of(operation), operation)

    def _guard(self, call: Callable[[], None], what: str) -> None:
        """Make one call; a refusal by MLflow is reported and passed over, since no retry mends it."""
        from mlflow import MlflowException

        try:
            call()
        except FileNotFoundError as error:
            self._warn(f"MLflow did not get {what}: {error.filename} is gone.")
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            self._warn(f"MLflow refused {what}: {redact(str(error), passwords(self._uri)).splitlines()[0]}")

    def _on_run(self, operation: Operation) -> None:
        self._client.update_run(self.run_id, status="RUNNING")
        self._set_tags(self._run, operation["tags"])
        known = self._client.get_run(self.run_id).data.params
        changed = sorted(k for k, v in operation["params"].items() if known.get(k, v) != v)
        if changed:
            self._warn(
                f"MLflow keeps a parameter's first value: {', '.join(changed[:5])} changed since the run "
                "began; the run's config.yaml has the new ones."
            )
        new = {k: v for k, v in operation["params"].items() if k not in known}
        self._set_params(self._run, new)

    def _set_params(self, run: str, params: dict[str, str]) -> None:
        from mlflow.entities import Param

        entities = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(entities), PARAMS_A_CALL):
            self._client.log_batch(run, params=entities[start : start + PARAMS_A_CALL])

    def _set_tags(self, run: str, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        entities = [RunTag(key, value) for key, value in tags.items()]
        for start in range(0, len(entities), PARAMS_A_CALL):
            self._client.log_batch(run, tags=entities[start : start + PARAMS_A_CALL])

    def _on_step(self, operation: Operation) -> None:
        run = self._run_of(operation)
        self._client.update_run(run, status="RUNNING")
        known = self._client.get_run(run).data.params
        # Limits at which a step only stops are all that may have changed since it began.
        self._set_params(run, {k: v for k, v in operation.get("params", {}).items() if k not in known})
        self._set_tags(run, operation["tags"])

    def _on_finish(self, operation: Operation) -> None:
        from mlflow.entities import Metric

        run = self._run_of(operation)
        known = self._client.get_run(run).data.metrics
        final = {f"final/{key}": value for key, value in operation["metrics"].items()}
        new = [Metric(k, v, operation["time_ms"], 0) for k, v in final.items() if known.get(k) != v]
        for start in range(0, len(new), METRICS_A_CALL):
            self._client.log_batch(run, metrics=new[start : start + METRICS_A_CALL])
        self._set_tags(run, operation["tags"])
        self._client.set_terminated(run, operation["status"], operation["time_ms"])


def _parts(operations: list[tuple[int, Operation]]) -> Iterator[list[tuple[int, Operation]]]:
    """Consecutive operations whose metrics fit into one call."""
    part: list[tuple[int, Operation]] = []
    size = 0
    for position, operation in operations:
        if part and size + len(operation["values"]) > METRICS_A_CALL:
            yield part
            part, size = [], 0
        part.append((position, operation))
        size += len(operation["values"])
    if part:
        yield part


def _import_quietly() -> None:
    """MLflow with telemetry off, and short waits, since the journal itself tries again."""
    os.environ.update(telemetry.OFF)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    importlib.import_module("mlflow")
    # It sets its own loggers' levels when it is imported.
    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _check_sqlite(path: Path) -> None:
    """Raise sqlite3.OperationalError at once where the file can't be used; MLflow itself tries for 100 s."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("pragma user_version")


def deliver_left_over(runs: Path, uri: str, workspace: Path, warn: Callable[[str], None]) -> None:
    """Send what other runs under `runs`, which were killed or never reached this store, have left."""
    for state in sorted(runs.glob(f"*/{STATE}")):
        if Progress(state.parent, uri).pending():
            Delivery(state.parent, uri, workspace, warn).advance()
