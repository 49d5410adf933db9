"""What Prefect calls when a flow run has ended: somebody is told how, why, and how it goes on.

What there is to tell is read from the run's folder, which a note there ties to the flow run: where the flow's process
was killed, Prefect's worker calls the hooks in a process of its own. Hooks don't run where that is gone too, or where
Prefect's server is: see `flows.automations`. An end by Ctrl-C isn't told of, since whoever pressed it knows, nor
that of a run which was stopped since another one of its experiment had failed: that one is told of.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from prefect import Flow, State
from prefect.client.schemas.objects import FlowRun
from prefect.logging.loggers import flow_run_logger
from prefect.runtime import flow_run as runtime
from prefect.utilities.urls import url_for
from pydantic import ValidationError

from flows.server import is_temporary
from tasks.messages import Message
from tasks.notifications import tell
from vibethinker import config as configuration
from vibethinker import errors, locks, runs
from vibethinker.artifacts import write_json
from vibethinker.errors import VibeThinkerError
from vibethinker.operations import Notifications

NOTE = "prefect.json"  # of a run's folder: its flow run and where MLflow shows it
OF = "PREFECT__FLOW_RUN_ID"  # in the environment of a flow run
LINES, TAIL = 12, 16384  # of a log: lines shown, bytes they are looked for in
EARLIER_SECONDS = 60.0  # for a process that Prefect knows to have ended, to have ended
INTERRUPTED = "aborted by an interrupt signal"  # what Prefect says of Ctrl-C
ENDS = {"Rejected": "rejected", "OverBudget": "budget"}  # names of states in which a run failed by somebody's will
REASONS = {"out_of_memory": "out of memory", "failure": "failed", "preempted": "stopped"}


def remember(folder: Path, mlflow: str | None) -> None:
    """Tie a run's folder to this process's flow run; `mlflow` is where MLflow shows it, kept if that is a server."""
    shown = mlflow if mlflow and mlflow.startswith(("http://", "https://")) else None
    note = {"flow_run_id": str(runtime.id or ""), "run_count": runtime.run_count, "mlflow": shown}
    write_json(folder / NOTE, note)


def wait_for_earlier(workspace: Path) -> None:
    """Where this flow run is started again, wait until its earlier process has let go of the run's folder, so that this
    one can go on in it."""
    folder = _folder(workspace, str(runtime.id))
    limit = time.monotonic() + EARLIER_SECONDS
    while folder and locks.is_held(folder / runs.ALIVE) and time.monotonic() < limit:
        time.sleep(0.2)


def ended(flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tell how a flow run has ended, once; see the module."""
    if state.is_crashed() and INTERRUPTED in (state.message or ""):
        return
    workspace = configuration.workspace((flow_run.parameters or {}).get("workspace"))
    folder = _folder(workspace, str(flow_run.id))
    settings = _settings(folder)
    say = flow_run_logger(flow_run, flow).warning
    if state.is_completed() and not settings.success:
        tell(None, settings, say=say, workspace=workspace)
        return
    # Prefect's worker may know the flow run only as it was before its process began.
    count = max(flow_run.run_count, _read(folder / NOTE).get("run_count", 0) if folder else 0)
    profile = str((flow_run.parameters or {}).get("profile", flow.name))
    tell(
        message(flow, flow_run, state, workspace, folder),
        settings,
        say=say,
        name=f"{flow_run.id}-{count}-ended",
        folder=folder,
        workspace=workspace,
        about=f"{flow.name}/{profile}",
    )


HOOKS: dict[str, list[Any]] = {
    name: [ended] for name in ("on_completion", "on_failure", "on_cancellation", "on_crashed")
}


def message(
    flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any], workspace: Path, folder: Path | None
) -> Message:
    """What is told of a flow run that has ended so; without a folder it ended before its run began."""
    summary = runs.read_summary(folder) if folder else {"status": "", "steps": []}
    steps = summary["steps"]
    step = next((s for wanted in ("failed", "running") for s in steps if s["state"] == wanted), None)
    reason, text = _why(state, step)
    run_name = folder.name if folder else flow_run.name
    where = f" in {step['id']}" if step and not state.is_completed() else ""
    kind, title = _titled(state, reason, run_name, where)
    fields, excerpt = [("Reason", REASONS.get(reason, reason))] if reason else [], ""
    if folder and step and not state.is_completed():
        fields.insert(0, ("Step", _described(folder, step["id"])))
        excerpt = _tail(folder, _logs(flow_run, folder, step["id"], summary["status"]))
    if steps:
        fields.append(("Steps finished", f"{sum(s['state'] in runs.FINISHED for s in steps)} of {len(steps)}"))
    fields.append(("Machine", socket.gethostname()))
    if found := re.search(r"evidence is in ([^)]+)\)", text):
        fields.append(("Evidence", found[1]))
    return Message(
        kind=kind,
        title=title,
        text=text,
        fields=fields,
        excerpt=excerpt,
        command="" if state.is_completed() else _command(flow, flow_run, folder),
        links=links(str(flow_run.id), workspace, folder),
    )


def links(flow_run_id: str, workspace: Path, folder: Path | None) -> list[tuple[str, str]]:
    """Where to look further: the flow run in Prefect's UI, the run in MLflow, the report."""
    found = []
    if not is_temporary(workspace) and (address := url_for("flow-run", flow_run_id)):
        found.append(("Prefect", address))
    if folder is None:
        return found
    if mlflow := _read(folder / NOTE).get("mlflow"):
        found.append(("MLflow", mlflow))
    report = folder / "report.html"
    return [*found, ("Report", str(report)) if report.exists() else ("Folder", str(folder))]


def _why(state: State[Any], step: dict[str, Any] | None) -> tuple[str, str]:
    """The class of an end and the sentence for it."""
    said = (state.message or "").strip()
    if state.is_completed():
        return "", "All steps are finished."
    if state.is_cancelling() or state.is_cancelled():
        return "cancelled", "The run was cancelled in Prefect; what its steps had saved is kept."
    if state.is_crashed():
        return "crashed", said or "The run's process ended without a word."
    if step and "error" in step:
        return step.get("kind", "failure"), step["error"]
    if found := re.search(r"(\w+Error): (.*)", said, re.DOTALL):
        known = getattr(errors, found[1], None)
        if isinstance(known, type) and issubclass(known, VibeThinkerError):
            return known.kind, found[2]
    return ENDS.get(state.name or "", "failure"), said or "The run failed."


def _titled(state: State[Any], reason: str, run: str, where: str) -> tuple[str, str]:
    """What kind of message it is, and its title."""
    if state.is_completed():
        return "success", f"{run} is finished"
    if reason == "diverged":
        return "diverged", f"{run} diverged{where}"
    if reason == "rejected":
        return "approval", f"{run} was not approved"
    if reason == "budget":
        return "budget", f"{run} waits: its budget does not suffice"
    if reason == "cancelled":
        return "cancellation", f"{run} was cancelled{where}"
    return ("crash", f"{run} crashed{where}") if reason == "crashed" else ("failure", f"{run} failed{where}")


def _described(folder: Path, step_id: str) -> str:
    """A step with its stage or domain, from the plan."""
    found = _planned(folder, step_id)
    more = [str(found[name]) for name in ("kind", "domain") if found.get(name) and str(found[name]) not in step_id]
    more += [f"stage {found['stage']}"] if found.get("stage") is not None else []
    return f"{step_id} ({', '.join(more)})" if more else step_id


def _planned(folder: Path, step_id: str) -> dict[str, Any]:
    return next((s for s in _read(folder / "plan.json").get("steps", ()) if s["id"] == step_id), {})


def _command(flow: Flow[Any, Any], flow_run: FlowRun, folder: Path | None) -> str:
    """The one command that goes on; before there was a run, the one that starts it."""
    if folder and (resume := _read(folder / "state.json").get("resume")):
        return resume
    values = {name: value for name, value in (flow_run.parameters or {}).items() if value is not None}
    words = [f"{name}={json.dumps(value)}" for name, value in values.items()]
    if flow_run.deployment_id:
        given = [word for value in words for word in ("--param", value)]
        return shlex.join(["prefect", "deployment", "run", "--id", str(flow_run.deployment_id), *given])
    return ""


def _logs(flow_run: FlowRun, folder: Path, step_id: str, status: str) -> tuple[str, ...]:
    """Whose logs may be shown: the step's, or its worker's where it wrote none.

    Where the flow's process was killed it hasn't cleaned them, and this one has to know every key that can be in them.
    It knows those of the flow run's environment, if Prefect has given it that, and none that was read from a block:
    those are handed to the worker for the data step alone.
    """
    if status != "running":
        return step_id, "worker"
    known = os.environ.get(OF) == str(flow_run.id)
    return (step_id,) if known and _planned(folder, step_id).get("kind", "data") != "data" else ()


def _tail(folder: Path, logs: Sequence[str]) -> str:
    """The last lines of the first of these logs that has any."""
    for name in logs:
        try:
            with (folder / "logs" / f"{name}.log").open("rb") as log:
                log.seek(max(0, log.seek(0, 2) - TAIL))
                text = log.read().decode(errors="replace")
        except OSError:
            continue
        lines = [line.rstrip().rpartition("\r")[2] for line in text.split("\n")]  # of a bar only what it ended as
        if shown := [line for line in lines if line][-LINES:]:
            return "\n".join(shown)
    return ""


def _folder(workspace: Path, flow_run_id: str) -> Path | None:
    """The run that this flow run has begun or goes on with."""
    return next((f for f in runs.folders(workspace) if _read(f / NOTE).get("flow_run_id") == flow_run_id), None)


def _settings(folder: Path | None) -> Notifications:
    """Who is told, as the run's configuration says; the defaults before there is a run."""
    try:
        values = yaml.safe_load((folder / "config.yaml").read_text()) if folder else {}
        return Notifications.model_validate(values.get("notifications") or {})
    except (OSError, yaml.YAMLError, ValidationError):
        return Notifications()


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
