"""The worker with real processes: events, classes of failure, stalls, and nothing left alive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.worker import failing_steps
from vibethinker import preemption
from vibethinker.artifacts import Artifact, Store
from vibethinker.errors import KINDS, DataError, InfrastructureError, PreemptedError, VibeThinkerError
from vibethinker.worker import child
from vibethinker.worker.host import Event, Host

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[False, True], ids=["fresh", "fork"])
def host(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    if request.param and sys.platform != "linux":
        pytest.skip("children are forked on Linux only")
    # What the zygote preloads is beside the point here, and slow.
    monkeypatch.setenv("VIBETHINKER_PRELOAD", "json")
    with Host(tmp_path / "worker.log", env={"PYTHONPATH": str(ROOT)}, fork=request.param) as host:
        yield host


def request(workspace: Path, function: Callable[..., Any], **changes: Any) -> dict[str, Any]:
    return {
        "workspace": str(workspace),
        "step": "step",
        "kind": f"tests.worker.failing_steps:{function.__name__}",
        "fingerprint": "f" * 64,
        "settings": {"value": "abc"},
        "inputs": {},
        "execution": {},
        "log": str(workspace / "step.log"),
        "stall_seconds": 60.0,
        "stop_seconds": 30.0,
        **changes,
    }


def test_a_step_streams_its_events_and_publishes_its_output(host: Host, tmp_path: Path) -> None:
    events: list[Event] = []
    result = host.run(request(tmp_path, failing_steps.succeed), events.append)
    assert [e["event"] for e in events] == ["progress", "metrics"]
    assert [e["sequence"] for e in events] == [1, 2]
    assert events[1]["values"] == {"loss": 0.5}
    assert result["metrics"] == {"length": 3}
    assert (Path(result["folder"]) / "value.txt").read_text() == "abc"
    assert "a library's noise" in (tmp_path / "step.log").read_text()


def test_a_step_s_warning_and_failure_repeat_no_key_that_only_its_process_knows(tmp_path: Path) -> None:
    environ = {"PYTHONPATH": str(ROOT), "VIBETHINKER_PRELOAD": "json", "SOME_API_KEY": "a-planted-key"}
    execution = {"secrets": {"block": "of-a-block"}}
    told: list[Event] = []
    with Host(tmp_path / "worker.log", env=environ, fork=False) as host, pytest.raises(DataError) as caught:
        host.run(request(tmp_path, failing_steps.warn_of_keys, execution=execution), told.append)
    assert [event["text"] for event in told] == ["refused: [hidden] and [hidden]"]
    assert str(caught.value) == "refused: [hidden] and [hidden]"


def test_a_published_step_is_not_run_again(host: Host, tmp_path: Path) -> None:
    first = host.run(request(tmp_path, failing_steps.succeed), lambda e: None)
    second = host.run(request(tmp_path, failing_steps.succeed), lambda e: None)
    assert (first["reused"], second["reused"]) == (False, True)


def test_what_its_inputs_take_to_be_read_is_part_of_a_step_s_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now, passed = Store(tmp_path), time.monotonic, [0.0]
    staging = store.staging("data", "d")
    (staging / "file").write_text("x")
    store.publish(staging, "data", "d", inputs={}, record={"metrics": {}, "seconds": 1.0})
    read = Store.read_whole

    def slow(*named: Any) -> Artifact:
        passed[0] += 500
        return read(*named)

    monkeypatch.setattr(time, "monotonic", lambda: now() + passed[0])
    monkeypatch.setattr(Store, "read_whole", slow)
    monkeypatch.setattr(preemption, "finish", lambda: None)
    monkeypatch.setattr(child, "set_up_libraries", lambda *_: None)
    asked = request(tmp_path, failing_steps.succeed, inputs={"data": ["data", "d"]})
    result = child.execute(asked, child.PipeEmitter(os.open(os.devnull, os.O_WRONLY), 1))
    assert result["seconds"] >= 500


@pytest.mark.parametrize("kind", sorted(failing_steps.ERRORS))
def test_a_failure_arrives_as_the_error_of_its_class(host: Host, tmp_path: Path, kind: str) -> None:
    with pytest.raises(VibeThinkerError, match="this is why") as caught:
        host.run(request(tmp_path, failing_steps.fail, settings={"error": kind}), lambda e: None)
    assert type(caught.value) is KINDS[kind]
    assert Store(tmp_path).read("step", "f" * 64) is None


def test_a_step_that_went_back_is_run_again_by_a_fresh_process(host: Host, tmp_path: Path) -> None:
    assert host.run(request(tmp_path, failing_steps.roll_back), lambda e: None)["metrics"] == {"processes": 3}


def test_a_child_that_is_killed_is_an_infrastructure_failure(host: Host, tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="killed by SIGKILL"):
        host.run(request(tmp_path, failing_steps.die), lambda e: None)


def test_a_silent_child_is_killed_with_its_group_and_its_stack_is_kept(host: Host, tmp_path: Path) -> None:
    events: list[Event] = []
    with pytest.raises(InfrastructureError, match="reported nothing for 4 s"):
        host.run(request(tmp_path, failing_steps.wait, stall_seconds=4.0), events.append)
    assert "in wait" in (tmp_path / "step.log").read_text()
    assert_gone(events[0]["values"])


def test_a_stopped_step_ends_as_preempted(host: Host, tmp_path: Path) -> None:
    started = threading.Event()
    with pytest.raises(PreemptedError):
        host.run(request(tmp_path, failing_steps.wait), lambda e: started.set(), started.is_set)


def test_what_ends_a_service_at_once_leaves_each_step_the_time_to_save(host: Host, tmp_path: Path) -> None:
    """systemd, Slurm and containers send SIGTERM to every process, the worker's server included."""

    def end(event: Event) -> None:
        if event["event"] == "metrics":
            server = psutil.Process(host._process.pid)
            for process in (server, *server.children(recursive=True)):
                process.terminate()

    with pytest.raises(PreemptedError):
        host.run(request(tmp_path, failing_steps.save_when_asked), end)
    assert (tmp_path / "checkpoints/step" / ("f" * 64) / "saved").exists()
    assert host.alive


def test_a_step_that_takes_too_long_to_save_is_killed_after_its_time(host: Host, tmp_path: Path) -> None:
    started = threading.Event()
    with pytest.raises(PreemptedError):
        host.run(
            request(tmp_path, failing_steps.save_when_asked, stop_seconds=0.5),
            lambda e: started.set(),
            started.is_set,
        )
    assert not (tmp_path / "checkpoints/step" / ("f" * 64) / "saved").exists()


def test_a_request_that_a_library_has_reworded_is_still_one(host: Host, tmp_path: Path) -> None:
    started = threading.Event()
    with pytest.raises(PreemptedError):
        host.run(request(tmp_path, failing_steps.reword), lambda e: started.set(), started.is_set)


def test_an_input_that_is_made_anew_under_a_step_is_no_fault_of_the_data(host: Host, tmp_path: Path) -> None:
    store, fingerprint = Store(tmp_path), "a" * 64
    staging = store.staging("data", fingerprint)
    (staging / "value.txt").write_text("before")
    store.publish(staging, "data", fingerprint, inputs={}, record={"metrics": {}})

    def refresh(event: Event) -> None:
        if event["event"] == "metrics":
            store.start_over("data", fingerprint, lambda: None)

    asked = request(tmp_path, failing_steps.read_slowly, inputs={"data": ["data", fingerprint]})
    with pytest.raises(InfrastructureError, match="made anew while this step read it"):
        host.run(asked, refresh)


@pytest.mark.parametrize("fork", [False, True])
def test_a_step_stopped_before_it_began_leaves_at_once(fork: bool, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(3)\n")
    monkeypatch.setenv("VIBETHINKER_PRELOAD", "slow_to_import")
    env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    with Host(tmp_path / "worker.log", env=env, fork=fork) as host, pytest.raises(PreemptedError):
        host.run(request(tmp_path, failing_steps.wait), lambda e: None, lambda: True)


def test_a_step_for_which_no_process_comes_is_given_up(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "never_imported.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("VIBETHINKER_PRELOAD", "never_imported")
    env = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    refused = pytest.raises(InfrastructureError, match="no process could be started")
    with Host(tmp_path / "worker.log", env=env, fork=True) as host, refused:
        host.run(request(tmp_path, failing_steps.wait, stall_seconds=2.0), lambda e: None)


def test_what_is_done_is_published_though_it_is_asked_to_stop(host: Host, tmp_path: Path) -> None:
    """The request arrives between the step's end and its publishing; one is asked while files are written."""
    result = host.run(request(tmp_path, failing_steps.stopped_while_published), lambda e: None)
    assert Store(tmp_path).find("step", "f" * 64)[0]
    assert result["metrics"] == {"files": 3}


def test_a_step_that_waited_reads_what_its_inputs_are_then(host: Host, tmp_path: Path) -> None:
    store, fingerprint = Store(tmp_path), "a" * 64

    def publish(text: str) -> str:
        with store.lock("data", fingerprint):
            if store.folder("data", fingerprint).exists():
                store.retire("data", fingerprint)
            staging = store.staging("data", fingerprint)
            (staging / "value.txt").write_text(text)
            return store.publish(staging, "data", fingerprint, inputs={}, record={"metrics": {}}).digest

    publish("before")
    waits, ended = threading.Event(), threading.Event()
    asked = request(tmp_path, failing_steps.succeed, inputs={"data": ["data", fingerprint]})

    def run() -> None:
        host.run(asked, lambda event: waits.set() if "waiting" in event.get("text", "") else None)
        ended.set()

    thread = threading.Thread(target=run)
    with store.lock("step", "f" * 64):
        thread.start()
        assert waits.wait(30)
        digest = publish("after")
    thread.join(30)
    assert ended.is_set()
    assert store.find("step", "f" * 64, {"data": digest})[0]


def test_steps_run_side_by_side(host: Host, tmp_path: Path) -> None:
    together = threading.Barrier(2, timeout=30)

    def run(name: str) -> None:
        with pytest.raises(InfrastructureError, match="reported nothing"):
            asked = request(tmp_path, failing_steps.wait, step=name, stall_seconds=4.0)
            host.run(asked, lambda e: together.wait())

    threads = [threading.Thread(target=run, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not together.broken


@pytest.mark.parametrize("fork", [False, True], ids=["fresh", "fork"])
def test_nothing_is_alive_3_s_after_the_flow_process_is_killed(tmp_path: Path, fork: bool) -> None:
    script = f"""
import json, sys
from pathlib import Path
from tests.worker import failing_steps
from tests.worker.test_worker import request
from vibethinker.worker.host import Host
tmp = Path({str(tmp_path)!r})
host = Host(tmp / "worker.log", fork={fork})
def hear(event):
    print(json.dumps(dict(event["values"], server=host._process.pid)), flush=True)
host.run(request(tmp, failing_steps.wait), hear)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "VIBETHINKER_PRELOAD": "json"}
    flow = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env)
    assert flow.stdout
    alive = json.loads(flow.stdout.readline())
    children = psutil.Process(int(alive["server"])).children(recursive=True)
    flow.send_signal(signal.SIGKILL)
    flow.wait()
    assert_gone({**alive, **{str(c.pid): c.pid for c in children}})


def assert_gone(pids: dict[str, float], seconds: float = 3.0) -> None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit and any(map(alive, pids.values())):
        time.sleep(0.05)
    assert not [name for name, pid in pids.items() if alive(pid)]


def alive(pid: float) -> bool:
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
