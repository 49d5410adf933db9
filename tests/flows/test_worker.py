"""Prefect's process worker, as this environment has it: what it does about its flow runs when it is asked to end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.workers.process import ProcessWorker

from flows import worker as module
from flows.processes import SAME_SECONDS, Process, known, wait
from tests.flows.conftest import ROOT, Api
from tests.flows.saving import saving

pytestmark = pytest.mark.service


def until(true: Callable[[], object], worker: subprocess.Popen[bytes], printed: Path) -> None:
    limit = time.monotonic() + 200
    while not true():
        assert worker.poll() is None and time.monotonic() < limit, printed.read_text()
        time.sleep(0.1)


@contextmanager
def serving(pool: str, ignored: bool, api: Api, printed: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of that pool as somebody starts it by hand, SIGINT `ignored` as in a script's background."""
    words = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool]
    handler = signal.SIG_IGN if ignored else signal.default_int_handler
    with printed.open("wb") as output:
        worker = subprocess.Popen(
            words, env=dict(api.environ), cwd=ROOT, stdout=output, stderr=output,
            preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
        )  # fmt: skip
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


def flow_run(pool: str, folder: Path, seconds: float) -> str:
    """A run of `saving` that waits in a new pool."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
        deployment = client.create_deployment(
            client.create_flow(saving), "saving", entrypoint="tests/flows/saving.py:saving", path=str(ROOT),
            work_pool_name=pool, pull_steps=[{"flows.clone.enter": {}}], enforce_parameter_schema=False,
        )  # fmt: skip
        parameters = {"folder": str(folder), "seconds": seconds}
        return str(client.create_flow_run_from_deployment(deployment, parameters=parameters).id)


@pytest.mark.parametrize(
    ("number", "saved"),
    [
        pytest.param(signal.SIGTERM, True, id="twice asked to end"),
        pytest.param(signal.SIGINT, False, id="a second Ctrl-C", marks=pytest.mark.long),
    ],
)
def test_a_worker_lets_its_flow_runs_save_before_it_ends(
    number: signal.Signals, saved: bool, server: Api, tmp_path: Path
) -> None:
    pool, printed = f"asked by {number.name}", tmp_path / "printed"
    id = flow_run(pool, tmp_path, 3 if saved else 300)
    with serving(pool, saved, server, printed) as worker:
        until((tmp_path / "begun").exists, worker, printed)
        [flow] = [one for one in psutil.Process(worker.pid).children() if id in one.environ().values()]
        worker.send_signal(number)
        until((tmp_path / "asked").exists, worker, printed)
        time.sleep(2 * SAME_SECONDS)
        worker.send_signal(number)
        assert worker.wait(timeout=60) == 0, printed.read_text()
        assert not flow.is_running()
    assert (tmp_path / "saved").exists() is saved
    assert "save what they have" in printed.read_text() and "didn't end" not in printed.read_text()
    [told] = server.filter("flow_runs", flow_runs={"id": {"any_": [id]}})
    assert told["state_type"] == "CRASHED"


def test_a_number_that_was_given_again_is_no_flow_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.5)
    monkeypatch.setattr(module, "TELL_SECONDS", 0.5)
    with subprocess.Popen(["sleep", "60"]) as other:
        worker = module.Worker(work_pool_name="none")
        worker._flows = {Process(other.pid, "before")}
        asyncio.run(worker._let_save())
        assert other.poll() is None and not capsys.readouterr().out
        other.kill()


def test_what_a_flow_has_started_is_killed_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAVE_SECONDS", 0)
    monkeypatch.setattr(module, "TELL_SECONDS", 0.5)
    command = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as flow:
        assert flow.stdout
        started = known(int(flow.stdout.readline()))
        worker = module.Worker(work_pool_name="none")
        worker._flows = {known(flow.pid)}
        asyncio.run(worker._let_save())
        assert flow.wait() == -signal.SIGKILL
    assert wait([started], 10)


@pytest.mark.parametrize("first", [True, False], ids=["asked before", "asked meanwhile"])
def test_a_worker_that_fails_lets_flow_runs_save_and_clears_up(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(time.sleep(1))); print(flush=True)"
    left: list[BaseException] = []

    async def entered(worker: ProcessWorker) -> ProcessWorker:
        return worker

    async def cleared(worker: ProcessWorker, kind: object, error: BaseException, trace: object) -> None:
        left.append(error)

    async def serve(worker: ProcessWorker, *_: object) -> None:
        async with worker:
            if first:
                os.kill(os.getpid(), signal.SIGINT)
                await asyncio.sleep(SAME_SECONDS / 2)
            else:
                delay = 2 * SAME_SECONDS
                asyncio.get_running_loop().call_later(delay, os.kill, os.getpid(), signal.SIGINT)
            raise ConnectionError("the server is away")

    monkeypatch.setattr(ProcessWorker, "__aenter__", entered)
    monkeypatch.setattr(ProcessWorker, "__aexit__", cleared)
    monkeypatch.setattr(ProcessWorker, "start", serve)
    monkeypatch.setattr(module, "TELL_SECONDS", 0)
    with subprocess.Popen([sys.executable, "-c", f"{saves}; time.sleep(60)"], stdout=subprocess.PIPE) as flow:
        assert flow.stdout and flow.stdout.readline()
        worker = module.Worker(work_pool_name="none")
        worker._flows = {known(flow.pid)}
        with pytest.raises(ConnectionError):
            asyncio.run(worker.start())
        assert flow.wait() == 0
    assert [type(error) for error in left] == [ConnectionError]


@pytest.mark.parametrize(
    ("prepared", "told"),
    [
        ("", None),
        (
            "from prefect._internal.plugins import collections; collections._collections = {}",
            f"{ProcessWorker.__module__}.ProcessWorker",
        ),
        ("class Theirs(ProcessWorker): pass", "__main__.Theirs"),
    ],
    ids=["ours", "Prefect's own", "somebody else's"],
)
def test_up_refuses_an_environment_whose_worker_is_another(prepared: str, told: str | None, tmp_path: Path) -> None:
    """Where ours isn't installed, as after an upgrade of the clone alone, or another takes its place."""
    words = "import warnings; from prefect.workers.process import ProcessWorker; warnings.simplefilter('ignore')"
    check = "from flows import registration; registration._check_worker()"
    (tmp_path / "up.py").write_text("\n".join([words, prepared, check]))  # Prefect asks for the class's file
    done = subprocess.run([sys.executable, str(tmp_path / "up.py")], capture_output=True, text=True)
    assert (done.returncode == 0) is (told is None), done.stderr
    if told:
        assert f"here ({told}) kills flow runs" in done.stderr
    assert ("Theirs stays the worker" in done.stderr) is (told == "__main__.Theirs")


def test_a_thread_may_run_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[ProcessWorker] = []

    async def serve(worker: ProcessWorker, *_: object) -> None:
        served.append(worker)

    monkeypatch.setattr(ProcessWorker, "start", serve)
    worker = module.Worker(work_pool_name="none")
    thread = threading.Thread(target=lambda: asyncio.run(worker.start()))
    thread.start()
    thread.join()
    assert served == [worker]
