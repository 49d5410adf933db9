"""Steps on a Ray cluster: specialists, probes and evaluations as Prefect tasks of a RayTaskRunner.

A flow has one task runner, and everything else stays in its process's threads; so a second runner is entered beside it,
and a thread a step waits for what the step needs before it is given to one of the two. What is published already never
goes to the cluster.

Without an address, a cluster of this machine lives as long as the run. Ray would have it listen on every interface; it
listens on loopback, and asks for a token besides.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Crashed

from tasks import cluster
from tasks.recipe import StepTask
from tasks.session import Session
from vibethinker import hardware
from vibethinker.errors import ConfigurationError
from vibethinker.plan import Step

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 80 << 20  # near the least that Ray takes: only names and digests pass through it
SETTLED, SETTLE_SECONDS = 100, 10.0  # the newest steps, and how long their last states may be on their way to Prefect


class Started:
    """A step that goes to one of the runners once what it needs has ended."""

    def __init__(self, ended: Future[State[Any]]) -> None:
        self._ended = ended

    def wait(self, timeout: float | None = None) -> None:
        """Return once it has ended, or after so many seconds."""
        wait_for([self._ended], timeout)

    @property
    def state(self) -> State[Any]:
        """How it has ended."""
        return self._ended.result()


class Cluster:
    """The cluster of one run."""

    def __init__(self, session: Session, runner: Any, flag: Any, gpus: bool) -> None:
        self._session, self._runner, self._flag, self._gpus = session, runner, flag, gpus
        self._sent: list[UUID] = []
        session.stop_others = self.stop
        self._threads = ThreadPoolExecutor(max(1, len(session.plan.steps)), thread_name_prefix="step")

    def start(self, step_task: StepTask, step: Step, needs: Sequence[Started]) -> Started:
        """Give a step to the cluster, or to a thread of this process, after what it needs."""
        return Started(self._threads.submit(copy_context().run, self._carry, step_task, step, needs))

    def stop(self) -> None:
        """Ask the cluster's steps to save what they have."""
        self._flag.raise_it.remote()

    def close(self) -> None:
        """Start nothing more, and wait for the last states that workers send Prefect: they end with the cluster."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        last, limit = self._sent[-SETTLED:], time.monotonic() + SETTLE_SECONDS
        wanted = TaskRunFilter(id=TaskRunFilterId(any_=last))
        with suppress(PrefectHTTPStatusError, httpx.HTTPError), get_client(sync_client=True) as client:
            while last and time.monotonic() < limit:
                known = client.read_task_runs(task_run_filter=wanted, limit=SETTLED)
                if sum(bool(one.state and one.state.is_final()) for one in known) == len(last):
                    return
                time.sleep(0.1)

    def _carry(self, step_task: StepTask, step: Step, needs: Sequence[Started]) -> State[Any]:
        session, states = self._session, [need.state for need in needs]
        retries = session.config.execution.retries
        try:
            goes = step_task.kind in cluster.ROLES and all(state.is_completed() for state in states)
            if not goes or session.stopping.is_set() or session.published(step):
                future = step_task.of(step, retries).submit(session.run.id, step.id, wait_for=states)
                future.wait()
                return future.state
            return self._on_cluster(step_task, step, states, retries)
        except Exception as error:  # Ray's, or Prefect's: this thread has nobody else to tell it
            cluster.lost(session, step, error)
            return Crashed(message=str(error))

    def _on_cluster(self, step_task: StepTask, step: Step, states: Sequence[State[Any]], retries: int) -> State[Any]:
        from prefect_ray.context import remote_options

        session = self._session
        task = cluster.cluster_task(step_task.task.name).with_options(retries=retries)
        values = {"run_id": session.run.id, "step_id": step.id, "description": cluster.describe(session, step)}
        # Which of the cluster's GPUs it gets is not known here: it counts as one, if there are any.
        with session.paid(step, None if not self._gpus else "ray"):
            session.run.update(step.id, "running")
            session.display.state(step, "running", "Ray")
            with remote_options(**cluster.resources(session.config, step, self._gpus), max_retries=retries):
                future = self._runner.submit(task, values, wait_for=states)
            self._sent.append(future.task_run_id)
            future.wait()
        state = future.state
        if state.is_crashed():  # by the loss of its worker, which could tell nobody
            with suppress(PrefectHTTPStatusError), get_client(sync_client=True) as client:
                client.set_task_run_state(future.task_run_id, state, force=True)
        cluster.tell(session, step, state)
        return state


@contextmanager
def cluster_of(session: Session) -> Iterator[Cluster | None]:
    """The Ray cluster that the configuration asks for, if it does.

    Raises:
        ConfigurationError: Ray isn't installed, or no cluster can be reached.
    """
    if session.config.scaling.runner != "ray":
        yield None
        return
    address = session.config.scaling.ray.address
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address is None:  # read when Ray is imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
        from prefect_ray import RayTaskRunner
    except ImportError:
        raise ConfigurationError("scaling.runner is ray, which isn't installed: install vibethinker[ray].") from None
    # RayTaskRunner's own address takes `auto` for a new cluster, and RAY_ADDRESS would win over None.
    options: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        _stay_on_loopback()
        options |= {
            "num_cpus": hardware.slots(session.config) * session.config.scaling.ray.cpus,
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": LOOPBACK,
        }
    try:
        runner = RayTaskRunner(init_kwargs=options).__enter__()
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"No Ray cluster answers at {address or 'this machine'} ({reason}): start one by `ray start --head`, or "
            "change scaling.ray.address."
        ) from None
    try:
        flag = ray.remote(num_cpus=0)(cluster.Flag).options(name=cluster.flag_name(session.run.id)).remote()
        made = Cluster(session, runner, flag, ray.cluster_resources().get("GPU", 0) > 0)
        try:
            yield made
        finally:
            made.close()
    finally:
        runner.__exit__(None, None, None)


def _stay_on_loopback() -> None:
    """Ray turns a loopback address into one that other machines reach, and has no setting against that."""
    from ray._private import services

    services.resolve_ip_for_localhost = lambda host: host
