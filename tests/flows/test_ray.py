"""Steps on a Ray cluster of this machine: the same bytes, also where a worker is killed, and an end with the run's."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flows.conftest import ROOT, Api, Finished, vibethinker
from tests.waiting import until
from vibethinker.artifacts import content_digest

pytestmark = [
    pytest.mark.service,
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("prefect_ray") is None, reason="Ray isn't installed: pip install vibethinker[ray]"
    ),
]

LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
SPECTRUM = "import sys, json; from flows.pipeline import spectrum_phase; spectrum_phase(**json.loads(sys.argv[1]))"


def family(process: subprocess.Popen[Any]) -> Iterator[psutil.Process]:
    """The living descendants of a process."""
    for one in psutil.Process(process.pid).children(recursive=True):
        if one.is_running() and one.status() != psutil.STATUS_ZOMBIE:
            yield one


def title(process: psutil.Process) -> str:
    """What a process calls itself; nothing where it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def training(process: subprocess.Popen[Any], workspace: Path) -> psutil.Process | None:
    """A Ray worker of a specialist, while one is being trained."""
    if not list((workspace / "staging").glob("specialist-*")):
        return None
    return next((p for p in family(process) if title(p).startswith("ray::Train specialist")), None)


def living(processes: list[psutil.Process], seconds: float) -> list[str]:
    """Which of them still live after so long."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [title(p) for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def listening_beyond_loopback(process: subprocess.Popen[Any]) -> list[tuple[str, Any]]:
    pids = {p.pid for p in family(process)}
    sockets = (c for c in psutil.net_connections("inet") if c.status == psutil.CONN_LISTEN and c.pid in pids)
    return [(title(psutil.Process(c.pid)), c.laddr) for c in sockets if c.laddr.ip not in LOOPBACK]


def digests(workspace: Path, kinds: tuple[str, ...] = ("",)) -> dict[str, str]:
    """Step → content digest of what is published."""
    found = {}
    for manifest in (workspace / "artifacts").glob("*/*/manifest.json"):
        if manifest.parents[1].name.startswith(kinds):
            found[manifest.parents[1].name] = content_digest(json.loads(manifest.read_text())["files"])
    return found


def test_specialists_on_a_cluster_have_the_same_bytes_though_a_worker_is_killed(
    api: Api, micro: Finished, tmp_path: Path
) -> None:
    """The cluster's machines see the run's workspace only through the shared store."""
    here, there = tmp_path / "here", tmp_path / "there"
    for step in ("base", "data"):
        shutil.copytree(micro.workspace / "artifacts" / step, here / "artifacts" / step)
    asked = {
        "profile": "micro",
        "workspace": str(here),
        "config": {
            "storage": {"url": f"file://{tmp_path}/store"},
            "scaling": {"runner": "ray", "ray": {"workspace": str(there)}},
        },
    }
    log = tmp_path / "log"
    with log.open("w") as output:
        run = subprocess.Popen(
            [sys.executable, "-c", SPECTRUM, json.dumps(asked)], env=dict(api.environ), cwd=ROOT,
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        victim = until(lambda: training(run, there), 240, run)
        assert listening_beyond_loopback(run) == []
        victim.kill()
        assert run.wait(300) == 0, log.read_text()
    finally:
        run.kill()
    made = ("specialist-", "probe-", "fusion")
    assert digests(here, made) == digests(micro.workspace, made)
    assert set(digests(there)) == {k for k in digests(here) if k != "fusion"}
    [folder] = (here / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    states = {s["id"]: s["state"] for s in summary["steps"]}
    assert {name for name, state in states.items() if state == "done"} == set(digests(here, made))
    flow = {"name": {"any_": ["vibethinker-spectrum"]}}
    flow_run = api.filter("flow_runs", flows=flow, sort="START_TIME_DESC", limit=1)[0]
    runs = api.filter("task_runs", flow_runs={"id": {"any_": [flow_run["id"]]}}, limit=200)
    assert sorted(r["name"] for r in runs) == sorted(states)
    assert {r["state_type"] for r in runs} == {"COMPLETED"}
    names = {r["id"]: r["name"] for r in runs}
    for one in runs:
        needs = next(s["depends_on"] for s in micro.plan["steps"] if s["id"] == one["name"])
        assert sorted(names[i["id"]] for i in one["task_inputs"].get("wait_for", [])) == sorted(needs)
        if one["name"].startswith("specialist-"):
            logs = api.filter("logs", logs={"task_run_id": {"any_": [one["id"]]}})
            assert any(re.search(r"\d+/\d+", row["message"]) for row in logs)
    assert_tracked(here, set(digests(here, made)))


def assert_tracked(workspace: Path, steps: set[str]) -> None:
    """MLflow has each step, with its training's numbers."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    [experiment] = [e for e in client.search_experiments() if e.name == "vibethinker"]
    runs = client.search_runs([experiment.experiment_id], max_results=200)
    children = {r.data.tags["vibethinker.step"]: r for r in runs if "mlflow.parentRunId" in r.data.tags}
    assert set(children) == steps
    assert {r.info.status for r in runs} == {"FINISHED"}
    assert client.get_metric_history(children["specialist-code"].info.run_id, "loss")


def test_the_whole_recipe_on_a_cluster_has_the_same_bytes(api: Api, micro: Finished, tmp_path: Path) -> None:
    arguments = ("run", "--profile", "micro", "--workspace", str(tmp_path), "--set", "scaling.runner=ray")
    done = vibethinker(*arguments, environ=api.environ)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path) == digests(micro.workspace)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_of_a_cluster_outlives_an_ended_run(
    api: Api, micro: Finished, tmp_path: Path, number: signal.Signals
) -> None:
    for step in ("base", "data"):
        shutil.copytree(micro.workspace / "artifacts" / step, tmp_path / "artifacts" / step)
    arguments = ["run", "--profile", "micro", "--workspace", str(tmp_path), "--set", "scaling.runner=ray"]
    run = subprocess.Popen(
        [sys.executable, "-m", "vibethinker", *arguments], env=dict(api.environ), cwd=ROOT,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    everyone: list[psutil.Process] = []
    try:
        until(lambda: training(run, tmp_path), 240, run)
        everyone = list(family(run))
        computing = [p for p in everyone if "vibethinker" in title(p) or title(p).startswith("ray::Train")]
        assert len(computing) > 3
        os.kill(run.pid, number)
        run.wait(60)
        assert living(computing, 10 if number == signal.SIGKILL else 3) == []
        agents = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # Ray's own, which may stay after SIGKILL
        assert [name for name in living(everyone, 10) if not name.startswith(agents)] == []
    finally:
        run.kill()
        for one in everyone:
            with contextlib.suppress(psutil.Error):
                one.kill()
    if number == signal.SIGINT:
        [folder] = (tmp_path / "runs").iterdir()
        assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
