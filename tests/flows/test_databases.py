"""Many pipelines at once lose nothing, on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from flows.server import Server, environment
from tests import postgres
from tests.flows.conftest import ROOT, Api
from tests.flows.stubs import STEPS

pytestmark = pytest.mark.service

RUNS, PROCESSES = 8, 2
ENDED_SECONDS = 60  # for states and logs on their way to the database


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    """A server on this database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("api")
        return
    if postgres.programs() is None:
        pytest.skip("PostgreSQL isn't installed: apt-get install postgresql")
    with postgres.cluster("prefect") as made, pytest.MonkeyPatch.context() as patch:
        who = f"{postgres.USER}:{quote(made.password, safe='')}"
        address = f"postgresql+asyncpg://{who}@127.0.0.1:{made.port}/prefect"
        patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", address)
        running = Server(tmp_path, tmp_path / "server.log")
        try:
            running.wait()
            yield Api(running.url, {**os.environ, **environment(tmp_path), "PREFECT_API_URL": running.url})
        finally:
            running.close()
        assert not list(tmp_path.glob("*.db"))


def test_no_run_state_or_log_of_many_pipelines_at_once_is_lost(server: Api, tmp_path: Path) -> None:
    names = [f"{os.urandom(4).hex()}-{number}" for number in range(RUNS)]
    together = tmp_path / "together"
    together.mkdir()
    command = [sys.executable, "-m", "tests.flows.stubs", str(together), str(RUNS)]
    began = time.monotonic()
    processes = [
        subprocess.Popen([*command, *names[first::PROCESSES]], env=server.environ, cwd=ROOT)
        for first in range(PROCESSES)
    ]
    assert [process.wait(timeout=240) for process in processes] == [0] * PROCESSES
    print(f"{RUNS} pipelines of {len(STEPS)} steps in {time.monotonic() - began:.1f} s")

    with httpx.Client(base_url=server.url, timeout=30) as client:
        runs = {name: server.flow_run(name) for name in names}
        assert {run["state_type"] for run in runs.values()} == {"COMPLETED"}
        spans = [(run["start_time"], run["end_time"]) for run in runs.values()]
        assert max(span[0] for span in spans) < min(span[1] for span in spans), "all ran at once"
        for name, run in runs.items():
            assert history(client, "flow_run", run["id"]) == ["PENDING", "RUNNING", "COMPLETED"]
            limit = time.monotonic() + ENDED_SECONDS
            while (lost := missing(server, client, run["id"])) and time.monotonic() < limit:
                time.sleep(0.5)
            assert not lost
            [artifact] = server.filter("artifacts", artifacts={"key": {"any_": [f"stubs-{name}"]}})
            assert artifact["data"] == f"{name} is over"


def missing(server: Api, client: httpx.Client, run: str) -> list[str]:
    """What the server doesn't have (yet) of a run's steps."""
    found = server.task_runs(run)
    lost = [f"{step}: no run" for step in STEPS if step not in found]
    lost += [f"{name}: not of this run" for name in found if name not in STEPS]
    for name, one in found.items():
        states = history(client, "task_run", one["id"])
        if states != ["PENDING", "RUNNING", "COMPLETED"]:
            lost.append(f"{name}: {states}")
    lines = [log["message"] for log in server.filter("logs", logs={"flow_run_id": {"any_": [run]}}, limit=200)]
    return lost + [f"{step}: {lines.count(f'{step} ran')} lines" for step in STEPS if lines.count(f"{step} ran") != 1]


def history(client: httpx.Client, what: str, id: str) -> list[str]:
    states = client.get(f"/{what}_states/", params={f"{what}_id": id}).raise_for_status().json()
    return [state["type"] for state in sorted(states, key=lambda state: state["timestamp"])]
