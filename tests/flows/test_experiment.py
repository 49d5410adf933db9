"""An experiment as a flow: arms share what they can, each run is an ordinary one, and a kill costs nothing made."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import yaml

from tests.flows.conftest import ROOT, Api, Finished, vibethinker
from tests.slack import Slack
from vibethinker.artifacts import Store
from vibethinker.config import load
from vibethinker.plan import build, states
from vibethinker.tracking import store_uri

pytestmark = pytest.mark.service

# The stages alone differ from the micro profile's run, whose other outputs are reused.
STAGES = {"signal.stages": [{"name": "math", "context": 96, "steps": 2, "reward": "math"}]}
DESIGN: dict[str, Any] = {
    "name": "lambdas",
    "profile": "micro",
    "settings": STAGES,
    "arms": {"grpo": {"signal.objective.lambda": 0}, "mgpo": {"signal.objective.lambda": 4}},
    "control": "grpo",
    "seeds": [1, 2],
    "comparisons": [{"metric": "avg", "sets": ["algebra"]}],
}
ALONE = {"signal-1", "evaluation-signal-1", "report"}  # steps that no two runs share


def written(folder: Path, **changed: Any) -> Path:
    file = folder / "design.yaml"
    file.write_text(yaml.safe_dump({**DESIGN, **changed}))
    return file


def summaries(workspace: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in workspace.glob("runs/*/summary.json")]


def result_of(workspace: Path) -> dict[str, Any]:
    [path] = workspace.glob("experiments/*/result.json")
    return json.loads(path.read_text())


def manifests(workspace: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in workspace.glob("artifacts/*/*/manifest.json")}


@pytest.mark.long
def test_arms_reuse_what_they_share_and_are_compared(api: Api, micro: Finished, tmp_path: Path) -> None:
    workspace, file = tmp_path / "workspace", written(tmp_path)
    shutil.copytree(micro.workspace / "artifacts", workspace / "artifacts")
    before = manifests(workspace)
    arguments = ("experiment", str(file), "--workspace", str(workspace))
    plan = json.loads(vibethinker(*arguments, "--dry-run", "--json", environ=api.environ).stdout)
    assert {one["step"] for one in plan["outputs"] if one["state"] == "to_run"} == ALONE
    assert not (workspace / "experiments").exists()

    done = vibethinker(*arguments, environ=api.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    made = manifests(workspace)
    assert before.items() <= made.items()
    assert Counter(path.parts[-3] for path in made.keys() - before.keys()) == dict.fromkeys(ALONE, 4)
    result = result_of(workspace)
    assert result["id"] == plan["id"]
    assert result["status"] == "completed"
    assert [(run["arm"], run["seed"], run["status"]) for run in result["runs"]] == [
        (arm, seed, "completed") for seed in (1, 2) for arm in ("grpo", "mgpo")
    ]
    [row] = result["comparisons"]
    assert set(row["by_seed"]) == {"1", "2"}
    assert f"mgpo − grpo, avg, final on algebra: {'+' if row['difference'] >= 0 else '−'}" in done.stdout
    assert len(re.findall(r" mgpo, seed 2 \[ *\d+/\d+\] signal-1: done", done.stderr)) == 1
    assert result["cost"]["outputs"] == len(plan["outputs"]), "the micro profile's own stages are none of it"

    # Each run is an ordinary one, tagged by the experiment; the flows are parts of one.
    runs = {run["run_id"] for run in result["runs"]}
    assert {summary["run_id"] for summary in summaries(workspace)} == runs
    flow = api.flow_run(result["id"])
    assert flow["state_type"] == "COMPLETED"
    children = [api.flow_run(run) for run in runs]
    assert all(f"experiment:{result['id']}" in child["tags"] for child in children)
    of_flow = api.filter("flow_runs", flow_runs={"parent_flow_run_id": {"any_": [flow["id"]]}})
    assert {child["id"] for child in of_flow} == {child["id"] for child in children}
    client = mlflow.MlflowClient(store_uri(None, workspace))
    [experiment] = client.search_experiments(filter_string="name != 'Default'")
    tagged = client.search_runs([experiment.experiment_id], f"tags.`vibethinker.experiment` = '{result['id']}'")
    assert {(run.data.tags["vibethinker.arm"], run.data.tags["vibethinker.seed"]) for run in tagged} == {
        (arm, seed) for arm in ("grpo", "mgpo") for seed in ("1", "2")
    }
    assert client.search_registered_models() == [], "arms are no candidates for the registry"

    again = vibethinker(*arguments, environ={**api.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert (again.returncode, again.stdout) == (0, done.stdout), "nothing is left to do, so nothing is asked"
    assert manifests(workspace) == made


def test_a_wrong_design_is_refused_in_a_sentence(tmp_path: Path) -> None:
    file = written(tmp_path, arms={"grpo": {}, "mgpo": {"signal.objective.lamda": 1}})
    done = vibethinker("experiment", str(file), "--workspace", str(tmp_path / "workspace"))
    assert done.returncode == 2
    assert done.stderr.startswith("Error: Arm 'mgpo': There is no setting 'signal.objective.lamda'; did you mean")
    assert not (tmp_path / "workspace").exists()


@pytest.mark.long
def test_an_experiment_that_was_killed_goes_on_and_repeats_nothing(api: Api, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    file = written(tmp_path, at_once=2, settings={**STAGES, "domains": ["algebra"]})
    command = [sys.executable, "-m", "vibethinker", "experiment", str(file), "--workspace", str(workspace)]
    process = subprocess.Popen(command, env=dict(api.environ), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 400
    # The second seed is under way: two runs are over, and the two others have their places.
    while sum(summary["status"] == "completed" for summary in summaries(workspace)) < 2:
        assert time.monotonic() < limit
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(family, timeout=10)[1] == []
    before, ended = manifests(workspace), [s["run_id"] for s in summaries(workspace) if s["status"] == "completed"]
    assert len(ended) >= 2
    begun = {run: (workspace / "runs" / run / "state.json").read_bytes() for run in ended}
    assert result_of(workspace)["status"] == "running"
    registered = result_of(workspace)["registered"]

    done = vibethinker(*command[3:], environ=api.environ)
    assert done.returncode == 0, done.stderr
    made, result = manifests(workspace), result_of(workspace)
    assert before.items() <= made.items(), "what was published stays as it was"
    assert not (workspace / "attic").exists(), "where a second output of a step would have put the first"
    assert result["registered"] == registered
    assert Counter(path.parts[-3] for path in made)["signal-1"] == 4
    assert Counter(path.parts[-3] for path in made)["base"] == 1
    runs = summaries(workspace)
    assert {run["run_id"] for run in result["runs"]} == {run["run_id"] for run in runs}
    assert len(runs) == 4, "those that had begun went on in their folders"
    assert {run["status"] for run in runs} == {"completed"}
    for run, state in begun.items():
        assert (workspace / "runs" / run / "state.json").read_bytes() == state, "it was not started again"
    makers = Counter(
        (step["id"], step["fingerprint"]) for run in runs for step in run["steps"] if step["state"] == "done"
    )
    assert max(makers.values()) == 1


def begin_long_stages(
    api: Api, micro: Finished, slack: Slack, folder: Path, **changed: Any
) -> tuple[Path, subprocess.Popen[str]]:
    """An experiment whose stages, all side by side, take longer than a test waits; its workspace and process."""
    workspace = folder / "workspace"
    shutil.copytree(micro.workspace / "artifacts", workspace / "artifacts")
    settings = {
        "signal.stages": [{"name": "math", "context": 96, "steps": 400, "reward": "math"}],
        "signal.objective.learning_rate": 1e-6,
        "execution.slots": 4,
        "execution.stages_share": True,
    }
    file = written(folder, at_once=4, settings=settings, **changed)
    command = [sys.executable, "-m", "vibethinker", "experiment", str(file), "--workspace", str(workspace)]
    # Ctrl-C is ignored by what a shell has started in the background, and so by a test run there.
    process = subprocess.Popen(
        command, env={**api.environ, "SLACK_WEBHOOK_URL": slack.url}, cwd=ROOT, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    return workspace, process


def statuses(workspace: Path) -> dict[str, str]:
    """The experiment's own, and that of each arm and seed, which the run's own summary has too."""
    result = result_of(workspace)
    told = {summary["run_id"]: summary["status"] for summary in summaries(workspace)}
    assert told == {run["run_id"]: run["status"] for run in result["runs"]}
    return {"all": result["status"]} | {f"{run['arm']}-{run['seed']}": run["status"] for run in result["runs"]}


@pytest.mark.long
def test_an_interruption_is_one_of_each_run_and_told_as_no_failure(
    api: Api, micro: Finished, slack: Slack, tmp_path: Path
) -> None:
    workspace, process = begin_long_stages(api, micro, slack, tmp_path)
    limit = time.monotonic() + 200
    while len(list(workspace.glob("runs/*/logs/signal-1.log"))) < 4:
        assert time.monotonic() < limit
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "was interrupted. Go on by:" in said
    assert statuses(workspace) == dict.fromkeys(("all", "grpo-1", "mgpo-1", "grpo-2", "mgpo-2"), "interrupted")
    assert slack.posts == []


@pytest.mark.long
def test_a_run_that_fails_interrupts_the_others_and_it_alone_is_told_of(
    api: Api, micro: Finished, slack: Slack, tmp_path: Path
) -> None:
    hasty = {"signal.objective.lambda": 4, "execution.timeout_seconds": 1}
    arms = {"grpo": {"signal.objective.lambda": 0}, "mgpo": hasty}
    workspace, process = begin_long_stages(api, micro, slack, tmp_path, arms=arms, seeds=[1])
    _, said = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "Error: The step signal-1 was stopped after 1 s (execution.timeout_seconds)" in said
    assert statuses(workspace) == {"all": "failed", "grpo-1": "interrupted", "mgpo-1": "failed"}
    [failed] = [run["run_id"] for run in result_of(workspace)["runs"] if run["arm"] == "mgpo"]
    [post] = slack.posts
    assert post["blocks"][0]["text"]["text"] == f"{failed} failed in signal-1"


def test_a_fork_of_a_finished_run_reuses_all_before_the_stage_that_differs(micro: Finished) -> None:
    for change in ("lambda: 0", "learning_rate: 1.0e-5"):
        forked = load("micro", overrides=[f"signal.stages.1.overrides={{{change}}}"], environ={})
        found = states(build(forked, micro.workspace), Store(micro.workspace))
        differ = {"signal-2", "evaluation-signal-2", "report"}
        assert {step for step, state in found.items() if state.state == "to_run"} == differ
        assert {state.state for step, state in found.items() if step not in differ} == {"cached"}
