"""Prefect's server or its worker goes away under a run; runs are cancelled or take too long."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import server
from flows.server import Server, environment
from tests.flows.conftest import ROOT, Api
from tests.flows.working import deployment_run, worker
from tests.waiting import until

pytestmark = [pytest.mark.service, pytest.mark.long]

# A stage that is long enough to be met in its middle, and too slow a learner to collapse.
CONFIG: dict[str, Any] = {
    "domains": ["algebra", "code"],
    "evaluation": {"samples": 1, "k": [1]},
    "signal": {
        "objective": {"learning_rate": 1e-6},
        "stages": [
            {"name": "math", "context": 96, "steps": 120, "reward": "math"},
            {"name": "code", "context": 96, "steps": 1, "reward": "code"},
        ],
    },
    "execution": {"checkpoints": {"seconds": 0.5}},
}


def saved(workspace: Path) -> bool:
    """Whether the first stage has saved an update."""
    return any((workspace / "checkpoints" / "signal-1").glob("*/updates/*/manifest.json"))


def summary(workspace: Path) -> dict[str, Any]:
    [run] = (workspace / "runs").iterdir()
    return json.loads((run / "summary.json").read_text())


def of_workspace(workspace: Path) -> list[psutil.Process]:
    """The processes that run steps of this workspace, and their hosts: their logs are open there."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            links = (os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (1, 2))
            if any(link.startswith(str(workspace / "runs")) for link in links):
                found.append(process)
    return found


def command(workspace: Path, config: Path) -> list[str]:
    words = ["run", "--profile", "micro", "--config", str(config), "--workspace", str(workspace)]
    return [sys.executable, "-m", "vibethinker", *words]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(CONFIG))
    return path


@contextmanager
def running(words: list[str], environ: dict[str, str], printed: Path) -> Iterator[subprocess.Popen[bytes]]:
    with printed.open("wb") as output:
        # Ctrl-C is ignored by what a shell has started in the background, and so by a test run there.
        run = subprocess.Popen(
            words, env=environ, cwd=ROOT, stdout=output, stderr=output,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        try:
            yield run
        finally:
            run.kill()
            run.wait()


def test_a_run_goes_on_when_its_own_prefect_server_dies(tmp_path: Path, config: Path) -> None:
    workspace, printed = tmp_path / "workspace", tmp_path / "printed"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environ["PREFECT_HOME"] = str(tmp_path / "no profile")
    with running(command(workspace, config), environ, printed) as run:
        until(lambda: saved(workspace) or run.poll() is not None)
        [its] = [p for p in psutil.Process(run.pid).children() if "flows.server" in p.cmdline()]
        its.kill()
        assert run.wait(timeout=400) == 0, printed.read_text()
    assert "Traceback" not in printed.read_text()
    assert summary(workspace)["status"] == "completed"
    assert {step["state"] for step in summary(workspace)["steps"]} == {"done"}


def test_a_run_goes_on_when_prefects_server_was_away(tmp_path: Path, config: Path) -> None:
    workspace, printed, home = tmp_path / "workspace", tmp_path / "printed", tmp_path / "prefect"
    one = Server(home, tmp_path / "server.log")
    try:
        one.wait()
        environ = {**os.environ, **environment(home), "PREFECT_API_URL": one.url}
        with running(command(workspace, config), environ, printed) as run, pytest.MonkeyPatch.context() as patch:
            until(lambda: saved(workspace) or run.poll() is not None)
            patch.setattr(server, "REPLACE_SECONDS", 45.0)  # in which the stage ends and others begin
            one._process.kill()
            assert run.wait(timeout=500) == 0, printed.read_text()
        api = Api(one.url, environ)
        flow_run = api.flow_run(summary(workspace)["run_id"])
        assert flow_run["state_type"] == "COMPLETED"
        until(lambda: {t["state_type"] for t in api.task_runs(flow_run["id"]).values()} == {"COMPLETED"}, 30)
        assert api.task_runs(flow_run["id"]).keys() == {step["id"] for step in summary(workspace)["steps"]}
    finally:
        one.close()
    assert "Traceback" not in printed.read_text()
    assert summary(workspace)["status"] == "completed"


def test_a_server_that_is_gone_for_good_ends_the_run_and_loses_nothing(tmp_path: Path, config: Path) -> None:
    workspace, printed, home = tmp_path / "workspace", tmp_path / "printed", tmp_path / "prefect"
    one = Server(home, tmp_path / "server.log")
    try:
        one.wait()
        environ = {
            **os.environ, **environment(home), "PREFECT_API_URL": one.url, "PREFECT_CLIENT_MAX_RETRIES": "2",
        }  # fmt: skip
        with running(command(workspace, config), environ, printed) as run:
            until(lambda: saved(workspace) or run.poll() is not None)
            one.close()
            assert run.wait(timeout=400) == 1, printed.read_text()
    finally:
        one.close()
    assert "Traceback" not in printed.read_text()
    assert "go on by" in printed.read_text()
    assert not of_workspace(workspace)


@pytest.fixture
def deployed(api: Api, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A Prefect worker that serves this clone's deployments."""
    with worker(api, tmp_path / "worker") as process:
        yield process


def training(workspace: Path) -> bool:
    """Whether the first stage has finished an update."""
    return any(path.stat().st_size for path in (workspace / "staging").glob("signal-1-*/metrics.jsonl"))


def started(api: Api, workspace: Path, config: dict[str, Any] = CONFIG, met: Callable[[], bool] | None = None) -> str:
    """The id of a flow run of the deployment `micro`, once its stage has saved an update, or is `met` otherwise."""
    id = deployment_run(api, "micro", workspace=str(workspace), config=config)
    until(met or (lambda: saved(workspace)))
    return id


def test_cancelling_in_prefect_ends_every_process_and_the_next_run_goes_on(
    api: Api, deployed: subprocess.Popen[bytes], tmp_path: Path, config: Path
) -> None:
    workspace = tmp_path / "workspace"
    id = started(api, workspace)
    words = ["flow-run", "cancel", id]
    subprocess.run([sys.executable, "-m", "prefect", *words], env=dict(api.environ), check=True, capture_output=True)
    until(lambda: not of_workspace(workspace), 90)
    until(lambda: api.filter("flow_runs", flow_runs={"id": {"any_": [id]}})[0]["state_type"] == "CANCELLED", 90)
    assert deployed.poll() is None
    with running(command(workspace, config), dict(api.environ), tmp_path / "printed") as run:
        assert run.wait(timeout=400) == 0, (tmp_path / "printed").read_text()
    assert "goes on" in (tmp_path / "printed").read_text()
    assert summary(workspace)["status"] == "completed"


# No checkpoint but the one that is saved at the end.
AT_THE_END = {**CONFIG, "execution": {"checkpoints": {"seconds": 3600, "every": 1000}}}


@pytest.mark.parametrize("told", ["SIGTERM", "SIGTERM to all of a service"])
def test_a_prefect_worker_that_is_told_to_stop_lets_flow_runs_save_first_and_the_next_one_goes_on(
    told: str, api: Api, deployed: subprocess.Popen[bytes], tmp_path: Path, config: Path
) -> None:
    workspace, printed = tmp_path / "workspace", tmp_path / "printed"
    started(api, workspace, AT_THE_END, lambda: training(workspace))
    worker = psutil.Process(deployed.pid)
    for process in [worker, *(worker.children(recursive=True) if "all" in told else ())]:
        process.send_signal(signal.Signals[told.split()[0]])
    assert deployed.wait(timeout=120) == 0, (tmp_path / "worker").read_text()
    assert not of_workspace(workspace)
    assert saved(workspace)
    assert summary(workspace)["status"] == "interrupted"
    [folder] = (workspace / "runs").iterdir()
    assert (folder / "report.html").exists()  # the run has said all that it had to
    with running(command(workspace, config), dict(api.environ), printed) as run:
        assert run.wait(timeout=400) == 0, printed.read_text()
    assert "goes on" in printed.read_text()
    assert summary(workspace)["status"] == "completed"
    rows = [json.loads(line) for line in (folder / "tracking.jsonl").read_text().splitlines()]
    rows = [o for o in rows if o["op"] == "metrics" and o.get("step") == "signal-1"]
    computed = [o["at"] for o in rows if any("tokens_per_second" in name for name in o["values"])]
    assert computed == list(range(1, len(computed) + 1))  # none again


def test_the_script_around_a_worker_lets_flow_runs_save_first(api: Api, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    environ = {
        **api.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PREFECT_WORKER_WEBSERVER_PORT": str(server.free_port()),
    }
    with running(["sh", "deployments/worker.sh"], environ, tmp_path / "worker") as worker:
        until(lambda: api.filter("deployments", deployments={"name": {"any_": ["micro"]}}))
        started(api, workspace, AT_THE_END, lambda: training(workspace))
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=120) == 0, (tmp_path / "worker").read_text()
    assert not of_workspace(workspace)
    assert saved(workspace)


def test_a_flow_that_takes_too_long_ends_every_process(api: Api, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    script = (
        "import json, sys; from flows.pipeline import pipeline; "
        "pipeline.with_options(timeout_seconds=60)('micro', json.loads(sys.argv[1]), sys.argv[2])"
    )
    [math, code] = CONFIG["signal"]["stages"]
    endless = {**CONFIG, "signal": {**CONFIG["signal"], "stages": [{**math, "steps": 100_000}, code]}}
    words = [sys.executable, "-c", script, json.dumps(endless), str(workspace)]
    with running(words, dict(api.environ), tmp_path / "printed") as run:
        assert run.wait(timeout=200) == 1
    assert "FlowRunTimeoutError" in (tmp_path / "printed").read_text()
    assert not of_workspace(workspace)
    assert summary(workspace)["status"] == "interrupted"
