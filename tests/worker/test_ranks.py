"""One step as several real processes that speak gloo: who writes, who is heard, and how all of them end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.worker import failing_steps
from tests.worker.test_worker import ROOT, assert_gone, request
from vibethinker.artifacts import Store
from vibethinker.errors import KINDS, ConfigurationError, InfrastructureError, PreemptedError, VibeThinkerError
from vibethinker.worker import ranks
from vibethinker.worker.host import Event, Host

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """A host that forks its children where that works, as on a CPU; or that doesn't, as with a GPU."""
    fork = getattr(request, "param", sys.platform == "linux")
    env = {"PYTHONPATH": str(ROOT), "VIBETHINKER_PRELOAD": "torch.distributed"}
    with Host(tmp_path_factory.mktemp("host") / "worker.log", env=env, fork=fork) as host:
        yield host


without_forks = pytest.mark.parametrize("host", [False], ids=["fresh"], indirect=True)


def on_ranks(workspace: Path, function: Any, count: int = 2, **changes: Any) -> dict[str, Any]:
    execution = {"processes": count, "device": "cpu", "threads": 2 * count, "verifier_workers": 1}
    return request(workspace, function, execution=execution, **changes)


@without_forks
def test_ranks_find_each_other_and_the_first_alone_speaks_and_writes(host: Host, tmp_path: Path) -> None:
    events: list[Event] = []
    result = host.run(on_ranks(tmp_path, failing_steps.add_up, 3), events.append)
    assert result["metrics"] == {"total": 7.0, "threads": 2, "ranks": 3}
    assert [event["values"] for event in events] == [{"rank": 0.0}]
    assert [file.name for file in sorted(Path(result["folder"]).glob("*.txt"))] == ["0.txt"]
    assert not list((tmp_path / "staging").iterdir())


@pytest.mark.parametrize(("kind", "rank"), [("out_of_memory", 1), ("diverged", 0), ("failure", 1)])
def test_the_failure_of_one_rank_is_the_steps(host: Host, tmp_path: Path, kind: str, rank: int) -> None:
    settings = {"rank": rank, "error": kind}
    with pytest.raises(VibeThinkerError, match="this is why") as caught:
        host.run(on_ranks(tmp_path, failing_steps.fail_on_a_rank, settings=settings), lambda e: None)
    assert type(caught.value) is KINDS[kind]
    assert ("rank 1 of 2" in str(caught.value)) == (rank == 1)
    assert Store(tmp_path).read("step", "f" * 64) is None


def test_a_rank_that_is_killed_ends_the_step_as_infrastructure(host: Host, tmp_path: Path) -> None:
    settings = {"rank": 1, "error": "killed"}
    with pytest.raises(InfrastructureError, match=r"killed by SIGKILL.*rank 1 of 2"):
        host.run(on_ranks(tmp_path, failing_steps.fail_on_a_rank, settings=settings), lambda e: None)


def test_a_stop_reaches_every_rank(host: Host, tmp_path: Path) -> None:
    started, pids = threading.Event(), {}

    def hear(event: Event) -> None:
        pids.update(event["values"])
        started.set()

    with pytest.raises(PreemptedError):
        host.run(on_ranks(tmp_path, failing_steps.hang_on_a_rank), hear, started.is_set)
    assert len(pids) == 2
    assert_gone(pids)


def test_a_stalled_step_leaves_the_stack_of_every_rank_and_no_process(host: Host, tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(InfrastructureError, match="reported nothing for 3 s"):
        host.run(on_ranks(tmp_path, failing_steps.hang_on_a_rank, stall_seconds=3.0), events.append)
    log = (tmp_path / "step.log").read_text()
    assert log.count("in hang_on_a_rank") == 2
    assert_gone(events[0]["values"])


@without_forks
def test_the_other_ranks_die_with_the_first(host: Host, tmp_path: Path) -> None:
    pids: dict[str, float] = {}

    def hear(event: Event) -> None:
        pids.update(event["values"])
        psutil.Process(int(pids["0"])).kill()

    with pytest.raises(InfrastructureError, match="killed by SIGKILL"):
        host.run(on_ranks(tmp_path, failing_steps.hang_on_a_rank), hear)
    assert_gone(pids)


def test_more_processes_than_gpus_are_refused(host: Host, tmp_path: Path) -> None:
    asked = on_ranks(tmp_path, failing_steps.add_up, gpu="0")
    asked["execution"]["device"] = "cuda"
    with pytest.raises(ConfigurationError, match="processes is 2 but the step has 1 GPU"):
        host.run(asked, lambda e: None)


def test_only_steps_that_train_take_several_processes() -> None:
    assert [ranks.count(kind, {"processes": 2}) for kind in ("specialist", "signal")] == [2, 2]
    assert [ranks.count(kind, {"processes": 2}) for kind in ("base", "probe", "evaluation")] == [1, 1, 1]
