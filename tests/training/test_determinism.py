"""The same seed gives the same bytes in processes that share nothing but the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.stopping import files
from tests.training.test_processes import new, signal, specialist  # noqa: F401 (fixtures)
from tests.worker.test_worker import ROOT
from vibethinker.worker.host import Host

pytestmark = pytest.mark.long


@pytest.fixture
def host(tmp_path):
    """Each step in an interpreter of its own, whose hashes are drawn anew."""
    with Host(tmp_path / "worker.log", env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "random"}, fork=False) as host:
        yield host


@pytest.mark.parametrize("kind", ["specialist", "signal"])
def test_two_fresh_processes_leave_the_same_bytes(request, kind):
    train = request.getfixturevalue(kind)
    first, again = (payload(train({"method": "lora", "lora": {"rank": 4, "dropout": 0.1}}).run()) for _ in range(2))
    assert first == again


def payload(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(folder).items() if name != "manifest.json"}
