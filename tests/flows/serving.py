"""A service that `vibethinker up` has started, as a team uses it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from flows import processes
from flows.server import free_port
from tests.flows.conftest import Api, vibethinker
from tests.leaks import PLANTED
from tests.slack import Slack, listening
from tests.waiting import until

QUICK = {"env": {"VIBETHINKER_PRELOAD": "json"}}  # for a run that fails before it needs a trainer
# The recipe with as little as it can do with.
SMALL: dict[str, Any] = {
    "domains": ["algebra"],
    "evaluation": {"samples": 1, "k": [1]},
    "signal": {"stages": [{"name": "math", "context": 96, "steps": 2, "reward": "math"}]},
}
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class Service:
    """What `up` has started in a workspace, and what it printed."""

    workspace: Path
    environ: Mapping[str, str]
    output: str = ""

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.workspace / "service" / "state.json").read_text())

    @property
    def api(self) -> Api:
        url = self.state["prefect"]["url"]
        return Api(url, {**self.environ, "PREFECT_API_URL": url})

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
        """The flow run, once it has ended."""
        until(lambda: self.flow_run(id)["state_type"] in ENDS, seconds)
        return self.flow_run(id)

    def logs(self, flow_run: str) -> str:
        rows = self.api.filter("logs", logs={"flow_run_id": {"any_": [flow_run]}})
        return "\n".join(row["message"] for row in rows)


@contextmanager
def started(folder: Path) -> Iterator[tuple[Service, Slack]]:
    """A service and the Slack that it posts to, with secrets planted in its environment."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environ["PREFECT_HOME"] = str(folder / "no profile")
    workspace = folder / "workspace"
    with listening() as slack:
        environ |= PLANTED | {"SLACK_WEBHOOK_URL": slack.url}
        done = vibethinker("up", *ports(), "--workspace", str(workspace), environ=environ)
        try:
            assert done.returncode == 0, done.stdout + done.stderr
            yield Service(workspace, environ, done.stdout + done.stderr), slack
        finally:
            vibethinker("down", "--workspace", str(workspace), environ=environ)


def ports() -> list[str]:
    return ["--prefect-port", str(free_port()), "--mlflow-port", str(free_port())]


def alive(them: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that still run."""
    return [process for process in them if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
