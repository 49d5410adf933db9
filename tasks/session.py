"""What the tasks of one run share in this process: plan, run folder, worker host, slots, tracker, display.

A task gets only the run's id and its step's id through Prefect; everything else it finds here. A flow that Prefect
starts on a worker opens a session itself; the command line opens one first, so that the worker's imports overlap with
the start of the Prefect server, and the flow then uses that one.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from vibethinker import collecting, hardware
from vibethinker.artifacts import Artifact, Store
from vibethinker.errors import PreemptedError, VibeThinkerError
from vibethinker.execution import execution_settings
from vibethinker.memory import Memory, run_within
from vibethinker.needs import ALONE, memory_need, place_of, shared_by, warnings
from vibethinker.plan import Plan, Step, StepState, reuse_warnings, role_of, states
from vibethinker.runs import Run, starting, unfinished
from vibethinker.tracking import RunTracker
from vibethinker.worker import ranks
from vibethinker.worker.host import Event, Host

from . import secrets
from .leases import Gpus, limit_name
from .slots import Slots

# Niceness of what orchestrates, once the worker runs: where training keeps all cores busy, even a twentieth of one that
# others take in bursts stops every one of its threads, since each kernel waits for the slowest.
GIVE_WAY = 10
DUE_SECONDS = 10.0
LEAVE_SECONDS = 5.0  # beyond execution.stop_seconds, after which the worker's server kills a step
PREEMPTIONS = 10  # of one step; more than that is a step that ends itself


class Display(Protocol):
    """Where a person watches: a terminal or plain lines."""

    def event(self, step: Step, event: Event) -> None:
        """Progress or a warning of a running step."""

    def state(self, step: Step, state: str, detail: str = "") -> None:
        """A step is running, done, cached or failed."""


class Session:
    """One run in this process; see the module."""

    def __init__(self, run: Run, found: Mapping[str, StepState], display: Display, tier: str | None = None) -> None:
        self.run, self.plan, self.display, self.tier = run, run.plan, display, tier
        self.found = found
        self.config = run.plan.config
        self.slots = Slots(hardware.slots(self.config))  # of steps that compute on the CPU
        self.gpus = None
        if hardware.device(self.config) == "cuda":
            each = self.config.execution.steps_per_gpu
            most = self.config.execution.slots or hardware.gpus() * each
            self.gpus = Gpus(hardware.devices(), each, most)
        self.stopping = threading.Event()
        self.failures: dict[str, VibeThinkerError] = {}
        self.tracker: RunTracker | None = None
        self.memory = Memory(self.plan.workspace, run.warn)
        self._finished: set[str] = set()
        self._asked: set[str] = set()
        self._finished_at = 0.0
        self._revision = revision()
        self._starting = threading.Lock()
        self._host: Host | None = None

    @property
    def leave_seconds(self) -> float:
        """How long steps that are asked to stop are waited for."""
        return self.config.execution.stop_seconds + LEAVE_SECONDS

    def begin(self) -> None:
        """Remove what dead processes have left, start the worker host, and lower this process's priority for good."""
        collecting.sweep(self.plan.workspace)
        self._worker()
        os.nice(max(0, GIVE_WAY - os.nice(0)))

    def track(self, tags: Mapping[str, str]) -> None:
        """Open the MLflow run; tags carry Prefect's ids."""
        tracking = self.config.tracking
        self.tracker = RunTracker.open(
            tracking.uri,
            self.plan.workspace,
            tracking.experiment,
            self.run.id,
            self.run.id,
            self.config.model_dump(mode="json", by_alias=True),
            {"vibethinker.profile": self.config.profile, "vibethinker.sandbox": self.tier or "unused", **tags},
            self.run.folder,
            self.run.warn,
        )

    def published(self, step: Step) -> Artifact | None:
        """The step's valid output made from the inputs published now; the child moves an invalid one to the attic."""
        inputs = {}
        for role, step_id in step.inputs.items():
            artifact = self.run.store.read(step_id, self.plan[step_id].fingerprint)
            if artifact is None:
                return None
            inputs[role] = artifact.digest
        readers = (other for other in self.plan.steps if step.id in other.inputs.values())
        # A large output is validated by size alone, except where a step is about to read it.
        level = "digest" if any(self.found[reader.id].state != "cached" for reader in readers) else None
        artifact, reason = self.run.store.find(step.id, step.fingerprint, inputs, level)
        if reason:
            self.run.warn(f"The published output of {step.id} can't be reused and is made anew: {reason}.")
        return artifact

    def execute(self, step: Step, hear: Callable[[Event], None]) -> dict[str, Any]:
        """Run a step in a child process, with the policies that don't count as retries.

        Waits for its GPU or slot first; once it has one, the first event is `started`. A step that runs out of memory
        is run again with less at once (see `vibethinker.memory`), a preempted one as it is, up to PREEMPTIONS times.

        Raises:
            VibeThinkerError: of the child's class.
        """
        self._asked.add(step.id)
        with self._granted(step, hear) as (gpu, cores):
            self._check_going()
            names = ", ".join(map(limit_name, gpu.split(","))) if gpu else ""
            hear({"event": "started", "gpu": names})
            place = place_of(gpu or None, shared_by(self.config, step))
            need = memory_need(self.config, step.settings, self._architecture(), place)

            def attempt(execution: dict[str, Any]) -> dict[str, Any]:
                return self._unless_preempted(self._request(step, execution, gpu), hear)

            result = run_within(
                attempt,
                need,
                self._execution(step, gpu, cores),
                self.memory,
                lambda text: hear({"event": "warning", "text": text}),
            )
            self.finished(step)
            return result

    @contextmanager
    def _granted(self, step: Step, hear: Callable[[Event], None]) -> Iterator[tuple[str | None, int]]:
        """Hold what a step computes on: CUDA_VISIBLE_DEVICES (none on a CPU, empty for a step beside the GPUs) and the
        number of cores."""
        expected = self._training_is_due if role_of(step) == "evaluation" else None
        if self.gpus is None or not computes(step):
            width = self.slots.total if role_of(step) in ALONE else 1
            with self.slots.take(width, expected) as held:
                yield None if self.gpus is None else "", max(1, hardware.cores() * held // self.slots.total)
            return
        processes = ranks.count(step.kind, {"processes": self.config.execution.processes})
        whole = processes if processes > 1 or role_of(step) in ALONE else 0
        waits = lambda text: hear({"event": "waiting", "text": text})  # noqa: E731
        with self.gpus.take(whole, expected, check=self._check_going, waits=waits) as devices:
            parts = len(self.gpus.devices) * self.config.execution.steps_per_gpu
            mine = whole * self.config.execution.steps_per_gpu or 1
            yield ",".join(devices), max(1, hardware.cores() * mine // parts)

    def _check_going(self) -> None:
        if self.stopping.is_set():
            raise PreemptedError("The run was stopped.")

    def _unless_preempted(self, request: dict[str, Any], hear: Callable[[Event], None]) -> dict[str, Any]:
        for _ in range(PREEMPTIONS):
            try:
                return self._in_time(request, hear)
            except PreemptedError:
                if self.stopping.is_set():
                    raise
                hear({"event": "warning", "text": "The step was preempted; running it again."})
        return self._in_time(request, hear)

    def _in_time(self, request: dict[str, Any], hear: Callable[[Event], None]) -> dict[str, Any]:
        """Run a child; one that takes too long is asked to save and leave, as if the run were being stopped."""
        seconds, began = self.config.execution.timeout_seconds or math.inf, time.monotonic()

        def late() -> bool:
            return time.monotonic() - began > seconds

        try:
            return self._worker().run(request, hear, lambda: self.stopping.is_set() or late())
        except PreemptedError:
            if self.stopping.is_set() or not late():
                raise
            raise VibeThinkerError(
                f"The step {request['step']} was stopped after {seconds:g} s (execution.timeout_seconds): raise that, "
                "and run the same command again to go on from what it saved."
            ) from None

    def finished(self, step: Step) -> None:
        """Note that a step's output is published, so that those that read it are due."""
        self._finished.add(step.id)
        self._finished_at = time.monotonic()

    def _training_is_due(self) -> bool:
        """Whether a step that evaluations wait for can start, and hasn't asked for a slot yet.

        Its task needs a moment after the last one that it waited for; one that doesn't come in DUE_SECONDS has failed
        before it could ask.
        """
        return time.monotonic() - self._finished_at < DUE_SECONDS and any(
            step.id not in self._asked | self._finished and self._finished.issuperset(step.depends_on)
            for step in self.plan.steps
            if role_of(step) not in ("evaluation", "report")
        )

    def close(self) -> None:
        """End the worker host and every child; those that run get `leave_seconds` to save what they have. Interrupted
        once more meanwhile, it ends them at once."""
        self.stopping.set()
        with self._starting:
            if self._host is not None:
                try:
                    self._host.leave(self.leave_seconds)
                finally:
                    self._host.close()

    def _worker(self) -> Host:
        """The worker's host; a new one where the last one's server has died, so that a retry can succeed."""
        worker = self.config.worker
        with self._starting:
            if self._host is None or not self._host.alive:
                if self.stopping.is_set():
                    raise PreemptedError("The run was stopped.")
                self._host = Host(
                    self.run.folder / "logs" / "worker.log",
                    python=worker.python,
                    env=worker.env,
                    fork=hardware.can_fork(self.config),
                )
            return self._host

    def _architecture(self) -> dict[str, Any] | None:
        """Words of the config.json of the recipe's model: the configuration's, else the published base's."""
        if (words := self.config.architecture()) or not self.plan.ids("base"):
            return words
        base = self.run.store.folder("base", self.plan["base"].fingerprint) / "config.json"
        return json.loads(base.read_text()) if base.is_file() else None

    def _request(self, step: Step, execution: dict[str, Any], gpu: str | None) -> dict[str, Any]:
        vllm = execution["vllm"]
        vllm = {**vllm, "memory": vllm["memory"] * execution["gpu_share"]}  # of steps that share a GPU, each has a part
        return {
            "workspace": str(self.plan.workspace),
            "run_id": self.run.id,
            "revision": self._revision,
            "step": step.id,
            "kind": step.kind,
            "fingerprint": step.fingerprint,
            "settings": step.settings,
            "inputs": {role: [i, self.plan[i].fingerprint] for role, i in step.inputs.items()},
            "execution": execution | {"vllm": vllm, "secrets": secrets.of_step(step, self.config)},
            "gpu": gpu,
            "log": str(self.run.log(step.id)),
            "stall_seconds": self.config.execution.stall_seconds,
            "stop_seconds": self.config.execution.stop_seconds,
        }

    def _execution(self, step: Step, gpu: str | None, cores: int) -> dict[str, Any]:
        threads = self.config.execution.threads or cores
        execution = execution_settings(self.config, threads, step.outside, self.plan.workspace)
        execution["gpu_share"] = 1 / shared_by(self.config, step)
        return execution if gpu != "" else execution | {"device": "cpu"}


def computes(step: Step) -> bool:
    """Whether a step has work for a GPU; weights are fused, copied and reported on the CPU."""
    if step.kind == "data":
        data = step.settings["data"]
        return data["diversity"]["embedding"] is not None or (
            data["teacher"]["model"] is not None and data["teacher"]["engine"] != "server"
        )
    if step.kind == "base":
        return step.settings["base_model"]["source"] == "embedded"
    return step.kind != "import" and role_of(step) not in ("fusion", "report")


_sessions: dict[str, Session] = {}
_current: ContextVar[Session | None] = ContextVar("session", default=None)


def find(run_id: str) -> Session:
    """The session of a run in this process."""
    return _sessions[run_id]


def current() -> Session | None:
    """The session that the surrounding code has opened."""
    return _current.get()


@contextmanager
def opened(
    plan: Plan, display: Display, refresh: frozenset[str] = frozenset(), tier: str | None = None
) -> Iterator[Session]:
    """A begun session for the `with` block; closing it ends all its processes. `tier` is where programs run.

    What is to be refreshed goes out of the way before there is a run, so that none that is killed can forget it. An
    unfinished run that began so goes on: what it has made since is fresh.
    """
    again = frozenset() if unfinished(plan.workspace, plan.fingerprints, refresh) else refresh
    for step_id in sorted(again):
        _start_over(plan, step_id, display)
    with starting(plan.workspace):
        run = Run.begin(plan, fresh=bool(again), refreshed=refresh)
        found = states(plan, run.store, again)
        session = Session(run, found, display, tier)
        run.create(found, reuse_warnings(found) + warnings(plan, found))
    _sessions[run.id] = session
    token = _current.set(session)
    try:
        session.begin()
        yield session
    finally:
        try:
            if run.status == "running":
                run.finish("interrupted")
        finally:  # a full disk keeps no process alive
            _current.reset(token)
            session.close()
            run.close()
            del _sessions[run.id]


def _start_over(plan: Plan, step_id: str, display: Display) -> None:
    step, told = plan[step_id], False

    def waiting() -> None:
        nonlocal told
        if not told:
            display.event(step, {"event": "warning", "text": "Another run makes it; it's refreshed after that."})
        told = True

    Store(plan.workspace).start_over(step.id, step.fingerprint, waiting)


def revision() -> str | None:
    """The commit of the code that runs, `+` appended if files differ from it; None outside a clone."""
    folder = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
