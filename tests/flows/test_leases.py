"""GPUs leased through a real Prefect server, by real processes with pretended GPUs: never two runs on one."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from flows.server import free_port, lasting
from tasks.leases import limit_name
from tests.flows.conftest import ROOT, Api
from tests.waiting import until
from vibethinker import config, doctor, holders

pytestmark = pytest.mark.service


@pytest.fixture
def two_gpus(api: Api) -> Iterator[dict[str, str]]:
    """The environment of a run on a host with two GPUs whose limits exist."""
    create(api, "7", 1)
    create(api, "8", 1)
    yield {**api.environ, "CUDA_VISIBLE_DEVICES": "7,8"}
    for device in ("7", "8"):
        httpx.delete(f"{api.url}/v2/concurrency_limits/{limit_name(device)}")


def create(api: Api, device: str, limit: int, **more: Any) -> None:
    body = {"name": limit_name(device), "limit": limit, **more}
    httpx.post(f"{api.url}/v2/concurrency_limits/", json=body, timeout=30).raise_for_status()


def active(api: Api, device: str) -> int:
    return httpx.get(f"{api.url}/v2/concurrency_limits/{limit_name(device)}", timeout=30).json()["active_slots"]


def start(
    environ: Mapping[str, str], workspace: Path, *steps: tuple[str, float | str], **asked: Any
) -> subprocess.Popen:
    asked["steps"] = [{"role": role, "seconds": seconds} for role, seconds in steps]
    command = [sys.executable, "-m", "tests.flows.leasing", str(workspace), json.dumps(asked)]
    return subprocess.Popen(command, env=dict(environ), cwd=ROOT, stdout=subprocess.PIPE, text=True)


def finish(run: subprocess.Popen) -> dict[str, dict[str, Any]]:
    output, _ = run.communicate(timeout=240)
    assert run.returncode == 0
    return json.loads(output.splitlines()[-1])


def first_line(run: subprocess.Popen, key: str = "lease") -> dict[str, Any]:
    """The first from here on that says this."""
    assert run.stdout
    return next(said for said in map(json.loads, run.stdout) if key in said)


def overlaps(steps: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs that computed on one GPU at the same time."""
    return [
        (one, other)
        for one, other in itertools.combinations(steps, 2)
        if set(one["lease"].split(", ")) & set(other["lease"].split(", "))
        and one["began"] < other["ended"]
        and other["began"] < one["ended"]
    ]


def test_two_runs_never_compute_on_one_gpu_at_once(api: Api, two_gpus: dict[str, str], tmp_path: Path) -> None:
    runs = [start(two_gpus, tmp_path / name, *[("specialist", 1.0)] * 3) for name in ("one", "two")]
    steps = [said for run in runs for said in finish(run).values()]
    assert len(steps) == 6
    assert {said["gpus"] for said in steps} == {"7", "8"}
    assert not overlaps(steps)
    assert all(said["lease"] == limit_name(said["gpus"]) for said in steps)
    assert all(said["device"] == "cuda" for said in steps)
    assert (active(api, "7"), active(api, "8")) == (0, 0)


def test_a_step_of_two_processes_takes_two_gpus_whole(two_gpus: dict[str, str], tmp_path: Path) -> None:
    steps = [("specialist", 0.5), ("specialist", 0.5)]
    runs = [start(two_gpus, tmp_path / name, *steps, overrides=["execution.processes=2"]) for name in ("one", "two")]
    found = [said for run in runs for said in finish(run).values()]
    assert {said["lease"] for said in found} == {f"{limit_name('7')}, {limit_name('8')}"}
    assert {said["gpus"] for said in found} == {"7"}, "the first of each, which is rank 0's"
    assert not overlaps(found)


def test_steps_share_a_gpu_as_far_as_the_setting_goes_and_a_stage_has_one_alone(api: Api, tmp_path: Path) -> None:
    create(api, "7", 2)
    try:
        environ = {**api.environ, "CUDA_VISIBLE_DEVICES": "7"}
        over = str(tmp_path / "over")
        run = start(
            environ, tmp_path, ("specialist", over), ("probe", over), ("signal", 0.5),
            overrides=["execution.steps_per_gpu=2"],
        )  # fmt: skip
        computing = {first_line(run, "computes")["computes"]}
        while not {"specialist-0", "probe-1"} <= computing:
            computing.add(first_line(run, "computes")["computes"])
        Path(over).touch()
        found = finish(run)
    finally:
        httpx.delete(f"{api.url}/v2/concurrency_limits/{limit_name('7')}")
    shared, stage = [found["specialist-0"], found["probe-1"]], found["signal-2"]
    assert all((said["vllm_memory"], said["gpu_share"]) == (0.45, 0.5) for said in shared)
    assert (stage["vllm_memory"], stage["gpu_share"]) == (0.9, 1.0)
    pairs = overlaps(list(found.values()))
    assert all(stage not in pair for pair in pairs)
    assert len(pairs) == 1, "the other two were there together"


def test_stages_share_a_gpu_where_the_run_says_so(api: Api, tmp_path: Path) -> None:
    create(api, "7", 2)
    try:
        environ, over = {**api.environ, "CUDA_VISIBLE_DEVICES": "7"}, str(tmp_path / "over")
        settings = ["execution.steps_per_gpu=2", "execution.stages_share=true"]
        run = start(environ, tmp_path, ("signal", over), ("signal", over), overrides=settings)
        assert {first_line(run, "computes")["computes"] for _ in range(2)} == {"signal-0", "signal-1"}
        Path(over).touch()
        found = finish(run).values()
    finally:
        httpx.delete(f"{api.url}/v2/concurrency_limits/{limit_name('7')}")
    assert all((said["vllm_shared_memory"], said["gpu_share"]) == (0.2, 0.5) for said in found)


def test_work_for_the_cpu_neither_waits_for_a_gpu_nor_sees_one(api: Api, tmp_path: Path) -> None:
    environ = {**api.environ, "CUDA_VISIBLE_DEVICES": "7"}  # whose limit doesn't exist
    [said] = finish(start(environ, tmp_path, ("fusion", 0.1))).values()
    assert (said["gpus"], said["device"]) == ("", "cpu")


def test_a_missing_limit_is_an_error_that_names_the_command(api: Api, tmp_path: Path) -> None:
    create(api, "7", 1)
    try:
        environ = {**api.environ, "CUDA_VISIBLE_DEVICES": "7,8"}
        [said] = finish(start(environ, tmp_path, ("specialist", 0.1))).values()
    finally:
        httpx.delete(f"{api.url}/v2/concurrency_limits/{limit_name('7')}")
    assert said["error"].startswith("ConfigurationError: Prefect's server has no concurrency limit for 1 of")
    assert f"`prefect gcl create {limit_name('8')} --limit 1`" in said["error"]


def test_a_limit_that_is_switched_off_protects_nobody(api: Api, tmp_path: Path) -> None:
    create(api, "7", 1, active=False)
    try:
        environ = {**api.environ, "CUDA_VISIBLE_DEVICES": "7"}
        [said] = finish(start(environ, tmp_path, ("specialist", 0.1))).values()
    finally:
        httpx.delete(f"{api.url}/v2/concurrency_limits/{limit_name('7')}")
    assert "prefect gcl update" in said["error"]


def test_a_server_that_does_not_answer_is_an_infrastructure_failure(tmp_path: Path) -> None:
    environ = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api", "CUDA_VISIBLE_DEVICES": "7"}
    [said] = finish(start(environ, tmp_path, ("specialist", 0.1))).values()
    assert said["error"].startswith("InfrastructureError: Prefect's server gives no lease")


def test_a_waiting_step_says_whom_it_waits_for(two_gpus: dict[str, str], tmp_path: Path) -> None:
    one_gpu = {**two_gpus, "CUDA_VISIBLE_DEVICES": "7"}
    holder = start(one_gpu, tmp_path / "one", ("signal", str(tmp_path / "over")))
    assert first_line(holder)["lease"] == limit_name("7")
    waiting = start(one_gpu, tmp_path / "two", ("specialist", 0.1))
    first_line(waiting, "waits")
    (tmp_path / "over").touch()
    found = finish(waiting)
    assert found["specialist-0"]["waited"] == [f"waits for another run's end on {limit_name('7')}"]
    assert not overlaps([*found.values(), *finish(holder).values()])


CREATE = """
import sys
from pathlib import Path
from tasks.leases import create_limits
from vibethinker.config import load
with create_limits(load("micro", overrides=["execution.steps_per_gpu=2"], environ={}), Path(sys.argv[1])):
    pass
"""


def test_a_server_of_the_run_s_own_gets_its_limits_and_forgets_killed_runs(api: Api, tmp_path: Path) -> None:
    environ = {**api.environ, "CUDA_VISIBLE_DEVICES": "7"}
    url = f"{api.url}/v2/concurrency_limits/{limit_name('7')}"

    def begin() -> None:
        subprocess.run([sys.executable, "-c", CREATE, str(tmp_path)], env=environ, cwd=ROOT, check=True)

    try:
        begin()
        assert httpx.get(url).json()["limit"] == 2
        httpx.patch(url, json={"active_slots": 2}).raise_for_status()  # as a killed run leaves them
        with (tmp_path / "runs.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)  # as a run that is alive holds it
            begin()
            assert active(api, "7") == 2
        begin()
        assert active(api, "7") == 0
    finally:
        httpx.delete(url)


@pytest.mark.long
@pytest.mark.slow
def test_a_killed_holder_s_gpu_is_free_again_though_the_server_was_restarted(tmp_path: Path) -> None:
    """On a server that lasts, as a site has one: those of a run's own end with it."""
    port = str(free_port())
    environ = {
        **os.environ, **lasting(tmp_path / "prefect"), "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "1", "CUDA_VISIBLE_DEVICES": "7",
    }  # fmt: skip
    api = Api(environ["PREFECT_API_URL"], environ)
    with serving(environ, port, tmp_path):
        create(api, "7", 1)
        holder = start({**environ, "LEASE_SECONDS": "60"}, tmp_path / "one", ("signal", 600.0))
        first_line(holder)
        assert active(api, "7") == 1
    with serving(environ, port, tmp_path):
        assert active(api, "7") == 1
        holder.kill()
        holder.wait()
        [said] = finish(start(environ, tmp_path / "two", ("specialist", 0.1))).values()
        assert said["gpus"] == "7"
        assert said["waited"]


@contextmanager
def serving(environ: Mapping[str, str], port: str, folder: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port, "--no-ui"]
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(command, env=dict(environ), stdout=log, stderr=log)
    try:
        until(lambda: httpx.get(f"{environ['PREFECT_API_URL']}/health", timeout=2).status_code == 200, 90)
        yield
    finally:
        server.terminate()
        server.wait()


def test_doctor_tells_who_holds_a_gpu_and_since_when(
    api: Api, two_gpus: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", api.url)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,8,9")
    command = [sys.executable, "-m", "tests.flows.holding", "7"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    before = datetime.now(UTC)
    holder = subprocess.Popen(command, env=two_gpus, cwd=ROOT, text=True, **pipes)
    told = first_line(holder, "run")

    def leases() -> dict[str, doctor.Finding]:
        found = doctor.leases(config.load("micro", environ={}))
        return {finding.text.split(":")[0].split()[0]: finding for finding in found}

    def who(device: str) -> str:
        return leases()[limit_name(device)].text

    until(lambda: told["run"] in who("7"), 30)  # events are kept in batches
    after = datetime.now(UTC)
    assert f": 1 of 1 held, by specialist-algebra of {told['run']} (Running) since " in who("7")
    [holds] = next(one for one in holders.gpu_limits(api.url) if one.name == limit_name("7")).holders
    assert before < holds.since < after
    assert who("8") == f"{limit_name('8')}: free"
    missing = leases()[limit_name("9")]
    assert (missing.state, missing.mend) == ("failure", f"prefect gcl create {limit_name('9')} --limit 1")

    assert holder.stdin
    holder.stdin.close()  # it gives the GPU back, and takes it again
    until(lambda: "specialist-geometry" in who("7"), 30)
    assert "specialist-algebra" not in who("7")
    holder.kill()
    holder.wait()
    crashed = {"state": {"type": "CRASHED", "name": "Crashed"}, "force": True}  # as the server says of a dead run
    httpx.post(f"{api.url}/flow_runs/{told['id']}/set_state", json=crashed).raise_for_status()
    dead = leases()[limit_name("7")]
    assert dead.state == "warning"
    assert "(Crashed)" in dead.text
    httpx.patch(f"{api.url}/v2/concurrency_limits/{limit_name('7')}", json={"active_slots": 0}).raise_for_status()
    assert who("7") == f"{limit_name('7')}: free", "what a dead holder took and lost is nobody's"
