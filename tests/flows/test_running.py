"""How a run notes its end, and what it shows whom it asks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import approvals, running
from tasks import artifacts
from vibethinker import runs
from vibethinker.artifacts import Store
from vibethinker.config import load
from vibethinker.errors import VibeThinkerError
from vibethinker.plan import build, states
from vibethinker.runs import Run


class Tracker:
    """MLflow, which has taken everything, or not yet, or refuses something while it is closed."""

    url = None

    def __init__(self, delivered: bool, refuse: Callable[[], None]) -> None:
        self._delivered, self._refuse = delivered, refuse

    def close(self) -> bool:
        self._refuse()
        return self._delivered

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *values: None


REFUSAL = "MLflow refused the model."


@pytest.mark.parametrize(
    ("delivered", "refused", "late"),
    [(True, False, []), (True, True, [REFUSAL]), (False, False, ["Some of this run's measurements haven't reached"])],
)
def test_the_last_summary_is_written_again_only_for_what_came_after_it(
    delivered: bool, refused: bool, late: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = build(load("micro", environ={}), tmp_path)
    run = Run.begin(plan, fresh=True)
    run.create(states(plan, Store(tmp_path)))
    written: list[Any] = []
    write = runs.write_json
    monkeypatch.setattr(runs, "write_json", lambda path, value: (written.append(value), write(path, value)))
    monkeypatch.setattr(artifacts, "summary", lambda *values: None)
    monkeypatch.setattr(artifacts, "drain", lambda: True)
    tracker = Tracker(delivered, lambda: run.warn(REFUSAL) if refused else None)
    session: Any = SimpleNamespace(run=run, plan=plan, config=plan.config, tracker=tracker)
    summary = running._finish(session, "failed")
    run.close()
    assert len(written) == 1 + bool(late)
    assert summary == written[-1] == runs.read_summary(run.folder)
    assert [text.startswith(start) for text, start in zip(summary["warnings"], late, strict=True)] == [True] * len(late)


def test_who_is_asked_without_scores_is_shown_no_table_of_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(approvals, "links", lambda *where: [])
    monkeypatch.setattr(approvals, "_cost", lambda session: "Estimate.")
    session: Any = SimpleNamespace(run=SimpleNamespace(folder=tmp_path), plan=SimpleNamespace(workspace=tmp_path))
    summary = {"models": [], "warnings": ["the disk is small"]}
    assert approvals.details("signal", session, summary, plain=True) == "Estimate.\nwarning: the disk is small"
    summary["models"] = [{"id": "fusion", "scores": {"aime": {"pass": 1}}}]
    assert approvals.details("signal", session, summary, plain=True).splitlines()[:2] == [
        "model   problems", "fusion  aime",
    ]  # fmt: skip


def test_a_fault_in_the_flow_itself_repeats_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("401 of a-planted-key")

    monkeypatch.setenv("TEACHER_API_KEY", "a-planted-key")
    monkeypatch.setattr(running, "get_run_logger", lambda: logging.getLogger("a flow"))
    monkeypatch.setattr(running.configuration, "load", fail)
    with pytest.raises(VibeThinkerError, match="401") as failure, running.running("report", "micro", None, None):
        pass
    assert "a-planted-key" not in str(failure.value)
