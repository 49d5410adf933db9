"""The session's policies around the worker: what doesn't count as a retry, and a worker that died."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.display import Lines
from tasks import session
from tasks.session import PREEMPTIONS, Session
from tests.worker import failing_steps
from vibethinker import config
from vibethinker.errors import InfrastructureError, PreemptedError
from vibethinker.plan import Plan, Step

ROOT = Path(__file__).parents[2]


def step(function: Any, **settings: Any) -> Step:
    return Step("step", f"tests.worker.failing_steps:{function.__name__}", settings, {}, "f" * 64, {})


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setenv("VIBETHINKER_PRELOAD", "json")
    settings = config.load("micro", overrides=[f"worker.env={{PYTHONPATH: '{ROOT}'}}"], environ={})
    plan = Plan(settings, (step(failing_steps.succeed, value="abc"),), tmp_path)
    with session.opened(plan, Lines(plan)) as current:
        yield current


def test_a_preempted_step_runs_again_but_not_for_ever(opened: Session) -> None:
    events: list[dict[str, Any]] = []
    with pytest.raises(PreemptedError, match="this is why"):
        opened.execute(step(failing_steps.fail, error="preempted"), events.append)
    assert len([e for e in events if "running it again" in e.get("text", "")]) == PREEMPTIONS


def test_a_retry_finds_a_new_worker_where_the_last_one_died(opened: Session) -> None:
    server = psutil.Process(opened._host._process.pid)
    with pytest.raises(InfrastructureError, match="server ended"):
        opened.execute(step(failing_steps.wait), lambda event: event["event"] == "metrics" and server.kill())
    assert opened.execute(step(failing_steps.succeed, value="abc"), lambda event: None)["metrics"] == {"length": 3}


def test_too_little_memory_halves_all_that_memory_grows_with(opened: Session) -> None:
    stage = Step("signal-1", "signal", {}, {}, "f" * 64, {})
    before = opened._execution(stage, 1)
    assert opened._halve(stage)
    after = opened._execution(stage, 1)
    assert after["signal_micro_batch"] == max(1, before["signal_micro_batch"] // 2)
    assert after["generation_batch"] == before["generation_batch"] // 2
    while opened._halve(stage):
        pass
    after = opened._execution(stage, 1)
    assert (after["signal_micro_batch"], after["generation_batch"]) == (1, 1)
