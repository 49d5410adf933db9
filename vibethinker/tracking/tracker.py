"""What the flow process calls: an MLflow run a pipeline run, a child run a step, and a thread that delivers.

Every call only appends to the run's journal, from any thread, and returns at once; the thread imports MLflow,
opens the store (a new SQLite store costs seconds of migrations, which so overlap with training) and sends
batches. While the store is away the journal grows and a warning is given once; delivery resumes by itself, in
the next process too.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from vibethinker.errors import ConfigurationError
from vibethinker.redaction import passwords, redact
from vibethinker.tracking import values
from vibethinker.tracking.addresses import without_password
from vibethinker.tracking.datasets import Set
from vibethinker.tracking.delivery import Child, Delivery, deliver_left_over
from vibethinker.tracking.journal import Journal, Progress, read_all
from vibethinker.tracking.system import Sampler

Status = Literal["FINISHED", "FAILED", "KILLED", "SCHEDULED"]

LINGER = 1.0  # seconds in which further operations join a delivery
RETRY = (2.0, 60.0)  # seconds before the first retry of an unreachable store, and the most
PARENT = ("", "")  # the parent run, in the place of a step and its fingerprint
CLOSE = 600.0  # seconds that `finish` waits for a delivery that goes on


def store_uri(uri: str | None, workspace: Path) -> str:
    """The store: `uri`, else MLFLOW_TRACKING_URI, else SQLite in the workspace."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workspace.resolve() / 'mlflow.db'}"


class RunTracker:
    """The MLflow run of one pipeline run; made by `open`, ended by `finish`."""

    def __init__(self, folder: Path, uri: str, workspace: Path, warn: Callable[[str], None]) -> None:
        self._uri, self._warn, self._folder, self._workspace = uri, warn, folder, workspace
        self._marks, self._begun, self._ended = _known(folder)
        self._lock = threading.Lock()
        self._journal = Journal(folder)
        self._delivery = Delivery(folder, uri, workspace, warn)
        self._wake, self._closing = threading.Event(), threading.Event()
        self._delivered = False
        self._sampler: Sampler | None = None
        self._samples = max(self._marks.get(PARENT, {}).values(), default=-1) + 1
        Progress(folder, uri).begin()
        self._thread = threading.Thread(target=self._deliver, name="mlflow", daemon=True)

    @classmethod
    def open(
        cls,
        uri: str | None,
        workspace: Path,
        experiment: str,
        run_id: str,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        folder: Path,
        warn: Callable[[str], None] | None = None,
        system_seconds: float = 0.0,
    ) -> RunTracker:
        """Start or continue the MLflow run of `run_id`, whose journal is in `folder`; returns at once.

        `params` is the resolved configuration, nested; `warn` gets each sentence meant for the user; the machine is
        sampled every `system_seconds`, unless that is 0.
        Raises ConfigurationError where MLflow isn't installed.
        """
        if importlib.util.find_spec("mlflow") is None:
            raise ConfigurationError("Tracking needs MLflow: install the extra `service` (vibethinker[service]).")
        warn = warn or logging.getLogger("vibethinker.tracking").warning
        tracker = cls(folder, store_uri(uri, workspace), workspace, warn)
        tracker._append(
            {
                "op": "run",
                "experiment": experiment,
                "run_id": run_id,
                "name": run_name,
                "params": values.params(params),
                "tags": values.texts(tags),
            }
        )
        tracker._thread.start()
        if system_seconds:
            tracker._sampler = Sampler(system_seconds, workspace, tracker._sampled)
            tracker._sampler.start()
        return tracker

    @property
    def run_id(self) -> str | None:
        """The MLflow id of the parent run; None until the store has answered."""
        return self._delivery.run_id

    @property
    def url(self) -> str:
        """Where to look at the run: its page on a server, else the store's address."""
        return self.page() or without_password(self._uri).rstrip("/")

    def page(self, artifact: str = "") -> str | None:
        """The run's page on a server, or that of a file attached to it; None where there is none (yet).

        Without the last words of its address MLflow shows a training as an evaluation of agents.
        """
        server = without_password(self._uri).rstrip("/")
        if self.run_id is None or not server.startswith(("http://", "https://")):
            return None
        page = f"{server}/#/experiments/{self._delivery.experiment_id}/runs/{self.run_id}"
        return page + (f"/artifacts/{artifact}" if artifact else "") + "?workflowType=machine_learning"

    def step(
        self,
        step_id: str,
        fingerprint: str,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> StepTracker:
        """Start the child run of a step, or continue it when the step is retried; `params` are its settings, nested."""
        told = {"tags": values.texts(tags or {}), "params": values.params(params or {})}
        self._append({"op": "step", "step": step_id, "fingerprint": fingerprint, **told})
        return StepTracker(self, step_id, fingerprint)

    def begun(self, step_id: str, fingerprint: str) -> bool:
        """Whether an earlier process of this run has told that the step began."""
        return (step_id, fingerprint) in self._begun

    def ended(self, step_id: str, fingerprint: str) -> bool:
        """Whether an earlier process of this run has told that the step ended well."""
        return (step_id, fingerprint) in self._ended

    def dataset(self, one: Set) -> None:
        """Note a data set that the run reads."""
        self._append({"op": "dataset", **asdict(one)})

    def artifact(self, path: Path, under: str = "") -> None:
        """Attach a file, or a folder's contents, to the parent run."""
        self._append({"op": "artifact", "path": str(path), "under": under})

    def log_model(
        self,
        folder: Path,
        name: str,
        outcomes: Path | None = None,
        sets: Mapping[str, str] | None = None,
        benchmark: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Attach a published model folder as `model`, register it, once a fingerprint, as a version of `name`, and let
        it stand for champion (`registry`).

        Args:
            outcomes: its outcomes.jsonl, if it was measured.
            sets, benchmark, tags: see `registry.Offer`.
        """
        judged = {"outcomes": outcomes and str(outcomes), "sets": dict(sets or {}), "benchmark": benchmark}
        self._append({"op": "model", "folder": str(folder), "name": name, "tags": dict(tags or {}), **judged})

    def finish(self, status: Status, metrics: Mapping[str, Any] | None = None) -> None:
        """End the parent run."""
        self._end_sampling()
        self._append(_finish(status, metrics or {}))

    def close(self) -> bool:
        """Wait for the delivery; False where the store, or the disk under the journal, doesn't take all of it: the
        rest is delivered when the run's command is run again."""
        self._end_sampling()
        written = self._journal.flush()
        self._closing.set()
        self._wake.set()
        self._thread.join(CLOSE)
        self._journal.close()
        return written and self._delivered

    def _append(self, operation: dict[str, Any], wake: bool = True) -> None:
        self._journal.append({"time_ms": round(time.time() * 1000), **operation})
        if wake:
            self._wake.set()

    def _sampled(self, found: dict[str, float]) -> None:
        """A sample of the machine; it is sent with what comes next, since it is worth no delivery of its own."""
        if found:
            self._append({"op": "metrics", "at": self._samples, "values": found}, wake=False)
            self._samples += 1

    def _end_sampling(self) -> None:
        if self._sampler is not None:
            self._sampler.close()

    def _metrics(self, child: tuple[str, str], at: int, found: Mapping[str, float], time_ms: int, seq: int) -> None:
        with self._lock:
            marks = self._marks.setdefault(child, {})
            new = {key: value for key, value in found.items() if at > marks.get(key, -1)}
            marks.update(dict.fromkeys(new, at))
        if new:
            self._append(
                {
                    "op": "metrics",
                    "step": child[0],
                    "fingerprint": child[1],
                    "at": at,
                    "values": new,
                    "time_ms": time_ms,
                    "sequence": seq,
                }
            )

    def _deliver(self) -> None:
        """The thread: deliver whenever something was appended, try again while the store is away."""
        pause, warned, others = RETRY[0], False, True
        while True:
            closing = self._closing.is_set()
            self._wake.clear()
            try:
                self._delivery.advance()
                if others:
                    deliver_left_over(self._folder.parent, self._uri, self._workspace, self._warn)
                    others = False
            except Exception as error:  # of MLflow's client, anything; no training stops for it
                self._delivered = False
                if not warned:
                    self._warn(self._outage(error))
                    warned = True
                if closing:
                    return
                self._closing.wait(pause)
                pause = min(pause * 2, RETRY[1])
                continue
            self._delivered = True
            pause, warned = RETRY[0], False
            if closing:
                return
            self._wake.wait()
            self._closing.wait(LINGER)

    def _outage(self, error: Exception) -> str:
        lines = redact(str(error), passwords(self._uri)).strip().splitlines() or [""]
        reason, mend = f"{type(error).__name__}: {lines[0][:200]}", ""
        if "database schema" in lines[0]:
            reason = "its store is another MLflow version's"
            mend = f"back it up and run `mlflow db upgrade {without_password(self._uri)}`, or install that version; "
        return (
            f"MLflow can't be written ({reason}): {mend}the run goes on, "
            f"its measurements are kept in {self._folder / 'tracking.jsonl'} and sent when it answers."
        )


class StepTracker:
    """The child run of one step; its methods may be called from any thread."""

    def __init__(self, tracker: RunTracker, step_id: str, fingerprint: str) -> None:
        self._tracker, self._child = tracker, (step_id, fingerprint)

    def metrics(self, step: int, values_: Mapping[str, Any], time_ms: int, sequence: int) -> None:
        """Measurements at optimizer step `step`, taken at `time_ms` (Unix time), the worker's event
        `sequence`.

        A key's steps only rise: what a resumed step measures again is dropped. Lists become `key.0`, `key.1`…
        """
        self._tracker._metrics(self._child, step, values.numbers(values_), time_ms, sequence)

    def artifact(self, path: Path, under: str = "") -> None:
        """Attach a file, or a folder's contents, to the step's run."""
        self._tracker._append({"op": "artifact", **self._key(), "path": str(path), "under": under})

    def dataset(self, one: Set) -> None:
        """Note a data set that the step reads."""
        self._tracker._append({"op": "dataset", **self._key(), **asdict(one)})

    def table(self, path: Path, name: str) -> None:
        """Attach some of the generations in a published file as a table of this name, which ends in .json."""
        self._tracker._append({"op": "table", **self._key(), "path": str(path), "name": name})

    def finish(self, status: Status, metrics: Mapping[str, Any] | None = None) -> None:
        """End the step's run; numbers of `metrics` become `final/…` metrics, texts become tags."""
        self._tracker._append({**_finish(status, metrics or {}), **self._key()})

    def _key(self) -> dict[str, str]:
        return {"step": self._child[0], "fingerprint": self._child[1]}


def _finish(status: Status, metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "op": "finish",
        "status": status,
        "metrics": values.numbers(metrics),
        "tags": values.texts(metrics),
    }


def _known(folder: Path) -> tuple[dict[Child, dict[str, int]], set[Child], set[Child]]:
    """What the journal of an earlier process says: for each step and key the last optimizer step, from which a resumed
    one goes on, the steps that have begun, and those that have ended well."""
    marks: dict[Child, dict[str, int]] = {}
    begun: set[Child] = set()
    ended: set[Child] = set()
    for operation in read_all(folder):
        if "step" not in operation:
            if operation["op"] == "metrics":
                marks.setdefault(PARENT, {}).update(dict.fromkeys(operation["values"], operation["at"]))
            continue
        child = operation["step"], operation["fingerprint"]
        begun.add(child)
        if operation["op"] == "metrics":
            marks.setdefault(child, {}).update(dict.fromkeys(operation["values"], operation["at"]))
        elif operation["op"] == "finish":
            (ended.add if operation["status"] == "FINISHED" else ended.discard)(child)
    return marks, begun, ended
