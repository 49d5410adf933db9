"""What outlives the parts of a service that end, are stopped or upgraded: schedules, runs, and what runs have saved."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient

from tests.flows.conftest import ROOT
from tests.flows.saving import saving
from tests.flows.serving import SMALL, Service, alive, started
from tests.flows.working import PREFECT
from tests.waiting import until

pytestmark = [pytest.mark.service, pytest.mark.long]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with started(tmp_path_factory.mktemp("service")) as (service, _):
        yield service


def test_an_upgrade_leaves_schedules_as_the_team_has_set_them(service: Service) -> None:
    url = service.api.url

    def deployment() -> dict[str, Any]:
        [found] = service.api.filter("deployments", deployments={"name": {"any_": ["vibethinker-3b"]}})
        return found

    def ask(method: str, address: str, body: Any) -> None:  # Prefect refuses with 503 what SQLite is too busy for
        until(lambda: httpx.request(method, address, json=body, timeout=30).is_success, 30)

    of = f"{url}/deployments/{deployment()['id']}/schedules"
    [ours] = deployment()["schedules"]
    ask("PATCH", f"{of}/{ours['id']}", {"active": True})
    theirs = {"schedule": {"cron": "0 4 * * *", "timezone": "UTC"}, "active": True, "slug": "theirs"}
    ask("POST", of, [theirs])
    name = "variables/name/vibethinker_deployed"
    ask("PATCH", f"{url}/{name}", {"value": "another version"})
    try:
        upgraded = service.command("up")
        assert upgraded.returncode == 0, upgraded.stderr
        assert "9 deployments" in upgraded.stdout
        assert httpx.get(f"{url}/{name}", timeout=30).json()["value"] != "another version"
        schedules = {schedule["schedule"]["cron"]: schedule["active"] for schedule in deployment()["schedules"]}
        assert schedules == {ours["schedule"]["cron"]: True, "0 4 * * *": True}
        words = [*PREFECT, "deploy", "--name", "vibethinker-3b"]
        by_hand = subprocess.run(words, env=dict(service.api.environ), cwd=ROOT, capture_output=True, text=True)
        assert by_hand.returncode == 0, by_hand.stdout + by_hand.stderr
        assert {one["schedule"]["cron"]: one["active"] for one in deployment()["schedules"]} == schedules
    finally:  # which removes the runs that they have begun to plan
        for schedule in deployment()["schedules"]:
            ask("PATCH", f"{of}/{schedule['id']}", {"active": False})


def test_a_run_survives_its_server_and_up_starts_that_alone(service: Service) -> None:
    stage = {"name": "math", "context": 96, "steps": 120, "reward": "math"}
    config = {**SMALL, "signal": {"objective": {"learning_rate": 1e-6}, "stages": [stage]}}
    id, before = service.start(config), service.state
    until(lambda: "signal-1" in service.api.task_runs(id), 200)
    os.kill(before["prefect"]["process"]["pid"], signal.SIGKILL)
    again = service.command("up")
    assert again.returncode == 0, again.stderr
    assert service.state["prefect"]["url"] == before["prefect"]["url"]
    assert {name for name in before if before[name] != service.state[name]} == {"prefect"}
    assert service.ended(id, 300)["state_type"] == "COMPLETED"


def test_a_worker_that_is_told_to_stop_lets_runs_save_and_up_starts_it_again(service: Service) -> None:
    stage = {"name": "math", "context": 96, "steps": 5000, "reward": "math"}
    config = {**SMALL, "seed": 8, "signal": {"objective": {"learning_rate": 1e-6}, "stages": [stage]}}
    config["execution"] = {"checkpoints": {"seconds": 3600, "every": 10000}}  # none but the one at the end
    id, before = service.start(config), service.state
    until(lambda: any(f.stat().st_size for f in service.workspace.glob("staging/signal-1-*/metrics.jsonl")), 300)
    assert not list(service.workspace.glob("checkpoints/signal-1/*/updates/*/manifest.json"))
    worker, its = psutil.Process(service.state["worker"]["process"]["pid"]), service.processes_of(id)
    worker.terminate()
    until(lambda: not alive([worker, *its]), 90)
    assert list(service.workspace.glob("checkpoints/signal-1/*/updates/*/manifest.json"))
    assert service.flow_run(id)["state_type"] == "CRASHED"
    again = service.command("up")
    assert again.returncode == 0, again.stderr
    assert {name for name in before if before[name] != service.state[name]} == {"worker"}


def test_down_ends_runs_that_have_lost_their_worker(service: Service) -> None:
    id = service.start({**SMALL, "seed": 7})
    until(lambda: "RUNNING" in {t["state_type"] for t in service.api.task_runs(id).values()}, 200)
    psutil.Process(service.state["worker"]["process"]["pid"]).kill()
    left = service.processes_of(id)
    assert left
    stopped = service.command("down")
    assert stopped.returncode == 0, stopped.stderr
    assert "The worker had ended already." in stopped.stdout
    assert not alive(left)
    before = service.state
    assert "Nothing runs" in service.command("down").stdout
    prefect, mlflow = before["prefect"]["url"], before["mlflow"]["url"]
    again = service.command("up", PREFECT_API_URL=prefect, MLFLOW_TRACKING_URI=mlflow)  # as in the shell of before
    assert again.returncode == 0, again.stderr
    assert f"export PREFECT_API_URL={prefect}\n" in again.stdout
    assert all(service.state[name]["process"] for name in ("prefect", "mlflow", "worker"))


def test_down_lets_a_run_save_and_the_next_in_line_wait(service: Service, tmp_path: Path) -> None:
    with SyncPrefectClient(service.api.url) as client:
        deployment = client.create_deployment(
            client.create_flow(saving), "saving", entrypoint="tests/flows/saving.py:saving", path=str(ROOT),
            work_pool_name="vibethinker", pull_steps=[{"flows.clone.enter": {}}], enforce_parameter_schema=False,
            concurrency_limit=1, concurrency_options={"collision_strategy": "ENQUEUE"},
        )  # fmt: skip
        first, second = (tmp_path / "first", tmp_path / "second")
        for folder in (first, second):
            folder.mkdir()
            parameters = {"folder": str(folder), "seconds": 30}
            client.create_flow_run_from_deployment(deployment, parameters=parameters)
            until(lambda: (first / "begun").exists(), 60)
        stopped = service.command("down")
    assert (first / "saved").exists() and not (second / "begun").exists()
    assert "save what they have" in stopped.stdout and "killed" not in stopped.stdout, stopped.stdout
