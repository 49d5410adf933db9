"""Several runs of one workspace make each step once, whoever of them is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flows.conftest import ROOT
from vibethinker import locks, validation
from vibethinker.tracking.journal import undelivered

pytestmark = [pytest.mark.service, pytest.mark.long]

SMALL = ("domains=[algebra,code]", "evaluation.samples=1", "evaluation.k=[1]")


class Started:
    """A run of the command line, on a Prefect server of its own."""

    def __init__(self, workspace: Path, printed: Path, settings: tuple[str, ...] = ()) -> None:
        words = [word for setting in settings for word in ("--set", setting)]
        command = [sys.executable, "-m", "vibethinker", "run", "--profile", "micro", "--workspace", str(workspace)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environ["PREFECT_HOME"] = str(printed.parent / "no profile")
        with printed.open("w") as output:
            self.process = subprocess.Popen(
                [*command, *words], cwd=ROOT, env=environ, stdout=output, stderr=subprocess.STDOUT
            )
        self._printed = printed

    def wait(self) -> str:
        """What it printed, once it has ended well."""
        assert self.process.wait(timeout=500) == 0, self._printed.read_text()
        return self._printed.read_text()


def summaries(workspace: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(workspace.glob("runs/*/summary.json"))]


def check_made_once(workspace: Path, completed: int) -> None:
    """Each step was made by one of the completed runs, is whole, and nothing was published twice."""
    done = [summary for summary in summaries(workspace) if summary["status"] == "completed"]
    assert len(done) == completed
    assert all(step["state"] in ("done", "cached") for summary in done for step in summary["steps"])
    manifests = [json.loads(path.read_text()) for path in workspace.glob("artifacts/*/*/manifest.json")]
    assert {m["step"] for m in manifests} == {step["id"] for step in done[0]["steps"]}
    assert len(manifests) == len(done[0]["steps"])
    makers = Counter(step["id"] for summary in done for step in summary["steps"] if step["state"] == "done")
    assert set(makers.values()) == {1}
    assert not (workspace / "attic").exists()  # where a second output of a step would have put the first
    assert not list((workspace / "staging").iterdir())
    for path in workspace.glob("artifacts/*/*"):
        assert validation.check(path, "digest") is None
    scores = [json.dumps([summary["models"], summary["comparisons"]], sort_keys=True) for summary in done]
    assert len(set(scores)) == 1
    assert not any(undelivered(path.parent) for path in workspace.glob("runs/*/summary.json"))


def test_two_first_runs_of_a_workspace_make_each_step_once(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    runs = [Started(workspace, tmp_path / f"printed-{i}", SMALL) for i in range(2)]
    for run in runs:
        assert "MLflow can't be written" not in run.wait()
    check_made_once(workspace, 2)


def test_of_four_runs_those_that_are_left_go_on_when_the_one_that_makes_a_step_is_killed(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    runs = [Started(workspace, tmp_path / f"printed-{i}") for i in range(4)]
    lock, holder = holder_of(workspace, "base", runs)
    family = psutil.Process(holder.process.pid).children(recursive=True)
    holder.process.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    holder.process.wait()
    _, alive = psutil.wait_procs(family, timeout=3)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    runs.remove(holder)
    # Another run takes it over; nothing but a dead process's lock would keep all of them from it.
    while not any(holds(run, lock) for run in runs) and not list(workspace.glob("artifacts/base/*")):
        assert time.monotonic() - killed < 10
        time.sleep(0.02)
    for run in runs:
        run.wait()
    assert not locks.is_held(lock)
    check_made_once(workspace, 3)


def holder_of(workspace: Path, step: str, runs: list[Started]) -> tuple[Path, Started]:
    """The lock of a step that is being made, and the run whose process holds it."""
    limit = time.monotonic() + 300
    while time.monotonic() < limit:
        for lock in workspace.glob(f"locks/{step}-*"):
            for run in runs:
                if holds(run, lock):
                    return lock, run
        time.sleep(0.02)
    raise AssertionError(f"nobody began {step}")


def holds(run: Started, lock: Path) -> bool:
    """Whether a process of the run holds the lock, as the kernel tells it."""
    try:
        inode = f":{lock.stat().st_ino} "
        pids = {p.pid for p in psutil.Process(run.process.pid).children(recursive=True)}
    except (FileNotFoundError, psutil.NoSuchProcess):
        return False
    held = [line.split() for line in Path("/proc/locks").read_text().splitlines() if inode in line]
    return any(int(words[4]) in pids for words in held if words[1] == "FLOCK")
