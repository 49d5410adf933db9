"""What every flow does around its tasks: open the run, start the plan's steps, wait, tell how it ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from prefect.futures import PrefectFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flows.display import Lines
from flows.rays import Cluster, Started, cluster_of
from tasks import artifacts, session
from tasks.recipe import StepTask
from tasks.session import Session
from tasks.workbench import LEAVE_SECONDS
from vibethinker import config as configuration
from vibethinker import preflight
from vibethinker.artifacts import check_workspace
from vibethinker.plan import build, role_of
from vibethinker.reporting import html, text


class Running:
    """A run whose steps are being started; `summary` is there once it has ended."""

    def __init__(self, session: Session, cluster: Cluster | None = None) -> None:
        self.session, self.cluster = session, cluster
        self.summary: dict[str, Any] = {}
        self._futures: dict[str, PrefectFuture[Any] | Started] = {}

    def start(self, step_task: StepTask) -> None:
        """Submit the plan's steps of this task's kind, each waiting for the steps it reads."""
        retries = self.session.config.execution.retries
        for step in self.session.plan.steps:
            if role_of(step) == step_task.kind:
                needs = [self._futures[i] for i in step.depends_on]
                if self.cluster:
                    self._futures[step.id] = self.cluster.start(step_task, step, needs)
                    continue
                self._futures[step.id] = step_task.task.with_options(retries=retries).submit(
                    self.session.run.id, step.id, wait_for=needs
                )

    def leave(self) -> None:
        """Ask the steps to save what they have, and listen to them until they have."""
        self.session.stopping.set()
        if self.cluster:
            self.cluster.stop()
        limit = time.monotonic() + LEAVE_SECONDS
        for future in self._futures.values():
            future.wait(max(0.0, limit - time.monotonic()))

    def wait(self) -> BaseException | None:
        """Wait for all started steps; returns the first failure in the plan's order."""
        failure: BaseException | None = None
        for step_id, future in self._futures.items():
            future.wait()
            if failure is None and not future.state.is_completed():
                failure = self.session.failures.get(step_id)
                if failure is None and not future.state.is_pending():
                    failure = future.state.result(raise_on_failure=False)
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

    Raises:
        VibeThinkerError: the first failure of a step, once every other step has ended.
    """
    with ExitStack() as stack:
        current = session.current()
        if current is None:
            folder = configuration.workspace(workspace)
            plan = build(configuration.load(profile, partial=config), folder, replaced).until(until)
            for step_id in refresh or ():
                plan[step_id]
            preflight.check(plan)
            check_workspace(folder)
            tier = preflight.try_sandbox(plan.config) if plan.config.runs_code() else None
            current = stack.enter_context(session.opened(plan, Lines(plan), frozenset(refresh or ()), tier))
        if current.gpus:
            current.gpus.check()
        current.track({"prefect.flow_run_id": str(flow_run.get_id() or "")})
        run = Running(current, stack.enter_context(cluster_of(current)))
        try:
            yield run
            failure = run.wait()
        except BaseException:
            run.leave()
            run.summary = _finish(current, "interrupted")
            raise
        run.summary = _finish(current, "failed" if failure else "completed")
        if failure is not None:
            raise failure


def _finish(current: Session, status: str) -> dict[str, Any]:
    """Summary, report, MLflow and the run's markdown artifact."""
    run, plan, tracker = current.run, current.plan, current.tracker
    summary = run.finish(status)
    page = run.folder / "report.html"
    values = current.config.model_dump(mode="json", by_alias=True)
    page.write_text(html.render(run.report(), summary, values), encoding="utf-8")
    if tracker:
        tracker.artifact(page)
        if status == "completed" and plan.ids("report"):
            final = plan[plan.final_model]
            name = current.config.tracking.registered_model or f"vibethinker-{current.config.profile}"
            tracker.log_model(run.store.folder(final.id, final.fingerprint), name)
        if plan.ids("data") and (data := run.store.read("data", plan["data"].fingerprint)):
            tracker.dataset("data", data.digest, str(data.folder), "training")
        metrics = next((s["metrics"] for s in summary["steps"] if s["id"] == "report"), {})
        tracker.finish({"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}[status], metrics)
    if status != "interrupted":
        artifacts.summary(current.config.profile, text.markdown(summary))
        if not artifacts.drain():
            get_run_logger().warning("Prefect's server doesn't answer: some artifacts of this run never reached it.")
    return summary
