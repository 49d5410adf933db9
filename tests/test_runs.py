"""Which run a start goes on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from vibethinker import config, runs
from vibethinker.plan import Plan, Step, states
from vibethinker.runs import Run


def plan(workspace: Path, fingerprint: str = "f") -> Plan:
    steps = (Step("data", "data", {}, {}, fingerprint * 64, {}),)
    return Plan(config.load("micro", environ={}), steps, workspace)


def begun(workspace: Path, *, fingerprint: str = "f", fresh: bool = False) -> Run:
    of = plan(workspace, fingerprint)
    with runs.starting(workspace):
        run = Run.begin(of, fresh=fresh)
        run.create(states(of, run.store), ["a warning"])
    return run


def ended(workspace: Path, status: str | None = None) -> Run:
    """A run whose process is gone."""
    run = begun(workspace)
    if status:
        run.finish(status)
    run.close()
    return run


@pytest.mark.parametrize("status", [None, "failed", "interrupted"])
def test_a_run_that_did_not_complete_goes_on(tmp_path: Path, status: str | None) -> None:
    first = ended(tmp_path, status)
    again = begun(tmp_path)
    assert again.id == first.id
    assert again.goes_on
    assert again.finish("completed")["warnings"] == ["a warning"]
    assert [folder.name for folder in runs.folders(tmp_path)] == [first.id]


def test_a_completed_a_living_and_a_different_run_are_left_alone(tmp_path: Path) -> None:
    completed = ended(tmp_path, "completed")
    living = begun(tmp_path)
    assert living.id != completed.id
    beside = begun(tmp_path)
    assert not beside.goes_on
    beside.close()
    assert begun(tmp_path, fingerprint="e").id not in (completed.id, living.id, beside.id)
    assert not begun(tmp_path, fresh=True).goes_on


def test_what_goes_on_is_the_latest_run(tmp_path: Path) -> None:
    first = ended(tmp_path, "failed")
    other = begun(tmp_path, fingerprint="e")
    assert runs.latest(tmp_path).name == other.id
    begun(tmp_path)
    assert runs.latest(tmp_path).name == first.id


def test_a_folder_whose_making_was_cut_short_is_no_run(tmp_path: Path) -> None:
    first = ended(tmp_path, "failed")
    (tmp_path / "runs" / "cut" / "logs").mkdir(parents=True)
    assert begun(tmp_path).id == first.id
