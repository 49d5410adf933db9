"""What compose.yaml and the images run, run here without containers: both servers on PostgreSQL, and the worker."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from flows.processes import SAVE_SECONDS
from flows.server import free_port
from tests import postgres
from tests.flows.conftest import ROOT, Api
from tests.flows.working import deployment_run
from tests.leaks import Listening, beyond_loopback, leaks
from tests.waiting import until

pytestmark = [pytest.mark.service, pytest.mark.long]

PATH = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
START_SECONDS = 400


@contextmanager
def running(command: list[str], environ: dict[str, str], printed: Path) -> Iterator[subprocess.Popen[bytes]]:
    with printed.open("wb") as output:
        process = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(SAVE_SECONDS + 30)  # of the worker's script
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def of(name: str, password: str, **places: str) -> tuple[list[str], dict[str, str]]:
    """A service's command and environment as compose makes them of compose.yaml, its places changed for ones here."""
    service = yaml.safe_load((ROOT / "deployments" / "compose.yaml").read_text())["services"][name]

    def fill(text: str) -> str:
        text = re.sub(r"\$\{POSTGRES_PASSWORD:[^}]*\}", lambda _: password, text)
        while (filled := re.sub(r"\$\{\w+(?::[-?]((?:[^{}]|\$\{[^}]*\})*))?\}", r"\1", text)) != text:
            text = filled
        for old, new in places.items():
            text = text.replace(PLACES[old], new)
        return text

    environ = {key: fill(value) for key, value in service["environment"].items() if value is not None}
    return [fill(word) for word in service["command"]], environ


PLACES = {"everywhere": "0.0.0.0", "database": "@postgres:5432/", "artifacts": "/artifacts", "port": "=5000"}


def test_both_servers_run_on_postgresql(tmp_path: Path) -> None:
    if postgres.programs() is None:
        pytest.skip("PostgreSQL isn't installed: apt-get install postgresql")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    ports, at = [str(free_port()), str(free_port())], "127.0.0.1"
    with postgres.cluster("prefect", "mlflow") as made, Listening() as listening:
        command, environ = of("prefect", made.password, everywhere=at)
        environ |= {"PREFECT_SERVER_DATABASE_HOST": at, "PREFECT_SERVER_DATABASE_PORT": str(made.port)}
        environ |= {"PREFECT_HOME": str(tmp_path / "home"), "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(tmp_path)}
        words = [*command, "--port", ports[0]]
        where = {"database": f"@{at}:{made.port}/", "artifacts": str(tmp_path), "port": f"={ports[1]}"}
        tracking, its = of("mlflow", made.password, everywhere=at, **where)
        logs = tmp_path / "prefect.log", tmp_path / "mlflow.log"
        with (
            running(words, {**plain, **environ, "PATH": PATH}, logs[0]) as first,
            running(tracking, {**plain, **its, "PATH": PATH}, logs[1]) as second,
        ):
            until(lambda: httpx.get(f"http://{at}:{ports[0]}/api/health").json() is True, START_SECONDS, first, logs[0])
            until(
                lambda: httpx.get(f"http://{at}:{ports[1]}/health").status_code == 200, START_SECONDS, second, logs[1]
            )
            page = httpx.get(f"http://{at}:{ports[0]}/", follow_redirects=True)
            assert page.status_code == 200 and "html" in page.headers["content-type"], "the UI of an image of ours"
            check_tracking(f"http://{at}:{ports[1]}")
            check_leases(f"http://{at}:{ports[0]}/api", tmp_path / "home")
    assert not list(leaks(tmp_path, (made.password,)))
    assert at in listening.addresses
    assert not beyond_loopback(listening.addresses)


def check_tracking(url: str) -> None:
    """A worker's client writes; whoever comes by another name, as a page that rebinds its own, doesn't."""
    name = {"experiment_name": "vibethinker"}
    for host, answer in (("mlflow:5000", 404), ("127.0.0.1:5000", 404), ("evil.example", 403)):
        found = httpx.get(f"{url}/api/2.0/mlflow/experiments/get-by-name", params=name, headers={"Host": host})
        assert found.status_code == answer, host
    from mlflow import MlflowClient

    client = MlflowClient(url)
    run = client.create_run(client.create_experiment("vibethinker"))
    client.log_text(run.info.run_id, "kept", "note.txt")
    client.log_metric(run.info.run_id, "reward", 0.5)
    assert client.get_run(run.info.run_id).data.metrics == {"reward": 0.5}
    assert run.info.artifact_uri.startswith("mlflow-artifacts:")


def check_leases(api: str, home: Path) -> None:
    """Leases outlive the server: they are in its home."""
    httpx.post(f"{api}/v2/concurrency_limits/", json={"name": "gpu-h-0", "limit": 1}).raise_for_status()
    taken = {"slots": 1, "names": ["gpu-h-0"]}
    lease = httpx.post(f"{api}/v2/concurrency_limits/increment-with-lease", json=taken).raise_for_status().json()
    assert (home / "concurrency_leases" / f"{lease['lease_id']}.json").is_file()


def test_a_worker_s_container_registers_everything_tells_its_health_and_lets_runs_save(
    api: Api, tmp_path: Path
) -> None:
    port, printed = str(free_port()), tmp_path / "printed"
    environ = {**api.environ, "PATH": PATH, "CUDA_VISIBLE_DEVICES": "", "PREFECT_WORKER_WEBSERVER_PORT": port}
    environ["VIBETHINKER_WORKSPACE"] = str(tmp_path / "workspace")
    with Listening() as listening, running(["sh", "deployments/worker.sh"], environ, printed) as worker:
        health = f"http://127.0.0.1:{port}/health"
        until(lambda: httpx.get(health).status_code == 200 and online(api), START_SECONDS, worker, printed)
        assert {"micro", "tiny", "vibethinker-1.5b"} <= {one["name"] for one in api.filter("deployments")}
        id = deployment_run(api, "micro", profile="micro")
        until(
            lambda: "RUNNING" in {t["state_type"] for t in api.task_runs(id).values()}, START_SECONDS, worker, printed
        )
        worker.terminate()
        assert worker.wait(SAVE_SECONDS + 30) == 0, printed.read_text()
    [summary] = (tmp_path / "workspace" / "runs").glob("*/summary.json")
    assert json.loads(summary.read_text())["status"] == "interrupted", "the run itself said so, so it wasn't killed"
    assert "killed" not in printed.read_text()
    assert "127.0.0.1" in listening.addresses
    assert not beyond_loopback(listening.addresses)
    httpx.delete(f"{api.url}/work_pools/vibethinker").raise_for_status()


def online(api: Api) -> bool:
    """Whether the server has heard of the worker."""
    found = httpx.post(f"{api.url}/work_pools/vibethinker/workers/filter", json={}).raise_for_status().json()
    return [one["status"] for one in found if one["name"] == os.uname().nodename] == ["ONLINE"]
