"""How a run notes its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import running
from tasks import artifacts
from vibethinker import runs
from vibethinker.artifacts import Store
from vibethinker.config import load
from vibethinker.plan import build, states
from vibethinker.runs import Run


class Tracker:
    """MLflow, which has taken everything, or not yet."""

    url = None

    def __init__(self, delivered: bool) -> None:
        self._delivered = delivered

    def close(self) -> bool:
        return self._delivered

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *values: None


@pytest.mark.parametrize(("delivered", "writes"), [(True, 1), (False, 2)])
def test_the_last_summary_is_written_again_only_for_what_came_after_it(
    delivered: bool, writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = build(load("micro", environ={}), tmp_path)
    run = Run.begin(plan, fresh=True)
    run.create(states(plan, Store(tmp_path)))
    written: list[Any] = []
    write = runs.write_json
    monkeypatch.setattr(runs, "write_json", lambda path, value: (written.append(value), write(path, value)))
    monkeypatch.setattr(artifacts, "summary", lambda *values: None)
    monkeypatch.setattr(artifacts, "drain", lambda: True)
    session: Any = SimpleNamespace(run=run, plan=plan, config=plan.config, tracker=Tracker(delivered))
    summary = running._finish(session, "failed")
    run.close()
    assert len(written) == writes
    assert summary == written[-1] == runs.read_summary(run.folder)
    assert any("MLflow" in text for text in summary["warnings"]) is not delivered
