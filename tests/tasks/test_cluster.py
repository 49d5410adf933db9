"""What the flow's process notes of a step that a Ray cluster ran; tests/flows/test_ray.py has a real cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks import cluster
from tasks.session import Session
from vibethinker import config, runs
from vibethinker.errors import BudgetError, DataError, PreemptedError
from vibethinker.plan import Plan, Step, states
from vibethinker.runs import Run


@pytest.fixture
def session(tmp_path: Path) -> Session:
    step = Step("data", "data", {}, {}, "f" * 64, {})
    plan = Plan(config.load("micro", environ={}), (step,), tmp_path)
    with runs.starting(tmp_path):
        run = Run.begin(plan)
        found = states(plan, run.store)
        run.create(found)
    told: list[str] = []
    display: Any = SimpleNamespace(state=lambda step, state, detail="": told.append(f"{state}: {detail}"), told=told)
    return Session(run, found, display)


@pytest.mark.parametrize(
    ("error", "kind"), [(DataError("no traces"), "data"), (ConnectionError("gone"), "infrastructure")]
)
def test_a_failure_on_the_cluster_is_noted_with_its_class(session: Session, error: Exception, kind: str) -> None:
    cluster.lost(session, session.plan.steps[0], error)
    [step] = runs.read_summary(session.run.folder)["steps"]
    assert (step["state"], step["kind"]) == ("failed", kind)
    assert str(error) in step["error"]
    assert session.failures["data"].kind == kind
    assert session.display.told[0].startswith("failed: ")


def test_a_step_that_the_budget_does_not_suffice_for_waits(session: Session) -> None:
    session.paused = BudgetError("raise it")
    cluster.lost(session, session.plan.steps[0], PreemptedError("The run was stopped."))
    [step] = runs.read_summary(session.run.folder)["steps"]
    assert step["state"] == "waiting" and "error" not in step
    assert session.failures["data"] is session.paused
