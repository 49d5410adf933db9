"""The Prefect tasks, one a kind of step, all of one shape: look the fingerprint up, else run the step in a child.

Prefect's own result cache is off: manifests are the only cache, and a hit is returned as `Completed(name="Cached")`,
which the UI shows. Retries are for infrastructure failures alone; out of memory and preemption are handled beneath,
and a wrong configuration, bad data or divergence would only fail again. A task waits before a retry itself, since a
run that is asked to stop would else wait for it. Tasks carry no tags: before a tagged one
runs, Prefect asks the server for a concurrency slot a tag, which took up to 2 s a task.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.states import Completed
from prefect.tasks import Task

from tasks import artifacts, tracked
from tasks.logs import Teller, ours
from tasks.session import Session, find
from vibethinker import faults
from vibethinker.artifacts import Artifact
from vibethinker.config import Config
from vibethinker.errors import InfrastructureError, PreemptedError, VibeThinkerError
from vibethinker.plan import Step
from vibethinker.steps import measured
from vibethinker.worker.host import Event

METRICS = "metrics.jsonl"


class StepTask(NamedTuple):
    """A task and the kind of step that it runs."""

    kind: str
    task: Task[[str, str], Any]

    def of(self, step: Step, retries: int) -> Task[[str, str], Any]:
        """The task of one step. While a run of it waits for others, Prefect calls it by the task's name, by which the
        steps of a kind couldn't be told apart."""
        return self.task.with_options(name=step.id, retries=retries)


def _worth_retrying(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.result(raise_on_failure=False), InfrastructureError)


# Of every task that runs a step, wherever.
OPTIONS: dict[str, Any] = {
    "task_run_name": "{step_id}",
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retry_condition_fn": _worth_retrying,
}


def step_task(title: str, kind: str) -> StepTask:
    """The task for one kind of step; each of its runs is named after its step."""

    @task(name=title, **OPTIONS)
    def run_step(run_id: str, step_id: str) -> Any:
        session = find(run_id)
        return _run(session, session.plan[step_id])

    return StepTask(kind, run_step)


prepare_data = step_task("Prepare data", "data")
prepare_base = step_task("Prepare base model", "base")
train_specialist = step_task("Train specialist", "specialist")
sample_solutions = step_task("Sample solutions", "solutions")
probe_diversity = step_task("Probe diversity", "probe")
fuse_specialists = step_task("Fuse specialists", "fusion")
run_signal_stage = step_task("Run signal stage", "signal")
select_traces = step_task("Select traces", "selection")
train_distilled = step_task("Train distilled model", "distilled")
evaluate_model = step_task("Evaluate model", "evaluation")
write_report = step_task("Write report", "report")


def _run(session: Session, step: Step) -> Any:
    artifact = session.published(step)
    if artifact is not None:
        session.share(step, artifact)
        session.finished(step)
        session.run.update(step.id, "cached", artifact)
        session.display.state(step, "cached")
        tell_made(session, step, artifact)
        return cached(step, artifact)
    get_run_logger().info("%s, fingerprint %s, waits for its turn", step.id, step.fingerprint[:12])
    track = tracked.begun(session, step, {"prefect.task_run_id": str(task_run.get_id() or "")})
    progress, teller = artifacts.Progress(step), Teller(session.run.log(step.id), get_run_logger())

    def hear(event: Event) -> None:
        if event["event"] == "started":
            get_run_logger().info("%s runs%s", step.id, f" on {event['gpu']}" if event["gpu"] else "")
            session.run.update(step.id, "running")
            session.display.state(step, "running", event["gpu"])
            return
        session.display.event(step, event)
        if event["event"] == "progress":
            session.run.live.progress(step.id, event["done"], event["total"], event["text"])
            progress.update(event["done"], event["total"], event["text"])
            teller.progress(event["done"], event["total"], event["text"])
        elif event["event"] == "metrics":
            session.run.live.metrics(step.id, event["values"])
            if track:
                track.metrics(event["step"], event["values"], int(event["time"] * 1000), event["sequence"])
        elif event["event"] == "waiting":
            get_run_logger().info("%s %s", step.id, event["text"])
        elif event["event"] == "warning":
            session.run.warn(f"{step.id}: {event['text']}")
            get_run_logger().warning(event["text"])
        teller.tell()

    try:
        faults.point("step.start", step.id)
        with ours(get_run_logger()):
            try:
                reused = session.execute(step, hear)["reused"]
            finally:
                teller.end()
        faults.point("step.ended", step.id)
    except VibeThinkerError as found:
        error = _ended_by(session, step, found)
        if error is None:
            raise
        session.failed(step, error)
        if track:
            track.finish("SCHEDULED" if session.paused else "KILLED" if session.stopping.is_set() else "FAILED", {})
        if session.stopping.is_set():  # its process was told to leave: nothing to retry
            raise VibeThinkerError(str(error)) from found
        raise
    except BaseException:
        if track:
            track.finish("FAILED", {})
        raise
    artifact = session.run.store.read(step.id, step.fingerprint)
    assert artifact is not None, f"{step.id} said it was done but published nothing"
    session.share(step, artifact)
    if track:
        tracked.ended(session, track, step, artifact)
    progress.end()
    artifacts.results(step, artifact)
    if reused:  # another run, for which this one has waited, made it
        session.run.update(step.id, "cached", artifact)
        session.display.state(step, "cached")
        return cached(step, artifact)
    session.run.update(step.id, "done", artifact)
    faults.point("step.noted", step.id)
    session.display.state(step, "done", f"{artifact.manifest['seconds']:.0f} s")
    return outcome(step, artifact)


def _ended_by(session: Session, step: Step, error: VibeThinkerError) -> VibeThinkerError | None:
    """What has ended the step; None if it is to be tried again, once the wait before that is over."""
    attempt = task_run.get_run_count()
    seconds = pause_before_retry(error, attempt, session.config, session.stopping)
    if seconds is None:
        return error
    text = f"{error} Attempt {attempt + 1} of {session.config.execution.retries + 1} begins in {seconds:.0f} s."
    session.run.warn(f"{step.id}: {text}")
    session.run.update(step.id, "waiting")
    session.display.event(step, {"event": "warning", "text": text})
    get_run_logger().warning(text)
    return PreemptedError("The run was stopped.") if session.stopping.wait(seconds) else None


def pause_before_retry(
    error: VibeThinkerError, attempt: int, config: Config, stopping: threading.Event
) -> float | None:
    """Seconds to wait before a step that failed at its `attempt` (from 1) is tried again; None if it isn't."""
    execution = config.execution
    if not isinstance(error, InfrastructureError) or attempt > execution.retries or stopping.is_set():
        return None
    return execution.retry_seconds * 2 ** (attempt - 1) * random.uniform(0.5, 1.5)


def tell_made(session: Session, step: Step, artifact: Artifact) -> None:
    """Tell MLflow what another process of this run published, and may not have lived to tell. Where another run made it
    while this one waited, this one may have been killed after it had told the beginning."""
    tracker = session.tracker
    if tracker is None or tracker.ended(step.id, step.fingerprint):
        return
    if artifact.manifest.get("run_id") != session.run.id and not tracker.begun(step.id, step.fingerprint):
        return
    track = tracked.begun(session, step)
    assert track is not None
    metrics = artifact.folder / METRICS
    for at, values in measured(metrics) if metrics.exists() else ():
        track.metrics(at, values, int(artifact.manifest["finished"] * 1000), 0)
    tracked.ended(session, track, step, artifact)


def cached(step: Step, artifact: Artifact, warnings: Sequence[str] = ()) -> Any:
    """What a task returns whose step was published already."""
    data = outcome(step, artifact, warnings)
    return Completed(name="Cached", message=f"Reused {step.fingerprint[:12]}", data=data)


def outcome(step: Step, artifact: Artifact, warnings: Sequence[str] = ()) -> dict[str, Any]:
    """What passes between tasks: names, digests and warnings, never data."""
    return {
        "step": step.id,
        "fingerprint": step.fingerprint,
        "folder": str(artifact.folder),
        "digest": artifact.digest,
        "warnings": list(warnings),
    }
