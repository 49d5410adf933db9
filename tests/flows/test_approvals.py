"""Runs that ask before they go on: paused, answered through the API, and gone on with or ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from flows import automations
from tests.flows.conftest import ROOT, Api, Finished, vibethinker
from tests.flows.working import deployment_run, state_of, worker
from tests.slack import Slack
from tests.waiting import until

pytestmark = pytest.mark.service

LOST_SECONDS = 40.0  # more than the 30 s between two heartbeats
ALL = ("--set", "approvals.signal=true", "--set", "approvals.promotion=true")


@contextmanager
def started(environ: Mapping[str, str], *command: str) -> Iterator[subprocess.Popen[str]]:
    run = subprocess.Popen(
        [sys.executable, *command], env=dict(environ), cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield run
    finally:
        run.kill()
        run.communicate()


def command(workspace: Path, rate: str, *words: str) -> list[str]:
    """A run that reuses all but its last stage, in which it learns at this rate."""
    change = f"signal.stages.1.overrides={{learning_rate: {rate}}}"
    return ["-m", "vibethinker", "run", "--profile", "micro", "--workspace", str(workspace), "--set", change, *words]


def waiting(api: Api, run: subprocess.Popen[Any], key: str) -> tuple[dict[str, Any], str]:
    """The flow run that is paused at this key, and what the person is shown."""
    limit = time.monotonic() + 300
    while time.monotonic() < limit and run.poll() is None:
        for flow_run in api.filter("flow_runs", flow_runs={"state": {"type": {"any_": ["PAUSED"]}}}):
            asked = {"prefix": f"{flow_run['state_name'].lower()}-{key}", "limit": 10}
            inputs = httpx.post(f"{api.url}/flow_runs/{flow_run['id']}/input/filter", json=asked, timeout=30).json()
            if shown := [i["value"] for i in inputs if i["key"].endswith("-description")]:
                return flow_run, json.loads(shown[0])
        time.sleep(0.2)
    raise AssertionError(f"nobody was asked: {run.communicate()[0] if run.poll() is not None else 'it still runs'!r}")


def answer(api: Api, flow_run: dict[str, Any], **values: Any) -> httpx.Response:
    return httpx.post(f"{api.url}/flow_runs/{flow_run['id']}/resume", json={"run_input": values}, timeout=30)


def newest(workspace: Path) -> Path:
    return max((workspace / "runs").iterdir(), key=lambda path: path.stat().st_mtime)


def versions(workspace: Path) -> int:
    from mlflow import MlflowClient

    return len(MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}").search_model_versions("name='vibethinker-micro'"))


def mlflow_status(workspace: Path, run_id: str) -> str:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    wanted = f"tags.`vibethinker.run_id` = '{run_id}' and tags.`vibethinker.kind` = 'run'"
    [run] = client.search_runs(experiments, wanted)
    return run.info.status


def events(api: Api, name: str) -> list[dict[str, Any]]:
    found: Any = api.filter("events", filter={"event": {"name": [name]}, "related": {"id": []}})
    return found["events"]


def test_a_run_asks_before_the_signal_phase_and_ends_by_a_no(api: Api, micro: Finished, slack: Slack) -> None:
    slack.status = 500  # what Slack says is no matter of the run's
    environ = {**api.environ, "SLACK_WEBHOOK_URL": slack.url}
    with started(environ, *command(micro.workspace, "0.00006", *ALL)) as run:
        flow_run, shown = waiting(api, run, "signal-0")
        folder = newest(micro.workspace)
        # What was made is measured before somebody is asked, and nothing of the next phase has begun.
        states = {s["id"]: s["state"] for s in json.loads((folder / "summary.json").read_text())["steps"]}
        assert {states[i] for i in states if i.startswith("evaluation-") and "signal" not in i} == {"cached"}
        assert {states["signal-1"], states["signal-2"], states["report"]} == {"waiting"}
        assert shown.index("| fusion | algebra | ") < shown.index("| base | algebra | ")  # what goes on comes first
        for part in ("| model | problems | avg@2 | pass@2 |", "| fusion | code | ", "| specialist-code | code | ",
                     "Estimate for signal-2: ", str(folder / "report.html")):  # fmt: skip
            assert part in shown
        [post] = slack.posts
        assert f"{folder.name} waits for approval: signal" in post["blocks"][0]["text"]["text"]
        assert f"/runs/flow-run/{flow_run['id']}|Prefect>" in slack.texts()[0]
        assert answer(api, flow_run, approve="perhaps").json()["status"] != "ACCEPT"
        answer(api, flow_run, approve=False, by="Bob", note="No better than the base")
        printed = run.communicate(timeout=300)[0]
        assert run.returncode == 1
    assert f"signal-2: waits for approval in http://127.0.0.1:{httpx.URL(api.url).port}/runs/flow-run/" in printed
    assert "The signal phase was rejected by Bob (No better than the base): start the run again" in printed
    assert "Traceback" not in printed
    state = api.flow_run(folder.name)["state"]
    assert (state["type"], state["name"]) == ("FAILED", "Rejected")
    assert state["message"].startswith("The signal phase was rejected by Bob")
    logs = api.filter("logs", logs={"flow_run_id": {"any_": [flow_run["id"]]}}, limit=200)
    assert "Traceback" not in json.dumps(logs)
    assert "Slack did not take the message" in json.dumps(logs)
    assert f"{folder.name} was not approved" in slack.texts()[1]


def test_a_run_asks_before_its_model_is_registered_and_goes_on_by_a_yes(api: Api, micro: Finished) -> None:
    config = {"approvals": {"promotion": True}}
    script = f"import sys; from flows.pipeline import pipeline; pipeline('micro', {config}, sys.argv[1])"
    with started(api.environ, "-c", script, str(micro.workspace)) as run:
        flow_run, shown = waiting(api, run, "promotion-0")
        assert "| signal-2 |" in shown
        folder = newest(micro.workspace)
        assert '"op": "model"' not in (folder / "tracking.jsonl").read_text()
        answer(api, flow_run, approve=True, by="Ada")
        printed = run.communicate(timeout=300)[0]
        assert run.returncode == 0, printed
    [ended] = api.filter("flow_runs", flow_runs={"id": {"any_": [flow_run["id"]]}})
    assert ended["state_type"] == "COMPLETED"
    assert '"op": "model"' in (folder / "tracking.jsonl").read_text()
    [answered] = json.loads((folder / "approvals.json").read_text())["promotion"]
    assert (answered["approve"], answered["by"]) == (True, "Ada")


@pytest.mark.long
def test_a_run_that_is_started_again_asks_only_what_was_answered_by_no(api: Api, micro: Finished, slack: Slack) -> None:
    environ = {**api.environ, "SLACK_WEBHOOK_URL": slack.url}
    before = versions(micro.workspace)
    words = command(micro.workspace, "0.00008", *ALL, "--set", "notifications.quiet_seconds=0")
    with started(environ, *words) as run:
        answer(api, waiting(api, run, "signal-0")[0], approve=True)
        answer(api, waiting(api, run, "promotion-0")[0], approve=False)
        assert "The registration of the final model in MLflow was rejected" in run.communicate(timeout=300)[0]
        assert run.returncode == 1
    assert versions(micro.workspace) == before
    with started(environ, *words) as run:
        answer(api, waiting(api, run, "promotion-1")[0], approve=True)
        printed = run.communicate(timeout=300)[0]
        assert run.returncode == 0, printed
    assert versions(micro.workspace) == before + 1
    folder = newest(micro.workspace)
    titles = [post["blocks"][0]["text"]["text"].removeprefix(f"{folder.name} ") for post in slack.posts]
    waits = "waits for approval: "
    assert titles == [f"{waits}signal", f"{waits}promotion", "was not approved", f"{waits}promotion"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_deployment_s_run_frees_its_worker_and_goes_on_by_a_yes(
    server: Api, micro: Finished, slack: Slack, tmp_path: Path
) -> None:
    automations.register("there-is-none", lost_seconds=LOST_SECONDS)
    stages = yaml.safe_load((micro.folder / "config.yaml").read_text())["signal"]["stages"]
    stages[-1]["overrides"] = {"learning_rate": 0.00009}
    config = {
        "approvals": {"signal": True},
        "signal": {"stages": stages},
        "notifications": {"quiet_seconds": 0, "success": True},
    }
    heard = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30", "SLACK_WEBHOOK_URL": slack.url}
    with worker(server, tmp_path / "worker", **heard) as process:
        id = deployment_run(server, "micro", workspace=str(micro.workspace), config=config)
        flow_run, _ = waiting(server, process, "signal-0")
        assert (flow_run["id"], flow_run["state_name"]) == (id, "Suspended")
        folder = newest(micro.workspace)
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["status"] == "suspended"
        assert {step["state"] for step in summary["steps"]} == {"cached", "waiting"}
        assert mlflow_status(micro.workspace, folder.name) == "SCHEDULED"
        until(lambda: not psutil.Process(process.pid).children(recursive=True), 60)
        until(lambda: id in json.dumps(events(server, automations.LEFT)), 60)  # which the server writes every 5 s
        time.sleep(LOST_SECONDS + 10)  # no heartbeat is missed
        assert state_of(server, id) == "PAUSED"
        answer(server, flow_run, approve=True, by="Ada")
        until(lambda: state_of(server, id) not in ("SCHEDULED", "PENDING", "RUNNING"), 240)
        assert state_of(server, id) == "COMPLETED"
        slack.until(2)
    assert newest(micro.workspace) == folder  # the same run
    assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
    assert mlflow_status(micro.workspace, folder.name) == "FINISHED"
    titles = [post["blocks"][0]["text"]["text"].removeprefix(f"{folder.name} ") for post in slack.posts]
    assert titles == ["waits for approval: signal", "is finished"]


@pytest.mark.long
def test_a_question_that_nobody_answers_in_time_ends_the_run(api: Api, micro: Finished) -> None:
    words = ("--set", "approvals.signal=true", "--set", "approvals.hours=0.001")
    with started(api.environ, *command(micro.workspace, "0.00007", *words)) as run:
        printed = run.communicate(timeout=180)[0]
        assert run.returncode == 1
    assert "Nobody approved the signal phase within 0.001 h (approvals.hours)" in printed
    assert "Traceback" not in printed
    state = api.flow_run(newest(micro.workspace).name)["state"]
    assert (state["type"], state["name"]) == ("FAILED", "Rejected")


def test_approvals_on_a_server_that_ends_with_the_run_are_refused_before_anything_starts(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environ["PREFECT_HOME"] = str(tmp_path / "no profile")
    workspace = tmp_path / "workspace"
    words = ["run", "--profile", "micro", "--workspace", str(workspace), *ALL]
    done = vibethinker(*words, environ=environ)
    assert done.returncode == 2
    assert "approvals.signal needs a Prefect server that people can open" in done.stderr
    assert "vibethinker up" in done.stderr
    assert not (workspace / "runs").exists()
    assert not (workspace / "prefect").exists()
