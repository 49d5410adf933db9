"""When each run of an experiment begins, of several seeds side by side; the runs themselves are stubs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.conducting import Conducting
from tests.experiments.test_design import BASIC
from tests.flows.conftest import Api
from vibethinker.artifacts import Store
from vibethinker.errors import DataError
from vibethinker.experiments.design import Cell, Experiment, make
from vibethinker.experiments.study import Study

pytestmark = pytest.mark.service

DESIGN = {**BASIC, "seeds": [1, 2], "at_once": 3}
SHARED = ("data", "base", "specialist", "probe", "fusion")
POLL_SECONDS = 0.05


class Stubs(Conducting):
    """An experiment's runs that each last until they are let end; `begun` tells their order."""

    def __init__(self, study: Study, failing: str = "") -> None:
        super().__init__(study.experiment, study, None)  # type: ignore[arg-type]
        self.begun: list[str] = []
        self.ends = {cell.title: threading.Event() for cell in study.experiment.cells}
        self._failing = failing

    def _make(self, cell: Cell) -> None:
        self.begun.append(cell.title)
        assert self.ends[cell.title].wait(60)
        if cell.title == self._failing:
            self._stopping.set()
            for role in SHARED:  # the others would wait for nothing more, and a run takes a while to close
                published(self.experiment, role)
            time.sleep(10 * POLL_SECONDS)
            raise DataError("It failed.")

    def begins(self, *titles: str) -> None:
        """Wait until these and no others have begun."""
        limit = time.monotonic() + 60
        while len(self.begun) < len(titles) and time.monotonic() < limit:
            time.sleep(0.05)
        time.sleep(10 * POLL_SECONDS)
        assert sorted(self.begun) == sorted(titles)


@pytest.fixture
def side_by_side(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], tuple[Stubs, threading.Thread]]]:
    """Begin two arms over two seeds, three runs at once; one of them may fail."""
    monkeypatch.setattr("flows.conducting.POLL_SECONDS", POLL_SECONDS)
    study = Study(make(DESIGN, tmp_path), DESIGN)

    def begin(failing: str = "") -> tuple[Stubs, threading.Thread]:
        stubs = Stubs(study, failing)

        @flow
        def conducted() -> None:
            with suppress(DataError):
                stubs.run(stubs.experiment.design.seeds)

        def serve() -> None:
            with temporary_settings({PREFECT_API_URL: api.url}):
                conducted()

        thread = threading.Thread(target=serve)
        thread.start()
        return stubs, thread

    yield begin
    study.close()


def published(experiment: Experiment, role: str) -> None:
    """Publish an empty output of each step of this role."""
    store = Store(experiment.workspace)
    for step, fingerprint in {(step.id, step.fingerprint) for cell in experiment.cells for step in cell.plan.steps}:
        if step == role or step.startswith(f"{role}-"):
            folder = store.staging(step, fingerprint)
            (folder / "made").write_text("")
            store.publish(folder, step, fingerprint, inputs={}, record={"metrics": {}, "seconds": 0.0})


def test_a_run_begins_when_all_it_would_wait_for_is_made_of_whichever_seed(side_by_side) -> None:
    stubs, thread = side_by_side()
    stubs.begins("grpo, seed 1")
    for role in SHARED[:-1]:
        published(stubs.experiment, role)
    stubs.begins("grpo, seed 1")
    published(stubs.experiment, SHARED[-1])
    stubs.begins("grpo, seed 1", "mgpo, seed 1", "grpo, seed 2")
    stubs.ends["mgpo, seed 1"].set()
    stubs.begins("grpo, seed 1", "mgpo, seed 1", "grpo, seed 2", "mgpo, seed 2")
    for end in stubs.ends.values():
        end.set()
    thread.join(60)
    assert not thread.is_alive()


def test_after_a_failure_no_run_begins(side_by_side) -> None:
    stubs, thread = side_by_side("grpo, seed 1")
    stubs.begins("grpo, seed 1")
    stubs.ends["grpo, seed 1"].set()
    thread.join(60)
    assert not thread.is_alive()
    stubs.begins("grpo, seed 1")
