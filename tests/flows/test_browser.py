"""The pages that people look at, in a real browser; see `tests.flows.walk`."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("playwright", reason="playwright isn't installed: pip install playwright")

from tests.flows import mlflow_pages, walk
from tests.flows.conftest import Finished

pytestmark = [
    pytest.mark.service,
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(walk.CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]


def test_a_person_finds_starts_watches_and_approves_a_run(tmp_path: Path) -> None:
    asked_outside = walk.walk(tmp_path)
    assert not asked_outside, "no page calls home"


def test_mlflow_shows_a_stage_s_curves_its_generations_and_the_registry(micro: Finished) -> None:
    assert not mlflow_pages.look(micro.workspace, "signal-1"), "no page calls home"
