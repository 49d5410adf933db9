"""A step on a machine of a Ray cluster: what the flow's process hands over, and what that machine does with it.

A Ray worker has no session. It gets a plain description of the step, looks it up, runs it in a child process as the
flow's process would, and tells Prefect. What only the flow's process has, MLflow and the run's summary, it tells itself
once the step has ended, from what was published. GPUs are Ray's to count here, so nothing is leased.

A worker that is killed takes its step's process along; Ray starts the task again on another one, as often as
`execution.retries` says, and the step goes on from what it saved if it is run where that lies. Whether the run is being
stopped is asked of an actor; where that is gone, so is the run.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import task
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import task_run
from prefect.tasks import Task

from tasks import artifacts
from tasks.logs import Teller, ours
from tasks.recipe import OPTIONS, cached, outcome, pause_before_retry, tell_made
from tasks.session import Session, named_inputs
from tasks.workbench import Workbench
from vibethinker import hardware
from vibethinker.artifacts import Artifact, Store
from vibethinker.config import Config
from vibethinker.errors import InfrastructureError, VibeThinkerError
from vibethinker.plan import Step
from vibethinker.remote import Remote
from vibethinker.worker import ranks
from vibethinker.worker.host import Event

ROLES = ("specialist", "probe", "evaluation")  # of the steps that run on the cluster
ASK_SECONDS, ANSWER_SECONDS = 1.0, 30.0  # between two questions whether to stop, and for an answer

Description = dict[str, Any]


class Flag:
    """An actor that says whether the run is being stopped."""

    def __init__(self) -> None:
        self._up = False

    def raise_it(self) -> None:
        """Stop the run's steps."""
        self._up = True

    def is_up(self) -> bool:
        """Whether they are to stop."""
        return self._up


def flag_name(run_id: str) -> str:
    """The actor of a run."""
    return f"vibethinker-{run_id}"


def describe(session: Session, step: Step) -> Description:
    """All that a machine needs to know to run a step, as plain values."""
    fingerprints, config = session.plan.fingerprints, session.config
    return {
        "run_id": session.run.id,
        "workspace": config.scaling.ray.workspace or str(session.plan.workspace),
        "config": config.model_dump(mode="json", by_alias=True),
        "step": asdict(step),
        "inputs": {step_id: fingerprints[step_id] for step_id in step.depends_on},
        "base": fingerprints.get("base"),
        "revision": session.bench.revision,
    }


def resources(config: Config, step: Step, gpus_there: bool) -> dict[str, float]:
    """What a step takes of a cluster: CPUs, and GPUs where it has any."""
    processes = ranks.count(step.kind, {"processes": config.execution.processes})
    each = processes if processes > 1 else 1 / config.execution.steps_per_gpu
    return {
        "num_cpus": config.scaling.ray.cpus,
        "num_gpus": each if gpus_there and config.execution.device != "cpu" else 0,
    }


def cluster_task(title: str) -> Task[[str, str, Description], Any]:
    """The task that runs a step of one kind on the cluster; each of its runs is named after its step."""

    @task(name=title, **OPTIONS)
    def run_step(run_id: str, step_id: str, description: Description) -> Any:
        return _run(description)

    return run_step


def tell(session: Session, step: Step, state: State[Any]) -> None:
    """Tell the run's summary, its display and MLflow how a step on the cluster has ended."""
    if not state.is_completed():
        error = state.result(raise_on_failure=False)
        if not isinstance(error, VibeThinkerError):
            error = InfrastructureError(f"The Ray worker of {step.id} was lost ({state.message or error}).")
        _failed(session, step, error)
        return
    for text in state.result()["warnings"]:
        session.run.warn(f"{step.id}: {text}")
    artifact = session.published(step)
    if artifact is None:
        where = session.config.storage.url or "the workspace, which the cluster's machines must share with this one"
        raise InfrastructureError(f"The cluster says that {step.id} is done but its output is not in {where}.")
    session.finished(step)
    tell_made(session, step, artifact)
    done = "cached" if state.name == "Cached" else "done"
    session.run.update(step.id, done, artifact)
    session.display.state(step, done, f"{artifact.manifest['seconds']:.0f} s" if done == "done" else "")


def lost(session: Session, step: Step, error: BaseException) -> None:
    """Tell that a step failed before the cluster could say how."""
    text = f"The Ray cluster failed {step.id} ({type(error).__name__}: {error}): see that it runs, and go on."
    _failed(session, step, error if isinstance(error, VibeThinkerError) else InfrastructureError(text))


def _failed(session: Session, step: Step, error: VibeThinkerError) -> None:
    session.failed(step, error)


# ---- on the cluster's machine ----

_log = logging.getLogger(__name__)
_benches: dict[str, Workbench] = {}  # run id → that of this process, whose host has loaded the trainers already


def _run(description: Description) -> Any:
    config = Config.model_validate(description["config"])
    workspace, step = Path(description["workspace"]), Step(**description["step"])
    store, log = Store(workspace), get_run_logger()
    remote = Remote(config.storage.url) if config.storage.url else None
    warned: list[str] = []
    digests = _inputs(store, remote, step, description["inputs"])
    artifact, _ = store.find(step.id, step.fingerprint, digests)
    if artifact is None and remote:
        artifact, reason = remote.fetch(store, step.id, step.fingerprint, digests)
        if reason:
            warned.append(f"What {remote.url} has can't be used: {reason}.")
    if artifact is not None:
        _share(remote, step, artifact, description["inputs"], warned)
        return cached(step, artifact, warned)
    bench = _bench(config, workspace, description)
    progress, teller = artifacts.Progress(step), Teller(_logs(workspace, bench.run_id) / f"{step.id}.log", log)

    def hear(event: Event) -> None:
        if event["event"] == "progress":
            progress.update(event["done"], event["total"], event["text"])
            teller.progress(event["done"], event["total"], event["text"])
        elif event["event"] == "waiting":
            log.info("%s %s", step.id, event["text"])
        elif event["event"] == "warning":
            warned.append(event["text"])
            log.warning(event["text"])
        teller.tell()

    gpu, cores = _granted()
    log.info("%s, fingerprint %s, runs%s", step.id, step.fingerprint[:12], f" on GPU {gpu}" if gpu else "")
    try:
        with ours(log):
            try:
                with _stopped_by_flag(bench, description["run_id"]):
                    reused = bench.execute(step, description["inputs"], gpu, cores, hear)["reused"]
            finally:
                teller.end()
    except VibeThinkerError as error:
        seconds = pause_before_retry(error, task_run.get_run_count(), config, bench.stopping)
        if seconds is not None:
            log.warning("%s It is tried again in %.0f s.", error, seconds)
            bench.stopping.wait(seconds)
        if bench.stopping.is_set():  # its process was told to leave: nothing to retry
            raise VibeThinkerError(str(error)) from error
        raise
    made = store.input(step.id, step.fingerprint)
    _share(remote, step, made, description["inputs"], warned)
    progress.end()
    artifacts.results(step, made)
    artifacts.drain()
    return cached(step, made, warned) if reused else outcome(step, made, warned)


def _inputs(store: Store, remote: Remote | None, step: Step, named: Mapping[str, str]) -> dict[str, str]:
    """Role → digest of what the step reads, taken from the shared store where this machine lacks it."""
    found: dict[str, Artifact] = {}
    for step_id, fingerprint in named.items():
        artifact = store.read(step_id, fingerprint)
        if artifact is None and remote:
            with store.lock(step_id, fingerprint):  # another task of this machine may be taking it
                artifact = store.read(step_id, fingerprint)
            if artifact is None:
                artifact, _ = remote.fetch(store, step_id, fingerprint)
        if artifact is None:
            raise InfrastructureError(
                f"This machine has no output of {step_id}: let the cluster's machines share the workspace "
                f"{store.workspace}, or set storage.url."
            )
        found[step_id] = artifact
    return {role: found[step_id].digest for role, step_id in step.inputs.items()}


def _share(remote: Remote | None, step: Step, artifact: Artifact, inputs: Mapping[str, str], warned: list[str]) -> None:
    """Put the output where the flow's process finds it; a store that doesn't answer fails the task, to be retried."""
    if remote and (reason := remote.share(artifact, named_inputs(step, inputs))):
        warned.append(f"The output is not in {remote.url}: {reason}.")


def _bench(config: Config, workspace: Path, description: Description) -> Workbench:
    run_id = description["run_id"]
    if run_id not in _benches:
        _logs(workspace, run_id).mkdir(parents=True, exist_ok=True)
        revision = description["revision"]
        _benches[run_id] = Workbench(
            config, workspace, run_id, base=description["base"], revision=revision, warn=_log.warning
        )
    return _benches[run_id]


def _logs(workspace: Path, run_id: str) -> Path:
    return workspace / "runs" / run_id / "logs"


def _granted() -> tuple[str | None, int]:
    """CUDA_VISIBLE_DEVICES (None on a machine without GPUs, empty beside them) and the cores that Ray has assigned."""
    import ray

    context = ray.get_runtime_context()
    gpus = ",".join(context.get_accelerator_ids().get("GPU", []))
    cores = max(1, int(context.get_assigned_resources().get("CPU", 1)))
    return gpus if gpus or hardware.gpus() else None, cores


@contextmanager
def _stopped_by_flag(bench: Workbench, run_id: str) -> Iterator[None]:
    """Stop the bench's steps once the run's flag is up, or nobody is there any more to raise it."""
    import ray

    ended = threading.Event()
    flag = ray.get_actor(flag_name(run_id))

    def watch() -> None:
        while not ended.wait(ASK_SECONDS):
            try:
                if not ray.get(flag.is_up.remote(), timeout=ANSWER_SECONDS):
                    continue
            except ray.exceptions.GetTimeoutError:
                continue
            except Exception:  # the flag's process is gone, and with it who would raise the flag
                pass
            bench.stopping.set()
            return

    watcher = threading.Thread(target=watch, name="flag", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
