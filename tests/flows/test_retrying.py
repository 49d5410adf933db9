"""Which failures of a step are tried again, after which waits, and when not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from flows.display import Lines
from tasks import session
from tasks.recipe import step_task
from tests.flows.conftest import ROOT, Api
from tests.worker import failing_steps
from vibethinker import config
from vibethinker.plan import Plan, Step

pytestmark = pytest.mark.service


def outcome(
    workspace: Path, error: str, stop_after: float | None = None, retry_seconds: float = 0.1
) -> tuple[list[str], dict[str, Any]]:
    """The states of the task run of a step that always fails, and its entry in the summary."""
    overrides = [f"worker.env={{PYTHONPATH: '{ROOT}'}}", "execution.retries=2"]
    settings = config.load("micro", overrides=[*overrides, f"execution.retry_seconds={retry_seconds}"], environ={})
    kind = f"tests.worker.failing_steps:{failing_steps.fail.__name__}"
    plan = Plan(settings, (Step("step", kind, {"error": error}, {}, "f" * 64, {}),), workspace)
    failing, states = step_task("Fail", kind).task, []

    @flow(name="failing", task_runner=ThreadPoolTaskRunner(max_workers=1))
    def failing_flow(run_id: str) -> None:
        future = failing.with_options(
            retries=2, on_running=[lambda task, run, state: states.append(state.name)]
        ).submit(run_id, "step")
        future.wait()
        states.append(future.state.name)

    with session.opened(plan, Lines(plan)) as current:
        if stop_after is not None:
            threading.Timer(stop_after, current.stopping.set).start()
        failing_flow(current.run.id)
        [entry] = current.run.save()["steps"]
    return states, entry


@pytest.fixture(autouse=True)
def served(api: Api, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("VIBETHINKER_PRELOAD", "json")
    with temporary_settings({PREFECT_API_URL: api.url}):
        yield


def test_an_infrastructure_failure_is_tried_again_after_waits(tmp_path: Path) -> None:
    states, entry = outcome(tmp_path, "infrastructure")
    assert states == ["Running", "Retrying", "Retrying", "Failed"]
    assert entry["state"] == "failed"


@pytest.mark.parametrize("error", ["configuration", "data", "diverged"])
def test_what_would_only_fail_again_is_not_tried_again(tmp_path: Path, error: str) -> None:
    states, entry = outcome(tmp_path, error)
    assert states == ["Running", "Failed"]
    assert entry["error"]


def test_a_run_that_is_asked_to_stop_does_not_wait_for_a_retry(tmp_path: Path) -> None:
    began = time.monotonic()
    states, entry = outcome(tmp_path, "infrastructure", stop_after=8.0, retry_seconds=600)
    assert states == ["Running", "Failed"]
    assert entry["kind"] == "preempted", "it was stopped, and hasn't failed"
    assert time.monotonic() - began < 300  # the least that the wait could be
