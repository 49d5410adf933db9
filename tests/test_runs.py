"""Which run a start goes on with."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vibethinker import config, runs
from vibethinker.errors import DataError
from vibethinker.plan import Plan, Step, states
from vibethinker.runs import Run


def plan(workspace: Path, fingerprint: str = "f") -> Plan:
    steps = (Step("data", "data", {}, {}, fingerprint * 64, {}),)
    return Plan(config.load("micro", environ={}), steps, workspace)


def begun(workspace: Path, *, fingerprint: str = "f", fresh: bool = False, refreshed: tuple[str, ...] = ()) -> Run:
    of = plan(workspace, fingerprint)
    with runs.starting(workspace):
        run = Run.begin(of, fresh=fresh, refreshed=refreshed)
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


def test_a_run_that_began_with_making_steps_again_goes_on_when_it_is_asked_for_the_same(tmp_path: Path) -> None:
    first = begun(tmp_path, fresh=True, refreshed=("data",))
    first.close()
    assert begun_again(tmp_path, ("fusion", "data")) is None
    again = begun(tmp_path, refreshed=("data",))
    assert again.id == first.id
    again.close()
    plainly = begun(tmp_path)
    assert plainly.id == first.id
    plainly.close()
    assert begun_again(tmp_path, ("data",)) == first.folder, "a start without the option doesn't make it forget"


def begun_again(workspace: Path, refreshed: tuple[str, ...]) -> Path | None:
    return runs.unfinished(workspace, plan(workspace).fingerprints, refreshed)


def test_a_run_has_ended_only_once_that_is_written(tmp_path: Path) -> None:
    run = begun(tmp_path)
    assert run.end("completed")["status"] == "completed"
    run.close()
    assert runs.unfinished(tmp_path, run.plan.fingerprints) == run.folder
    run.save()
    assert runs.unfinished(tmp_path, run.plan.fingerprints) is None


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


def test_a_summary_has_no_secret_that_a_warning_or_a_failure_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "a-planted-key")
    run = begun(tmp_path)
    run.warn("refused: a-planted-key")
    run.update("data", "failed", error=DataError("refused: a-planted-key"))
    run.close()
    summary = runs.read_summary(run.folder)
    assert summary["warnings"] == ["a warning", "refused: [hidden]"]
    assert summary["steps"][0]["error"] == "refused: [hidden]"


def test_steps_that_end_while_the_summary_is_written_come_after_it(tmp_path: Path) -> None:
    steps = tuple(Step(name, "data", {}, {}, name[0] * 64, {}) for name in ("first", "second"))
    run = Run.begin(Plan(config.load("micro", environ={}), steps, tmp_path))

    def update(step: str, manifest: dict[str, Any]) -> None:
        run.update(step, "done", SimpleNamespace(manifest={"seconds": 1.0, **manifest}, metrics={}))  # type: ignore[arg-type]

    other = threading.Thread(target=update, args=("second", {"versions": {"torch": "2"}}))

    class Read(dict[str, Any]):
        """A manifest, while which is read another step ends."""

        def get(self, *asked: Any) -> Any:
            if not other.ident:
                other.start()
                other.join(0.5)
            return super().get(*asked)

    first = SimpleNamespace(manifest=Read(seconds=1.0, versions={"torch": "1"}), metrics={})
    run.update("first", "done", first)  # type: ignore[arg-type]
    other.join()
    assert run.save()["made_by"]["versions"] == {"torch": ["1", "2"]}
