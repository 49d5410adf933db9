"""A run that is asked to stop saves what it has, and the next one goes on as if nothing had happened."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.flows.conftest import ROOT, Api, vibethinker

pytestmark = pytest.mark.service

STEPS = 60
# Long enough to be met in the middle, and too slow a learner to collapse.
SETTINGS = (
    f"signal.stages.0.steps={STEPS}", "signal.objective.learning_rate=1e-6", "execution.checkpoints.seconds=0.5",
    "domains=[algebra,code]", "evaluation.samples=1", "evaluation.k=[1]",
)  # fmt: skip


def arguments(workspace: Path) -> list[str]:
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    return ["--profile", "micro", "--workspace", str(workspace), *words]


def resumes_after(workspace: Path, api: Api) -> int | None:
    document = json.loads(vibethinker("plan", *arguments(workspace), "--json", environ=api.environ).stdout)
    [step] = [step for step in document["steps"] if step["id"] == "signal-1"]
    assert (step["state"] == "resumable") == (step["resumes_after"] is not None)
    return step["resumes_after"]


def interrupted(workspace: Path, api: Api, number: int, after: int, again: bool = False) -> str:
    """Start the run, send the signal once an update beyond `after` is saved (`again` once more soon after), and return
    what it printed."""
    command = [sys.executable, "-m", "vibethinker", "run", *arguments(workspace)]
    with (workspace.parent / f"printed-{number}").open("w+") as printed:
        # Ctrl-C is ignored by what a shell has started in the background, and so by a test run there.
        run = subprocess.Popen(
            command, env=dict(api.environ), cwd=ROOT, stdout=printed, stderr=printed,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        limit = time.monotonic() + 300
        while time.monotonic() < limit and run.poll() is None:
            saved = (workspace / "checkpoints" / "signal-1").glob("*/updates/*/manifest.json")
            if any(int(path.parent.name) > after for path in saved if path.parent.name.isdigit()):
                break
            time.sleep(0.05)
        below = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(number)
        if again:
            time.sleep(0.5)
            run.send_signal(number)
        assert run.wait(timeout=200) == 130
        assert psutil.wait_procs(below, timeout=10)[1] == []
        printed.seek(0)
        return printed.read()


def payload(workspace: Path, step: str) -> dict[str, bytes]:
    [folder] = (workspace / "artifacts" / step).iterdir()
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.long
def test_a_run_that_is_asked_to_stop_goes_on_where_it_was(api: Api, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    said = interrupted(workspace, api, signal.SIGTERM, after=0)
    assert "Go on by:" in said
    assert "Stopped at once" not in said
    assert "Traceback" not in said
    first = resumes_after(workspace, api)
    assert first is not None
    done = vibethinker("run", *arguments(workspace), environ=api.environ)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in payload(workspace, "signal-1")["metrics.jsonl"].splitlines()]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert not (workspace / "checkpoints" / "signal-1").exists()
    # It is one run, in which each update was told once and computed once.
    [run] = (workspace / "runs").iterdir()
    told = [json.loads(line) for line in (run / "tracking.jsonl").read_text().splitlines()]
    rows = [o for o in told if o["op"] == "metrics" and o.get("step") == "signal-1" and o["at"]]
    assert [o["at"] for o in rows if "loss" in o["values"]] == list(range(1, STEPS + 1))
    computed = [o["at"] for o in rows if any("tokens_per_second" in name for name in o["values"])]
    assert sorted(set(computed)) == computed
    assert computed[0] == 1
    assert first + 1 in computed


@pytest.mark.long
def test_stopped_at_once_and_interrupted_it_ends_with_the_bytes_of_one_that_was_not(api: Api, tmp_path: Path) -> None:
    workspace, whole = tmp_path / "interrupted", tmp_path / "whole"
    assert "Stopped at once" in interrupted(workspace, api, signal.SIGINT, after=0, again=True)
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
