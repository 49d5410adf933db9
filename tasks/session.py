"""What the tasks of one run share in this process: plan, run folder, worker host, slots, tracker, display.

A task gets only the run's id and its step's id through Prefect; everything else it finds here. A flow that Prefect
starts on a worker opens a session itself; the command line opens one first, so that the worker's imports overlap with
the start of the Prefect server, and the flow then uses that one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from vibethinker import collecting, hardware, workload
from vibethinker.artifacts import Artifact, Store
from vibethinker.config import Config
from vibethinker.errors import BudgetError, InfrastructureError, PreemptedError, VibeThinkerError
from vibethinker.needs import alone, place_of, shared_by, warnings
from vibethinker.plan import Plan, Step, StepState, reuse_warnings, role_of, states
from vibethinker.remote import Remote
from vibethinker.runs import Run, starting, unfinished
from vibethinker.tracking import RunTracker
from vibethinker.worker import ranks
from vibethinker.worker.host import Event

from .hosts import Hosts
from .leases import Gpus, limit_name
from .slots import Slots
from .workbench import Workbench, revision

# Niceness of what orchestrates, once the worker runs: where training keeps all cores busy, even a twentieth of one that
# others take in bursts stops every one of its threads, since each kernel waits for the slowest.
GIVE_WAY = 10
DUE_SECONDS = 10.0
WATCH_SECONDS = 1.0  # between two looks at the budget


class Display(Protocol):
    """Where a person watches: a terminal or plain lines."""

    def event(self, step: Step, event: Event) -> None:
        """Progress or a warning of a running step."""

    def state(self, step: Step, state: str, detail: str = "") -> None:
        """A step is running, done, cached or failed."""


class Sharing:
    """What the runs of an experiment share: slots, GPUs and worker hosts, so that their steps take turns as those of
    one run do.

    Args:
        config: of any of the runs.
        log: of the worker hosts.
        warn: told what the user should read of them.
    """

    def __init__(self, config: Config, log: Path, warn: Callable[[str], None]) -> None:
        self.slots, self.gpus, self.hosts = _slots(config), _gpus(config), Hosts(log, warn)


class Session:
    """One run in this process; see the module.

    Args:
        sharing: what it shares with other runs of its experiment, in the name of which it is `tags`.
    """

    def __init__(
        self,
        run: Run,
        found: Mapping[str, StepState],
        display: Display,
        tier: str | None = None,
        remote: Remote | None = None,
        sharing: Sharing | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self.run, self.plan, self.display, self.tier = run, run.plan, display, tier
        self.found = found
        self.config = run.plan.config
        self.tags = dict(tags or {})
        self.slots = sharing.slots if sharing else _slots(self.config)  # of steps that compute on the CPU
        self.gpus = sharing.gpus if sharing else _gpus(self.config)
        base = self.plan["base"].fingerprint if self.plan.ids("base") else None
        self.bench = Workbench(
            self.config, self.plan.workspace, run.id, base=base, revision=revision(), warn=self._warn,
            hosts=sharing.hosts if sharing else None,
        )  # fmt: skip
        self.stopping = self.bench.stopping
        self.remote = remote
        self.failures: dict[str, VibeThinkerError] = {}
        self.tracker: RunTracker | None = None
        self.paused: BudgetError | None = None  # why no further step begins
        self.stop_others: Callable[[], None] = lambda: None  # asks steps of other machines to save and leave
        self._finished: set[str] = set()
        self._asked: set[str] = set()
        self._closed = threading.Event()
        self._finished_at = 0.0

    def begin(self) -> None:
        """Remove what dead processes have left, start the worker host, and lower this process's priority for good."""
        collecting.sweep(self.plan.workspace)
        self.bench.host()
        threading.Thread(target=self._watch_budget, name="budget", daemon=True).start()
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
            # MLflow keeps a parameter's first value, and a budget is there to be raised.
            self.config.model_dump(mode="json", by_alias=True, exclude={"budget"}),
            {
                "vibethinker.profile": self.config.profile,
                "vibethinker.sandbox": self.tier or "unused",
                **self.tags,
                # A step that is reused has no child run here: by its fingerprint the one that made it is found.
                **{f"vibethinker.fingerprint.{step.id}": step.fingerprint for step in self.plan.steps},
                **tags,
            },
            self.run.folder,
            self.run.warn,
            tracking.system_seconds,
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
        if artifact is None and self.remote:
            artifact = self._fetched(self.remote, step, inputs)
        if artifact is None and reason:
            self.run.warn(f"The published output of {step.id} can't be reused and is made anew: {reason}.")
        return artifact

    def _fetched(self, remote: Remote, step: Step, inputs: Mapping[str, str]) -> Artifact | None:
        try:
            artifact, reason = remote.fetch(self.run.store, step.id, step.fingerprint, inputs)
        except InfrastructureError as error:
            self.run.warn(f"{step.id} is made here: {error}")
            return None
        if reason:
            self.run.warn(f"What {remote.url} has of {step.id} can't be used: {reason}.")
        return artifact

    def share(self, step: Step, artifact: Artifact) -> None:
        """Put a published output into the shared store, if there is one; where that fails, the next run does so."""
        if self.remote is None:
            return
        try:
            reason = self.remote.share(artifact, named_inputs(step, self.plan.fingerprints))
        except InfrastructureError as error:
            reason = f"{error} The next run of this workspace puts it there"
        if reason:
            self.run.warn(f"The output of {step.id} is not in {self.remote.url}: {reason}.")

    def execute(self, step: Step, hear: Callable[[Event], None]) -> dict[str, Any]:
        """Run a step in a child process, with the policies that don't count as retries.

        Waits for its GPU or slot first; once it has one, the first event is `started`.

        Raises:
            VibeThinkerError: of the child's class.
        """
        self._asked.add(step.id)
        with self._granted(step, hear) as (gpu, cores):
            self.bench.check_going()
            names = ", ".join(map(limit_name, gpu.split(","))) if gpu else ""
            with self.paid(step, gpu):
                hear({"event": "started", "gpu": names})
                result = self.bench.execute(step, self.plan.fingerprints, gpu, cores, hear)
            self.finished(step)
            return result

    @contextmanager
    def paid(self, step: Step, gpu: str | None) -> Iterator[None]:
        """Count what a step costs during the `with` block.

        Args:
            gpu: CUDA_VISIBLE_DEVICES of the step; None on a CPU, empty for a step beside the GPUs.

        Raises:
            BudgetError: the run's budget doesn't suffice for it.
        """
        spending = self.run.spending
        assert spending is not None, "a run has it from its creation on"
        try:
            if self.paused:
                raise BudgetError(str(self.paused))
            spending.check(self.config.budget, step.id, self.run.estimates)
        except BudgetError as error:
            self.paused = error
            raise
        place = place_of(gpu, shared_by(self.config, step)) if gpu else None
        share = 0.0 if gpu == "" else workload.share(self.config, step, place)
        with spending.running(step.id, share, [hardware.gpu_index(one) for one in (gpu or "").split(",") if one]):
            yield

    def _watch_budget(self) -> None:
        """The thread that counts what is spent, and asks all steps to save and leave once the budget is exceeded."""
        spending = self.run.spending
        while spending is not None and not self._closed.wait(WATCH_SECONDS):
            spending.tick()
            try:
                spending.check(self.config.budget, leave_seconds=self.config.execution.stop_seconds)
            except BudgetError as error:
                if not self.stopping.is_set():
                    self.paused = error
                    self.stopping.set()
                    self.stop_others()

    def failed(self, step: Step, error: VibeThinkerError) -> None:
        """Note what ended a step; one that a spent budget has stopped waits."""
        stopped = self.paused and isinstance(error, (BudgetError, PreemptedError))
        self.failures[step.id] = self.paused if self.paused and stopped else error
        self.run.update(step.id, "waiting" if stopped else "failed", error=None if stopped else error)
        self.display.state(step, "waiting" if stopped else "failed", str(self.failures[step.id]))

    @contextmanager
    def _granted(self, step: Step, hear: Callable[[Event], None]) -> Iterator[tuple[str | None, int]]:
        """Hold what a step computes on: CUDA_VISIBLE_DEVICES (none on a CPU, empty for a step beside the GPUs) and the
        number of cores."""
        expected = self._training_is_due if role_of(step) == "evaluation" else None
        if self.gpus is None or not workload.computes(step):
            width = self.slots.total if alone(self.config, step) else 1
            with self.slots.take(width, expected) as held:
                yield None if self.gpus is None else "", max(1, hardware.cores() * held // self.slots.total)
            return
        spread = self.config.execution.model_dump(include={"processes", "nodes"})
        several = ranks.count(step.kind, spread) > 1
        whole = ranks.here(step.kind, spread) if several or alone(self.config, step) else 0
        waits = lambda text: hear({"event": "waiting", "text": text})  # noqa: E731
        with self.gpus.take(whole, expected, check=self.bench.check_going, waits=waits) as devices:
            parts = len(self.gpus.devices) * self.config.execution.steps_per_gpu
            mine = whole * self.config.execution.steps_per_gpu or 1
            yield ",".join(devices), max(1, hardware.cores() * mine // parts)

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
        """End the worker host and every child; see `Workbench.close`."""
        self._closed.set()
        self.bench.close()

    def _warn(self, text: str) -> None:
        """Keep a warning with the run; of one that has ended it is said as well, in case the disk takes no more."""
        self.run.warn(text)
        if self.run.status != "running":
            print(f"warning: {text}", file=sys.stderr, flush=True)
            with suppress(OSError):
                self.run.save()


def _slots(config: Config) -> Slots:
    return Slots(hardware.slots(config))


def _gpus(config: Config) -> Gpus | None:
    if hardware.device(config) != "cuda":
        return None
    each = config.execution.steps_per_gpu
    most = config.execution.slots or hardware.gpus() * each
    return Gpus(hardware.devices(), each, most, config.scaling.leases)


def named_inputs(step: Step, fingerprints: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Role → the step, with its fingerprint, that fills it."""
    return {role: (step_id, fingerprints[step_id]) for role, step_id in step.inputs.items()}


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
    plan: Plan,
    display: Display,
    refresh: frozenset[str] = frozenset(),
    tier: str | None = None,
    sharing: Sharing | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Session]:
    """A begun session for the `with` block; closing it ends all its processes. `tier` is where programs run; the others
    are `Session`'s.

    What is to be refreshed goes out of the way before there is a run, so that none that is killed can forget it. An
    unfinished run that began so goes on: what it has made since is fresh.
    """
    remote = Remote(plan.config.storage.url) if plan.config.storage.url else None
    if remote:
        remote.check()
    again = frozenset() if unfinished(plan.workspace, plan.fingerprints, refresh) else refresh
    for step_id in sorted(again):
        _start_over(plan, step_id, display)
        if remote:
            remote.retire(step_id, plan[step_id].fingerprint)
    with starting(plan.workspace):
        run = Run.begin(plan, fresh=bool(again), refreshed=refresh)
        found = states(plan, run.store, again)
        session = Session(run, found, display, tier, remote, sharing, tags)
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
    step = plan[step_id]

    @cache  # so that it is said once
    def waiting() -> None:
        display.event(step, {"event": "warning", "text": "Another run makes it; it's refreshed after that."})

    Store(plan.workspace).start_over(step.id, step.fingerprint, waiting)
