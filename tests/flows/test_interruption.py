"""A run that is asked to stop saves what it has, and the next one goes on as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.flows.conftest import ROOT, Api, vibethinker

pytestmark = pytest.mark.service

# Long enough to be met in the middle, and too slow a learner to collapse.
SETTINGS = (
    "signal.stages.0.steps=120", "signal.objective.learning_rate=1e-6", "execution.checkpoints.seconds=0.5",
    "evaluation.samples=1", "evaluation.k=[1]",
)  # fmt: skip


def arguments(workspace: Path) -> list[str]:
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["--profile", "micro", "--workspace", str(workspace), *words]


def resumes_after(workspace: Path, api: Api) -> int | None:
    document = json.loads(vibethinker("plan", *arguments(workspace), "--json", environ=api.environ).stdout)
    [step] = [step for step in document["steps"] if step["id"] == "signal-1"]
    assert (step["state"] == "resumable") == (step["resumes_after"] is not None)
    return step["resumes_after"]


def interrupted(workspace: Path, api: Api, number: int, after: int) -> str:
    """Start the run, send the signal once an update beyond `after` is saved, and return what it printed."""
    command = [sys.executable, "-m", "vibethinker", "run", *arguments(workspace)]
    with (workspace.parent / f"printed-{number}").open("w+") as printed:
        run = subprocess.Popen(command, env=dict(api.environ), cwd=ROOT, stdout=printed, stderr=printed)
        limit = time.monotonic() + 300
        while time.monotonic() < limit and run.poll() is None:
            saved = (workspace / "checkpoints" / "signal-1").glob("*/updates/*/manifest.json")
            if any(int(path.parent.name) > after for path in saved if path.parent.name.isdigit()):
                break
            time.sleep(0.05)
        run.send_signal(number)
        assert run.wait(timeout=60) == 130
        printed.seek(0)
        return printed.read()


def payload(workspace: Path, step: str) -> dict[str, bytes]:
    [folder] = (workspace / "artifacts" / step).iterdir()
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_run_that_is_asked_to_stop_goes_on_where_it_was(api: Api, tmp_path: Path) -> None:
    workspace, whole = tmp_path / "interrupted", tmp_path / "whole"
    said = interrupted(workspace, api, signal.SIGTERM, after=0)
    assert "Go on by:" in said
    assert "Traceback" not in said
    first = resumes_after(workspace, api)
    assert first is not None
    interrupted(workspace, api, signal.SIGINT, after=first)
    second = resumes_after(workspace, api)
    assert second is not None
    assert second > first
    for one in (workspace, whole):
        done = vibethinker("run", *arguments(one), environ=api.environ)
        assert done.returncode == 0, done.stderr
    for step in ("signal-1", "signal-2"):
        assert payload(workspace, step) == payload(whole, step)
    assert not (workspace / "checkpoints" / "signal-1").exists() or not any(
        (workspace / "checkpoints" / "signal-1").iterdir()
    )
