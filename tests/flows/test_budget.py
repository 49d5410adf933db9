"""Runs whose budget does not suffice: paused before a step or within one, told of, and gone on with."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import ROOT, Api, Finished, vibethinker
from tests.slack import Slack
from vibethinker.artifacts import write_json
from vibethinker.config import load
from vibethinker.plan import build
from vibethinker.workload import work_of

pytestmark = pytest.mark.service


def run(environ: Mapping[str, str], workspace: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """The micro profile with these settings; on the workspace of the finished run it reuses what it can."""
    words = [word for one in overrides for word in ("--set", one)]
    command = [sys.executable, "-m", "vibethinker", "run", "--profile", "micro", "--workspace", str(workspace), *words]
    return subprocess.run(command, capture_output=True, text=True, env=dict(environ), cwd=ROOT, check=False)


def newest(workspace: Path) -> tuple[Path, dict[str, Any]]:
    folder = max((workspace / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
    return folder, json.loads((folder / "summary.json").read_text())


def test_a_run_pauses_before_a_step_that_would_exceed_its_budget(api: Api, micro: Finished, slack: Slack) -> None:
    change = "signal.stages.1.overrides={learning_rate: 0.00007}"
    environ = {**api.environ, "SLACK_WEBHOOK_URL": slack.url}
    done = run(environ, micro.workspace, change, "budget.hours=0.0001")
    assert done.returncode == 1
    sentence = "The run was paused before signal-2, which would take about"
    assert f"Error: {sentence}" in done.stderr and "--set budget.hours=…" in done.stderr
    assert "is paused. With a larger budget, go on by:" in done.stderr and "Traceback" not in done.stderr
    folder, summary = newest(micro.workspace)
    assert summary["status"] == "paused" and summary["reason"].startswith(sentence)
    states = {step["id"]: step["state"] for step in summary["steps"]}
    assert {states["signal-2"], states["evaluation-signal-2"], states["report"]} == {"waiting"}
    assert {states["signal-1"], states["fusion"]} == {"cached"}
    state = api.flow_run(folder.name)["state"]
    assert (state["type"], state["name"]) == ("FAILED", "OverBudget") and state["message"].startswith(sentence)
    assert sentence in (folder / "report.html").read_text()
    [post] = slack.posts
    assert post["blocks"][0]["text"]["text"] == f"{folder.name} waits: its budget does not suffice"
    assert str(folder / "config.yaml") in slack.texts()[0]  # in the command that goes on
    shown = vibethinker("status", "--workspace", str(micro.workspace), "--run", folder.name)
    assert f"Run {folder.name}: paused\n{sentence}" in shown.stdout


def believed_quick(workspace: Path, *overrides: str) -> None:
    """Outputs of every step, as if each had been made here in no time."""
    plan = build(load("micro", overrides=list(overrides)), workspace)
    for step in plan.steps:
        work = work_of(plan.config, step, plan.config.architecture(), None)
        record = {"work": work, "metrics": {}, "seconds": 1e-3, "finished": 0.0, "resumed": False}
        write_json(workspace / "artifacts" / step.id / ("0" * 64) / "manifest.json", record)


@pytest.mark.long
def test_a_run_pauses_within_a_step_that_takes_longer_than_estimated_and_goes_on(api: Api, tmp_path: Path) -> None:
    overrides = ("domains=[algebra]", "signal.stages=[{name: math, context: 96, steps: 60, reward: math}]",
                 "execution.checkpoints.seconds=0", "execution.price=36")  # fmt: skip
    believed_quick(tmp_path, *overrides)
    stopped = run(api.environ, tmp_path, *overrides, "budget.usd=0.05")  # five seconds of the machine's
    assert stopped.returncode == 1, stopped.stdout
    folder, first = newest(tmp_path)
    assert first["status"] == "paused" and first["estimate"]["usd"] < 0.01
    assert "its steps saved what they had" in first["reason"], first["reason"]
    assert first["spent"]["usd"] > 0.04
    done = run(api.environ, tmp_path, *overrides, "budget.usd=1000", "budget.hours=5")
    assert done.returncode == 0, done.stdout + done.stderr
    same, second = newest(tmp_path)
    assert same == folder and second["status"] == "completed" and second["reason"] == ""
    assert second["spent"]["usd"] > first["spent"]["usd"] and second["spent"]["seconds"] > first["spent"]["seconds"]
    assert not [text for text in second["warnings"] if "MLflow keeps" in text]
