"""What every flow does around its tasks: open the run, start the plan's steps, wait, tell how it ended."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import Pause, PrefectHTTPStatusError
from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Failed

from flows import approvals, hooks
from flows.display import Lines
from flows.rays import Cluster, Started, cluster_of
from flows.registration import POOL
from flows.server import check_approvals
from tasks import artifacts, logs, session, tracked
from tasks.recipe import StepTask, evaluate_model
from tasks.session import Session
from vibethinker import config as configuration
from vibethinker import preflight
from vibethinker.artifacts import check_workspace
from vibethinker.errors import BudgetError, PreemptedError, RejectedError
from vibethinker.exporting.card import write_run_card
from vibethinker.plan import Step, build, role_of
from vibethinker.reporting import html, text
from vibethinker.tracking import RunTracker

STOPS = (BudgetError, PreemptedError)  # ends of steps that did nothing wrong


class Running:
    """A run whose steps are being started; `outcome` is there once it has ended: its summary, or the state that says
    why somebody ended it."""

    def __init__(self, session: Session, cluster: Cluster | None = None) -> None:
        self.session, self.cluster = session, cluster
        self.outcome: Any = None
        self._futures: dict[str, PrefectFuture[Any] | Started] = {}

    def start(self, step_task: StepTask) -> None:
        """Submit the plan's steps of this task's kind, each waiting for the steps it reads; those that read what isn't
        submitted yet are left for another call."""
        retries = self.session.config.execution.retries
        for step in self.session.plan.steps:
            if role_of(step) == step_task.kind and self._can_start(step):
                needs = [self._futures[i] for i in step.depends_on]
                if self.cluster:
                    self._futures[step.id] = self.cluster.start(step_task, step, needs)
                    continue
                self._futures[step.id] = step_task.of(step, retries).submit(
                    self.session.run.id, step.id, wait_for=needs
                )

    def _can_start(self, step: Step) -> bool:
        return step.id not in self._futures and self._futures.keys() >= set(step.depends_on)

    def approval(self, gate: approvals.Gate) -> None:
        """Where the configuration wants it, wait until somebody has looked at what was made and lets the run go on.

        Everything that was started ends first, and what was made is measured. Nobody is asked about a run in which a
        step has failed, nor about a phase that is published already.

        Raises:
            RejectedError: nobody let it.
        """
        if not getattr(self.session.config.approvals, gate):
            return
        plan, found = self.session.plan, self.session.found
        if gate == "signal":
            if all(found[step.id].state == "cached" for step in plan.steps if role_of(step) == "signal"):
                return
            self.start(evaluate_model)
        elif not plan.ids("report"):
            return
        if self.wait() is None:
            _write_page(self.session, self.session.run.save())
            approvals.ask(gate, self.session)

    def leave(self) -> None:
        """Ask the steps to save what they have, and listen to them until they have."""
        self.session.stopping.set()
        if self.cluster:
            self.cluster.stop()
        limit = time.monotonic() + self.session.bench.leave_seconds
        for future in self._futures.values():
            with suppress(Pause):  # raised after each wait, once the flow run is suspended
                future.wait(max(0.0, limit - time.monotonic()))

    def wait(self) -> BaseException | None:
        """Wait for all started steps; returns the first failure in the plan's order; that a budget is spent or the run
        stopped only where no step has failed of its own."""
        failure: BaseException | None = None
        for step_id, future in self._futures.items():
            future.wait()
            if (failure is None or isinstance(failure, STOPS)) and not future.state.is_completed():
                found = self.session.failures.get(step_id)
                if found is None and not future.state.is_pending():
                    found = future.state.result(raise_on_failure=False)
                failure = failure if found is None or (isinstance(found, STOPS) and failure) else found
        return failure


@contextmanager
def running(
    until: str,
    profile: str,
    config: dict[str, Any] | None,
    workspace: str | None,
    refresh: list[str] | None = None,
    replaced: dict[str, str] | None = None,
) -> Iterator[Running]:
    """The surrounding session's run or a new one, up to steps of kind `until`.

    A run whose budget is spent ends in a state that says how it goes on.

    Raises:
        VibeThinkerError: the first failure of a step, once every other step has ended.
        KeyboardInterrupt: Ctrl-C, or the run was stopped with the experiment that it is part of.
    """
    logs.tell_sentences()
    with logs.ours(get_run_logger()), ExitStack() as stack:
        stack.push(approvals.left)
        current = session.current()
        if current is None:
            folder = configuration.workspace(workspace)
            plan = build(configuration.load(profile, partial=config), folder, replaced).until(until)
            check_approvals(plan.config, PREFECT_API_URL.value())
            for step_id in refresh or ():
                plan[step_id]
            preflight.check(plan)
            check_workspace(folder)
            tier = preflight.try_sandbox(plan.config) if plan.config.runs_code() else None
            hooks.wait_for_earlier(folder)
            current = stack.enter_context(session.opened(plan, Lines(plan), frozenset(refresh or ()), tier))
        if current.gpus:
            current.gpus.check()
        current.track({"prefect.flow_run_id": str(flow_run.get_id() or "")})
        _label(current)
        hooks.remember(current.run.folder, current.tracker and current.tracker.url)
        run = Running(current, stack.enter_context(cluster_of(current)))
        try:
            yield run
            failure = run.wait()
            if current.paused and isinstance(failure, BudgetError):
                raise failure
            if current.stopping.is_set() and isinstance(failure, PreemptedError):
                raise KeyboardInterrupt  # as if it had been pressed here: the run's experiment was stopped
        except BudgetError as error:
            _suspend(current, "paused", str(error))
            run.outcome = Failed(name="OverBudget", message=str(error), data=error)
            return
        except RejectedError as error:  # no failure of the program's, so no traceback in the log
            _finish(current, "failed")
            run.outcome = Failed(name="Rejected", message=str(error), data=error)
            return
        except (approvals.Waits, Pause):
            run.leave()
            _suspend(current, "suspended")
            raise
        except BaseException:
            with _asked_once():
                run.leave()
                _finish(current, "interrupted")
            raise
        run.outcome = _finish(current, "failed" if failure else "completed")
        if failure is not None:
            raise failure


@contextmanager
def _asked_once() -> Iterator[None]:
    """Heed no other SIGTERM: what ends a service sends it to all processes, and its worker hands it on to flows."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _label(current: Session) -> None:
    """Give the flow run the run's id as its name, and the tags by which it is found."""
    config, base = current.config, current.config.base_model.source
    tags = {*flow_run.get_tags(), POOL, f"profile:{config.profile}", f"model:{Path(base).name}"}
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run.get_id()), name=current.run.id, tags=sorted(tags))
    except (PrefectHTTPStatusError, httpx.HTTPError) as error:
        get_run_logger().warning("The run goes on without its name and tags: %s", error)


def _finish(current: Session, status: str) -> dict[str, Any]:
    """Summary, report, MLflow and the run's markdown artifact."""
    run, tracker = current.run, current.tracker
    summary = run.end(status)
    page = _write_page(current, summary)
    card = write_run_card(run) if status == "completed" and current.plan.ids("report") else None
    if tracker:
        metrics = next((s["metrics"] for s in summary["steps"] if s["id"] == "report"), {})
        tracked.finished(current, tracker, status, [page, card] if card else [page], metrics)
    summary = run.save()  # only now, so that a run that was killed before it had noted all for MLflow goes on
    if status != "interrupted":
        places = [
            ("MLflow", tracker and tracker.page()),
            ("Report", (tracker and tracker.page(page.name)) or str(page)),
        ]
        said = text.markdown(summary, [(name, at) for name, at in places if at])
        artifacts.summary(current.config.profile, said)
        if not artifacts.drain():
            get_run_logger().warning("Prefect's server doesn't answer: some artifacts of this run never reached it.")
    if tracker:
        _close(current, tracker)
        if run.end(status)["warnings"] != summary["warnings"]:  # MLflow refuses things as late as while it is closed
            return run.save()
    return summary


def _suspend(current: Session, status: str, reason: str = "") -> None:
    """What there is to look at while the run waits for another process: no end, so no step of it is skipped."""
    run, tracker = current.run, current.tracker
    run.status, run.reason = status, reason
    _write_page(current, run.save())
    artifacts.drain()
    if tracker:
        tracker.finish("SCHEDULED")  # MLflow's word for what goes on later
        _close(current, tracker)
        run.save()


def _close(current: Session, tracker: RunTracker) -> None:
    """Deliver what MLflow hasn't got; what it refuses, and that it hasn't got all of it, are further warnings."""
    if not tracker.close():
        current.run.warn(
            "Some of this run's measurements haven't reached MLflow yet: the same command sends them later."
        )
    hooks.remember(current.run.folder, tracker.url)  # by now it knows the run's own page


def _write_page(current: Session, summary: dict[str, Any]) -> Path:
    """The run's report.html."""
    page = current.run.folder / "report.html"
    values = current.config.model_dump(mode="json", by_alias=True)
    page.write_text(html.render(current.run.report(), summary, values), encoding="utf-8")
    return page
