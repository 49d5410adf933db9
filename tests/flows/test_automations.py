"""The server's part: the webhook's block, and runs whose process can't tell of its end."""

from __future__ import annotations

import html
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from click.testing import CliRunner
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from flows import automations
from flows.notify import notify
from tests.flows import losing
from tests.flows.conftest import Api, registered
from tests.flows.working import PREFECT, deployment_run, state_of, worker
from tests.slack import Slack
from tests.waiting import until
from vibethinker import doctor
from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.operations import Notifications

pytestmark = pytest.mark.service

STUB = """
import time
from prefect import flow

@flow(name="vibethinker-stub", flow_run_name="stub-of-the-test")
def stub():
    print("running", flush=True)
    time.sleep(300)

stub()
"""


LEAVING = """
import sys, time
from prefect import flow
from prefect.exceptions import Pause
from flows import approvals

@flow(name="vibethinker-stub", flow_run_name="{name}")
def stub(name):
    time.sleep(2)  # so that its heartbeat is first
    if name == "leaves-in-words":
        approvals.left(Pause, Pause(), None)
    raise Pause

for name in sys.argv[1:]:
    try:
        stub(name)
    except Pause:
        pass
"""


def test_setup_keeps_the_webhook_and_registers_once(server: Api, slack: Slack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWN_WEBHOOK", slack.url)
    monkeypatch.delenv("SLACK_WEBHOOK_URL", raising=False)
    for _ in range(2):
        done = CliRunner().invoke(notify, ["setup", "--webhook-variable", "OWN_WEBHOOK", "--block", "of-the-test"])
        assert done.exit_code == 0, done.output
        assert "hook-of-the-test" not in done.output
    assert sorted(str(one["name"]) for one in registered(server)) == [automations.CRASH, automations.POST]
    blocks = httpx.post(f"{server.url}/block_documents/filter", json={}).text
    assert "of-the-test" in blocks
    assert "hook-of-the-test" not in blocks
    monkeypatch.setenv("PREFECT_API_URL", server.url)
    monkeypatch.setattr(doctor, "Notifications", lambda: Notifications(slack_block="of-the-test"))
    assert (doctor.slack().state, doctor.slack().text) == ("ok", "a webhook in Prefect's block of-the-test")
    monkeypatch.setattr(doctor, "Notifications", lambda: Notifications(slack_block="there-is-none"))
    assert doctor.slack().state == "warning"
    told = CliRunner().invoke(notify, ["test", "--block", "of-the-test"])
    assert told.exit_code == 0, told.output
    assert "vibethinker can be heard" in slack.texts()[0]
    slack.status = 500
    told = CliRunner().invoke(notify, ["test", "--block", "of-the-test"])
    assert isinstance(told.exception, InfrastructureError)
    assert "status 500" in str(told.exception)
    assert "hook-of-the-test" not in str(told.exception)


@pytest.mark.parametrize("value", [None, "no address"])
def test_setup_without_an_address_is_refused_without_showing_it(
    server: Api, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("OWN_WEBHOOK", raising=False)
    if value:
        monkeypatch.setenv("OWN_WEBHOOK", value)
    done = CliRunner().invoke(notify, ["setup", "--webhook-variable", "OWN_WEBHOOK"])
    assert isinstance(done.exception, ConfigurationError)
    assert "OWN_WEBHOOK" in str(done.exception)
    assert "no address" not in str(done.exception).replace("is no address", "")


def test_setup_without_a_server_names_the_mend(slack: Slack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACK_WEBHOOK_URL", slack.url)
    with temporary_settings({PREFECT_API_URL: None}):
        done = CliRunner().invoke(notify, ["setup"])
    assert isinstance(done.exception, ConfigurationError)
    assert "vibethinker up" in str(done.exception)


def test_without_a_webhook_runs_are_crashed_and_nobody_is_told(server: Api) -> None:
    assert automations.register("there-is-none") == [automations.CRASH]


def test_what_is_registered_again_waits_on_and_is_its_keeper_s(server: Api, slack: Slack) -> None:
    def them() -> dict[str, dict[str, Any]]:
        return {one["name"]: one for one in server.filter("automations")}

    def told(automation: dict[str, Any]) -> tuple[Any, ...]:  # by a trigger's id the server keeps what it waits for
        return automation["trigger"]["id"], automation["trigger"]["within"], automation["enabled"]

    automations.save_webhook(slack.url, "of-the-test")
    automations.register("of-the-test", lost_seconds=40)
    before = them()
    httpx.patch(f"{server.url}/automations/{before[automations.POST]['id']}", json={"enabled": False})
    automations.register("of-the-test")
    assert told(them()[automations.CRASH]) == told(before[automations.CRASH])
    assert told(them()[automations.POST]) == (*told(before[automations.POST])[:2], False)
    automations.register("of-the-test", lost_seconds=50)
    crash, post = them()[automations.CRASH], them()[automations.POST]
    assert told(crash)[1:] == (50, True)
    assert "for 50 s" in crash["actions"][0]["message"]
    assert told(post) == (*told(before[automations.POST])[:2], False)


def test_a_run_whose_machine_is_gone_crashes_and_is_told_of_once(server: Api, slack: Slack) -> None:
    automations.save_webhook(slack.url, "of-the-test")
    automations.register("of-the-test", lost_seconds=10)
    # It sends one heartbeat at its start and is killed long before the next.
    environ = {**server.environ, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    process = subprocess.Popen([sys.executable, "-c", STUB], env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "running\n"
    flow_run = server.flow_run("stub-of-the-test")
    heartbeat = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "related": {"id": []}}
    until(lambda: flow_run["id"] in json.dumps(server.filter("events", filter=heartbeat)))
    process.kill()
    process.wait()
    until(lambda: server.flow_run("stub-of-the-test")["state_type"] == "CRASHED")
    [post] = slack.until(1)
    assert "stub-of-the-test crashed" in post["text"]
    assert automations.LOST in post["text"]
    assert f"/runs/flow-run/{flow_run['id']}" in post["text"]
    assert "starting it again" in post["text"]
    time.sleep(3)
    assert len(slack.posts) == 1


def test_of_a_run_that_no_worker_could_start_the_command_is_told_that_starts_it_again(
    server: Api, slack: Slack
) -> None:
    automations.save_webhook(slack.url, "of-the-test")
    automations.register("of-the-test")
    schema = {"type": "object", "properties": {name: {} for name in ("profile", "config", "refresh", "replaced")}}
    given = {"profile": "micro", "config": {"data": {"directory": "it's <here> & `there`"}}, "refresh": ["base"]}
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow_from_name("vibethinker-stub")
        deployment = client.create_deployment(
            flow_id, "of the test", parameters={"profile": "tiny", "replaced": None}, parameter_openapi_schema=schema
        )
        flow_run = client.create_flow_run_from_deployment(deployment, parameters=given)
        client.set_flow_run_state(flow_run.id, Crashed(message="Flow run could not be submitted"), force=True)
    [post] = slack.until(1)
    [command] = [line for line in html.unescape(post["text"]).splitlines() if line.startswith("prefect ")]
    words = [*PREFECT, *shlex.split(command)[1:]]
    done = subprocess.run(words, env=dict(server.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = server.filter("flow_runs", deployments={"id": {"any_": [str(deployment)]}})
    assert [run["parameters"] for run in runs] == [given | {"replaced": None}] * 2
    assert len(slack.posts) == 1


def test_no_heartbeat_is_missed_of_a_run_whose_process_has_left_it(server: Api) -> None:
    automations.register("there-is-none", lost_seconds=10)
    environ = {**server.environ, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    subprocess.run([sys.executable, "-c", LEAVING, "leaves-in-words", "leaves-without"], env=environ, check=True)
    until(lambda: server.flow_run("leaves-without")["state_type"] == "CRASHED")
    assert server.flow_run("leaves-in-words")["state_type"] == "RUNNING"  # though its heartbeat is older


@pytest.mark.long
def test_a_flow_whose_process_alone_is_killed_is_told_of_by_its_own_hook(
    server: Api, slack: Slack, tmp_path: Path
) -> None:
    automations.save_webhook(slack.url, "of-the-test")
    automations.register("of-the-test")
    workspace = tmp_path / "workspace"
    parameters = {"workspace": str(workspace), "config": losing.CONFIG | {"notifications": {"quiet_seconds": 0}}}
    with worker(server, tmp_path / "worker", SLACK_WEBHOOK_URL=slack.url) as process:
        id = deployment_run(server, "micro", **parameters)
        until(lambda: losing.saved(workspace) > 0, 240)
        engine(process).kill()  # the worker sees it
        until(lambda: state_of(server, id) == "CRASHED", 60)
        [post] = slack.until(1)
    [folder] = (workspace / "runs").iterdir()
    assert f"{folder.name} crashed in signal-1" in post["blocks"][0]["text"]["text"]
    assert f"vibethinker run --config {folder / 'config.yaml'}" in post["text"]
    assert len(slack.posts) == 1


def engine(worker: subprocess.Popen[bytes]) -> psutil.Process:
    """The process in which a worker's flow runs: the parent of its steps' host."""
    family = psutil.Process(worker.pid).children(recursive=True)
    hosts = {p.pid for p in family if "vibethinker.worker" in p.cmdline()}
    [found] = {p.ppid() for p in family if p.pid in hosts and p.ppid() not in hosts}
    return psutil.Process(found)
