"""`vibethinker up` and `down`, and what runs under them: real servers and a real worker, used as a team uses them."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from flows import automations, parts
from tests.flows import losing, telling
from tests.flows.conftest import ROOT, vibethinker
from tests.flows.serving import QUICK, SMALL, Service, alive, started
from tests.flows.working import deployment_run
from tests.leaks import PLANTED, WORDS, leaks
from tests.slack import Slack
from tests.waiting import until

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Slack]]:
    """What `up` starts, and the Slack of all its runs."""
    with started(tmp_path_factory.mktemp("service")) as them:
        yield them


@pytest.fixture
def service(both: tuple[Service, Slack]) -> Service:
    return both[0]


@pytest.fixture(scope="module")
def lost(both: tuple[Service, Slack]) -> losing.Lost:
    """A run that was killed with its worker, which `up` has started again since; while its last heartbeat grows old,
    other tests go on."""
    service, _ = both
    lost = losing.lose(service)
    again = service.command("up")
    assert again.returncode == 0, again.stderr
    return lost


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


def test_a_deployment_of_micro_runs_to_completion(both: tuple[Service, Slack]) -> None:
    service, slack = both
    id = deployment_run(service.api, "micro")
    ended = service.ended(id, 400)
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
    folder = service.workspace / "runs" / ended["name"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert {step["state"] for step in summary["steps"]} == {"done"}
    assert set(ended["tags"]) == {"vibethinker", "cpu", "profile:micro", "model:embedded"}
    tasks = service.api.task_runs(ended["id"])
    assert tasks.keys() == {step["id"] for step in summary["steps"]}
    assert "2/2" in service.logs(ended["id"])  # progress of the stage
    mlflow = service.state["mlflow"]["url"]
    body = {"experiment_ids": ["1"], "filter": f"tags.`mlflow.runName` = '{ended['name']}'"}
    runs = httpx.post(f"{mlflow}/api/2.0/mlflow/runs/search", json=body, timeout=30).json()["runs"]
    assert [run["info"]["status"] for run in runs] == ["FINISHED"]
    until(lambda: not service.processes_of(id))
    assert not told_of(slack, id)  # nobody has asked to hear of success


def test_a_worker_that_was_killed_is_started_again_by_up(service: Service, lost: losing.Lost) -> None:
    assert service.state["worker"]["process"]["pid"] != lost.worker
    assert psutil.pid_exists(service.state["worker"]["process"]["pid"])


def test_a_run_is_cancelled_and_one_that_fails_says_why(service: Service, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"nothing": "of use"}\n')
    sources = {"train": [{"path": str(bad)}], "evaluation": [{"path": str(bad), "name": "held-out"}]}
    failing = service.start({**SMALL, "data": {"source": "files", **sources}}, job_variables=QUICK)
    cancelled = service.start(SMALL)
    until(lambda: "RUNNING" in {t["state_type"] for t in service.api.task_runs(cancelled).values()}, 300)
    assert any("vibethinker.worker" in process.cmdline() for process in service.processes_of(cancelled))
    body = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
    httpx.post(f"{service.api.url}/flow_runs/{cancelled}/set_state", json=body, timeout=30)
    until(lambda: not service.processes_of(cancelled), 40)
    assert service.ended(cancelled, 300)["state_type"] == "CANCELLED"
    failed = service.ended(failing, 300)
    assert failed["state_type"] == "FAILED"
    assert "can't be used" in failed["state"]["message"]
    logs = service.logs(failing)
    assert "can't be used" in logs
    assert "Traceback" not in logs


def test_a_deployment_s_run_that_fails_is_told_of_once_with_all_there_is_to_know(
    both: tuple[Service, Slack], tmp_path: Path
) -> None:
    service, slack = both
    config = {"signal": {"objective": {"learning_rate": 2e-4}}, "notifications": {"quiet_seconds": 0}}
    environ = {"VIBETHINKER_PRELOAD": telling.__name__}
    id = deployment_run(service.api, "micro", {"env": environ}, config=config)
    ended = service.ended(id, 300)
    assert ended["state_type"] == "FAILED"
    until(lambda: not service.processes_of(id))
    [post] = told_of(slack, id)
    folder = service.workspace / "runs" / ended["name"]
    resume = json.loads((folder / "state.json").read_text())["resume"]
    header, sentence, facts, log, command, links = post["blocks"]
    assert header == {"type": "header", "text": {"type": "plain_text", "text": f"{folder.name} diverged in signal-1"}}
    assert sentence["text"]["text"] == f"{telling.FAILURE}, with {PLACES}."
    cells = dict(cell["text"].split("\n") for cell in facts["fields"])
    assert cells["*Step*"] == "signal-1 (stage math)"
    assert cells["*Reason*"] == "diverged"
    assert log["text"]["text"].endswith(f"DivergedError: {telling.FAILURE}, with {PLACES}.\n```")
    assert command["text"]["text"] == f"Go on by:\n```\n{resume}\n```"
    assert f"--config {folder / 'config.yaml'}" in resume
    page = service.api.url.removesuffix("/api")
    for link in (f"<{page}/runs/flow-run/{id}|Prefect>", f"<{service.state['mlflow']['url']}/#/", "report.html"):
        assert link in links["elements"][0]["text"]
    assert {block["type"] for block in (sentence, facts, log, command)} == {"section"}
    assert all(part in post["text"] for part in (telling.FAILURE, resume, page))  # for where blocks aren't shown
    summary = json.loads((folder / "summary.json").read_text())
    assert f"signal-1: signal-1 is about to fail with {PLACES}" in summary["warnings"]
    assert f"the last words are {PLACES}\n" in (folder / "logs" / "signal-1.log").read_text()


def test_a_run_that_was_lost_with_its_worker_is_told_of_once_and_the_next_one_goes_on(
    both: tuple[Service, Slack], lost: losing.Lost
) -> None:
    service, slack = both
    assert service.ended(lost.id, 3 * losing.LOST_SECONDS)["state_type"] == "CRASHED"
    [post] = until(lambda: told_of(slack, lost.id), 60)
    assert automations.LOST in post["text"]
    assert "prefect deployment run 'vibethinker/micro'" in html.unescape(post["text"])
    folder = service.workspace / "runs" / lost.name
    planned = json.loads(service.command("plan", "--config", str(folder / "config.yaml"), "--json").stdout)
    [step] = [step for step in planned["steps"] if step["id"] == "signal-1"]
    assert step["state"] == "resumable" and 1 <= step["resumes_after"] <= lost.saved
    ended = service.ended(service.start(losing.CONFIG), 300)
    assert ended["state_type"] == "COMPLETED", ended["state"]["message"]
    assert ended["name"] == lost.name  # one run, which went on
    assert losing.computed(folder) == list(range(1, losing.STEPS + 1))
    assert told_of(slack, lost.id) == [post]


PLACES = " ".join(["[hidden]"] * len(PLANTED))


def told_of(slack: Slack, flow_run: str) -> list[dict[str, Any]]:
    """The messages about a flow run."""
    return [post for post in slack.posts if f"/runs/flow-run/{flow_run}" in post["text"]]


def test_no_secret_is_in_anything_that_the_service_and_its_runs_leave_or_post(
    both: tuple[Service, Slack], tmp_path: Path
) -> None:
    service, slack = both
    (tmp_path / "posted").write_text("\n".join(slack.texts()))
    (tmp_path / "printed").write_text(service.output)
    words = (*WORDS, slack.address, "hook-of-the-test")
    for folder in (tmp_path, service.workspace):
        assert not list(leaks(folder, words))
    found = {Path(line.partition(": ")[0]).name for line in leaks(service.workspace, (telling.FAILURE,))}
    assert {"prefect.db", "worker.log", "summary.json", "signal-1.log", "report.html"} <= found, "it is looked at"


def test_another_workspace_uses_the_servers_that_the_environment_names(service: Service, tmp_path: Path) -> None:
    mlflow = service.state["mlflow"]["url"]
    environ = {
        **service.environ,
        "PREFECT_API_URL": service.api.url,
        "MLFLOW_TRACKING_URI": mlflow.replace("//", "//someone:hush@"),
    }
    other = Service(tmp_path / "other", environ)
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
