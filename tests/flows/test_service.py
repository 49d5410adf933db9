"""`vibethinker up` and `down`, and what runs under them: real servers and a real worker, used as a team uses them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from flows import parts, processes
from tests.flows.conftest import ROOT, Api, vibethinker

pytestmark = pytest.mark.service

# The recipe with as little as it can do with.
SMALL: dict[str, Any] = {
    "domains": ["algebra"],
    "evaluation": {"samples": 1, "k": [1]},
    "signal": {"stages": [{"name": "math", "context": 96, "steps": 2, "reward": "math"}]},
}
QUICK = {"env": {"VIBETHINKER_PRELOAD": "json"}}  # for a run that fails before it needs a trainer


def until(true: Callable[[], Any], seconds: float) -> Any:
    limit = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < limit, "it took too long"
        time.sleep(0.2)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alive(them: Iterable[psutil.Process]) -> list[psutil.Process]:
    return [process for process in them if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def ports() -> list[str]:
    return ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]


@dataclass(frozen=True)
class Service:
    """What `up` has started in a workspace, and what it printed."""

    workspace: Path
    environ: Mapping[str, str]
    output: str

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.workspace / "service" / "state.json").read_text())

    @property
    def api(self) -> Api:
        return Api(self.state["prefect"]["url"], self.environ)

    def command(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return vibethinker(*words, "--workspace", str(self.workspace), environ={**self.environ, **environ})

    def marked(self) -> dict[int, psutil.Process]:
        """All its processes, flow runs and their steps among them."""
        return {one.pid: psutil.Process(one.pid) for one in processes.marked(self.state["mark"])}

    def processes_of(self, flow_run: str) -> list[psutil.Process]:
        """Of a flow run: its engine, the host of its steps, and those."""
        found = []
        for process in self.marked().values():
            with suppress(psutil.Error):
                if process.environ().get("PREFECT__FLOW_RUN_ID") == flow_run:
                    found.append(process)
        return found

    def post(self, deployment: str, **body: Any) -> httpx.Response:
        [found] = self.api.filter("deployments", deployments={"name": {"any_": [deployment]}})
        for _ in range(10):
            answer = httpx.post(f"{self.api.url}/deployments/{found['id']}/create_flow_run", json=body, timeout=30)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:  # SQLite is locked; Prefect's client asks again
                break
            time.sleep(1)
        return answer

    def start(self, config: Mapping[str, Any], **body: Any) -> str:
        """The id of a new run of the deployment `micro`."""
        answer = self.post("micro", parameters={"profile": "micro", "config": config}, **body)
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def flow_run(self, id: str) -> dict[str, Any]:
        return httpx.get(f"{self.api.url}/flow_runs/{id}", timeout=30).json()

    def ended(self, id: str, seconds: float) -> dict[str, Any]:
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        until(lambda: self.flow_run(id)["state_type"] in final, seconds)
        return self.flow_run(id)

    def logs(self, flow_run: str) -> str:
        rows = self.api.filter("logs", logs={"flow_run_id": {"any_": [flow_run]}})
        return "\n".join(row["message"] for row in rows)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environ["PREFECT_HOME"] = str(folder / "no profile")
    workspace = folder / "workspace"
    done = vibethinker("up", *ports(), "--workspace", str(workspace), environ=environ)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        yield Service(workspace, environ, done.stdout)
    finally:
        vibethinker("down", "--workspace", str(workspace), environ=environ)


def test_everything_is_there_when_up_says_so(service: Service) -> None:
    prefect, mlflow = service.state["prefect"]["url"], service.state["mlflow"]["url"]
    assert f"export PREFECT_API_URL={prefect}\n" in service.output
    assert mlflow in service.output
    assert httpx.get(f"{prefect}/health").json() is True
    assert "<html" in httpx.get(prefect.removesuffix("api"), follow_redirects=True).text
    assert httpx.get(f"{mlflow}/health").text == "OK"
    [worker] = service.api.filter("work_pools/vibethinker/workers")
    assert worker["status"] == "ONLINE"
    queues = service.api.filter("work_pools/vibethinker/queues")
    assert [queue["name"] for queue in sorted(queues, key=lambda q: q["priority"])] == [
        "interactive",
        "default",
        "batch",
    ]


def test_every_deployment_is_complete_and_switched_off(service: Service) -> None:
    wanted = {one["name"]: one for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}
    found = {one["name"]: one for one in service.api.filter("deployments")}
    assert found.keys() == wanted.keys()
    for name, deployment in found.items():
        assert deployment["description"] == wanted[name]["description"]
        assert deployment["tags"] == wanted[name]["tags"]
        assert deployment["version"]
        assert deployment["work_queue_name"] == wanted[name]["work_pool"]["work_queue_name"]
        assert deployment["global_concurrency_limit"]["limit"] == wanted[name]["concurrency_limit"]["limit"]
        assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
        assert [schedule["active"] for schedule in deployment["schedules"]] == [False]
        assert deployment["job_variables"]["env"]["DO_NOT_TRACK"] == "1"
        assert deployment["pull_steps"] == [{"flows.clone.enter": {}}]
        assert all(p["description"] for p in deployment["parameter_openapi_schema"]["properties"].values())


def test_nothing_listens_beyond_loopback(service: Service) -> None:
    listening = [
        connection.laddr
        for process in service.marked().values()
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening
    assert {address.ip for address in listening} <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"profile": "tinny"}, "'tinny' is not one of"),
        ({"config": {"signl": {}}}, "'signl' was unexpected"),
        ({"config": {"signal": {"objective": {"group_size": 0}}}}, "0 is less than the minimum"),
        ({"config": {"deterministic": "yes"}}, "not of type 'boolean'"),
        ({"refresh": ["Fusion!"]}, "does not match"),
    ],
)
def test_wrong_parameters_are_refused_before_there_is_a_run(service: Service, parameters: Any, said: str) -> None:
    answer = service.post("micro", parameters=parameters)
    assert answer.status_code == 409
    assert said in answer.json()["detail"]


def test_up_again_changes_nothing(service: Service) -> None:
    before = service.state
    again = service.command("up", PREFECT_API_URL=before["prefect"]["url"])  # as `up` says to set it
    assert again.returncode == 0, again.stderr
    assert "Everything runs already" in again.stdout
    assert service.state == before


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
    finally:  # which removes the runs that they have begun to plan
        for schedule in deployment()["schedules"]:
            ask("PATCH", f"{of}/{schedule['id']}", {"active": False})


def test_a_port_in_use_is_one_sentence(service: Service, tmp_path: Path) -> None:
    taken = service.state["prefect"]["url"].split(":")[2].removesuffix("/api")
    refused = vibethinker(
        "up", "--prefect-port", taken, "--workspace", str(tmp_path / "other"), environ=service.environ
    )
    assert refused.returncode == 2
    assert refused.stderr == (
        f"Error: Port {taken} can't be used (Address already in use): name another one by --prefect-port, or stop what "
        "uses it.\n"
    )


def test_a_run_is_cancelled_and_one_that_fails_says_why(service: Service, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"nothing": "of use"}\n')
    sources = {"train": [{"path": str(bad)}], "evaluation": [{"path": str(bad), "name": "held-out"}]}
    failing = service.start({**SMALL, "data": {"source": "files", **sources}}, job_variables=QUICK)
    cancelled = service.start(SMALL)
    until(lambda: "RUNNING" in {t["state_type"] for t in service.api.task_runs(cancelled).values()}, 120)
    assert any("vibethinker.worker" in process.cmdline() for process in service.processes_of(cancelled))
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    httpx.post(f"{service.api.url}/flow_runs/{cancelled}/set_state", json=body, timeout=30)
    until(lambda: not service.processes_of(cancelled), 40)
    assert service.ended(cancelled, 20)["state_type"] == "CANCELLED"
    failed = service.ended(failing, 120)
    assert failed["state_type"] == "FAILED"
    assert "can't be used" in failed["state"]["message"]
    logs = service.logs(failing)
    assert "can't be used" in logs
    assert "Traceback" not in logs


def test_a_deployment_runs_to_completion(service: Service) -> None:
    words = ["deployment", "run", "vibethinker/micro", "--param", f"config={json.dumps(SMALL)}"]
    started = subprocess.run(
        [sys.executable, "-m", "prefect", *words],
        env={**service.environ, "PREFECT_API_URL": service.api.url}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert started.returncode == 0, started.stdout + started.stderr
    [flow_run] = service.api.filter("flow_runs", sort="EXPECTED_START_TIME_DESC", limit=1)
    ended = service.ended(flow_run["id"], 300)
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
    [folder] = (service.workspace / "runs").glob(f"{ended['name']}")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert set(ended["tags"]) == {"vibethinker", "cpu", "profile:micro", "model:embedded"}
    tasks = service.api.task_runs(ended["id"])
    assert tasks.keys() == {step["id"] for step in summary["steps"]}
    assert "2/2" in service.logs(ended["id"])  # progress of the stage
    mlflow = service.state["mlflow"]["url"]
    body = {"experiment_ids": ["1"], "filter": f"tags.`mlflow.runName` = '{ended['name']}'"}
    runs = httpx.post(f"{mlflow}/api/2.0/mlflow/runs/search", json=body, timeout=30).json()["runs"]
    assert [run["info"]["status"] for run in runs] == ["FINISHED"]


def test_another_workspace_uses_the_servers_that_the_environment_names(service: Service, tmp_path: Path) -> None:
    mlflow = service.state["mlflow"]["url"]
    environ = {
        **service.environ,
        "PREFECT_API_URL": service.api.url,
        "MLFLOW_TRACKING_URI": mlflow.replace("//", "//someone:hush@"),
    }
    other = Service(tmp_path / "other", environ, "")
    started = other.command("up")
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        assert other.state["prefect"] == {"url": service.api.url, "process": None, "ours": False}
        assert other.state["mlflow"] == {"url": mlflow, "process": None, "ours": False}
        assert "hush" not in started.stdout + started.stderr
        worker = psutil.Process(other.state["worker"]["process"]["pid"])
        assert worker.environ()["MLFLOW_TRACKING_URI"] == environ["MLFLOW_TRACKING_URI"]
        assert {pid for pid, p in other.marked().items() if p.ppid() not in other.marked()} == {worker.pid}
    finally:
        stopped = other.command("down")
    assert "goes on" in stopped.stdout
    assert httpx.get(f"{service.api.url}/health").json() is True


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
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


def test_down_stops_all_that_up_started(service: Service) -> None:
    before, marked = service.state, service.marked()
    mlflow = before["mlflow"]["process"]["pid"]
    prefect = before["prefect"]["url"]
    assert not parts.is_ours(parts.Part(prefect, None, True), prefect)  # somebody else's answers where we once were
    for process in psutil.Process(mlflow).children(recursive=True):
        process.kill()
    psutil.Process(mlflow).kill()
    stopped = service.command("down")
    assert stopped.returncode == 0, stopped.stderr
    assert "MLflow had ended already." in stopped.stdout
    assert not alive(marked.values())
    assert "Nothing runs" in service.command("down").stdout
    state = parts.State.read(service.workspace / "service")
    for name in ("prefect", "mlflow"):  # still ours, though the shell's variables name them
        part, url = state.parts[name], before[name]["url"]
        assert part == parts.Part(url, None, True)
        assert parts.is_ours(part, url)
        assert not parts.is_ours(part, url.replace("127.0.0.1", "127.0.0.2"))
