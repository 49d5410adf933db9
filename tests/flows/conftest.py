"""One Prefect server a test session, and one run of the whole recipe that many tests look at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import automations
from flows.server import Server, environment
from tests.leaks import PLANTED, Listening

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Api:
    """A running Prefect server."""

    url: str
    environ: Mapping[str, str]

    def filter(self, what: str, **body: Any) -> list[dict[str, Any]]:
        """Rows of a filter endpoint."""
        answer = httpx.post(f"{self.url}/{what}/filter", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def task_runs(self, flow_run_id: str) -> dict[str, dict[str, Any]]:
        """Name → task run of a flow run."""
        runs = self.filter("task_runs", flow_runs={"id": {"any_": [flow_run_id]}}, limit=200)
        return {run["name"]: run for run in runs}

    def flow_run(self, name: str) -> dict[str, Any]:
        """The flow run of this name."""
        [run] = self.filter("flow_runs", flow_runs={"name": {"any_": [name]}})
        return run


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    home = tmp_path_factory.mktemp("prefect")
    server = Server(home, home / "server.log")
    try:
        server.wait()
        yield Api(server.url, {**os.environ, **environment(home), "PREFECT_API_URL": server.url})
    finally:
        server.close()


@pytest.fixture
def server(api: Api) -> Iterator[Api]:
    """The session's server as this process's own; afterwards without automations, which would meet other tests."""
    with temporary_settings({PREFECT_API_URL: api.url}):
        try:
            yield api
        finally:
            for one in registered(api):
                httpx.delete(f"{api.url}/automations/{one['id']}")


def registered(api: Api) -> list[dict[str, object]]:
    ours = (automations.CRASH, automations.POST)
    return [one for one in api.filter("automations") if one["name"] in ours]


def vibethinker(*arguments: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [sys.executable, "-m", "vibethinker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ, cwd=ROOT, check=False)


@dataclass(frozen=True)
class Finished:
    """A finished run of the recipe."""

    workspace: Path
    folder: Path
    output: str
    told: str  # on stderr
    listened: frozenset[str]  # addresses on which its processes and Prefect's server listened

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    @property
    def plan(self) -> dict[str, Any]:
        return json.loads((self.folder / "plan.json").read_text())


@pytest.fixture(scope="session")
def micro(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The micro profile, run once by the command line, with secrets in its environment."""
    workspace = tmp_path_factory.mktemp("micro workspace für 数学")
    with Listening() as listening:
        environ = {**api.environ, **PLANTED}
        done = vibethinker("run", "--profile", "micro", "--workspace", str(workspace), environ=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = (workspace / "runs").iterdir()
    return Finished(workspace, folder, done.stdout, done.stderr, frozenset(listening.addresses))
