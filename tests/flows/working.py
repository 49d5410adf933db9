"""A Prefect worker that serves this clone's deployments, and runs of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.flows.conftest import ROOT, Api

PREFECT = [sys.executable, "-m", "prefect", "--no-prompt"]


@contextmanager
def worker(api: Api, printed: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the deployment `micro` for the `with` block, with these variables in its environment."""
    outside = {**api.environ, "PYTHONPATH": str(ROOT)}
    for words in (
        ["work-pool", "create", "vibethinker", "--type", "process", "--overwrite"],
        ["deploy", "--name", "micro"],
    ):
        subprocess.run([*PREFECT, *words], env=outside, cwd=ROOT, check=True, capture_output=True)
    words = ["worker", "start", "--pool", "vibethinker", "--name", printed.parent.name]
    with printed.open("ab") as output:
        process = subprocess.Popen(
            [*PREFECT, *words], env={**outside, **environ}, cwd=ROOT, stdout=output, stderr=output
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def deployment_run(api: Api, name: str, variables: Mapping[str, Any] | None = None, **parameters: Any) -> str:
    """Ask for a run of the whole recipe's deployment of this name, with job variables; returns the flow run's id."""
    [deployment] = api.filter("deployments", deployments={"name": {"any_": [name]}})
    given = [("--param", pair) for pair in parameters.items()]
    given += [("--job-variable", pair) for pair in (variables or {}).items()]
    words = [word for option, (key, value) in given for word in (option, f"{key}={json.dumps(value)}")]
    command = [*PREFECT, "deployment", "run", f"vibethinker/{name}", *words]
    done = subprocess.run(command, env=dict(api.environ), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [flow_run] = api.filter(
        "flow_runs", deployments={"id": {"any_": [deployment["id"]]}}, sort="EXPECTED_START_TIME_DESC", limit=1
    )
    return flow_run["id"]


def state_of(api: Api, flow_run_id: str) -> str:
    """The type of a flow run's state."""
    [flow_run] = api.filter("flow_runs", flow_runs={"id": {"any_": [flow_run_id]}})
    return flow_run["state_type"]
