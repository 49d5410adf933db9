"""One training step over two machines that share a workspace, played by two processes of this one on loopback."""

# ruff: noqa: F811 (fixtures of another module)

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.training.test_processes import Step, contents, host, logged, new, specialist  # noqa: F401 (fixtures)
from tests.waiting import until
from tests.worker.test_worker import ROOT, assert_gone
from vibethinker.artifacts import write_json
from vibethinker.errors import (
    ConfigurationError,
    InfrastructureError,
    OutOfMemoryError,
    PreemptedError,
    VibeThinkerError,
)
from vibethinker.steps import StepContext
from vibethinker.worker import ranks
from vibethinker.worker.child import PipeEmitter
from vibethinker.worker.host import Event
from vibethinker.worker.joining import ANY_KIND
from vibethinker.worker.nodes import FILE, Call

pytestmark = pytest.mark.slow

STEPS = "tests.worker.failing_steps"
TWO = {"processes": 2, "nodes": 2, "main_address": "127.0.0.1"}


@pytest.fixture
def join() -> Iterator[Callable[[Step], subprocess.Popen[bytes]]]:
    """A function that starts the second machine of a step's workspace."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(step: Step, node: int = 1) -> subprocess.Popen[bytes]:
        workspace = step.request["workspace"]
        env = {**os.environ, ANY_KIND: "1", "TMPDIR": workspace}
        command = [sys.executable, "-m", "vibethinker", "join", "--node", str(node), "--workspace", workspace]
        begun.append(subprocess.Popen(command, cwd=ROOT, env=env))
        return begun[-1]

    yield start
    for one in begun:
        one.kill()
        one.wait()


def below(process: subprocess.Popen[bytes]) -> dict[str, float]:
    return {str(child.pid): child.pid for child in psutil.Process(process.pid).children(recursive=True)}


@pytest.mark.long
def test_two_machines_train_what_two_processes_of_one_train(
    specialist: Callable[..., Step],
    join: Callable[[Step], Any],
) -> None:
    one, two = specialist({}, processes=2), specialist({}, threads=1, **TWO)
    join(two)
    whole, spread = one.run(), two.run()
    assert [row["loss"] for row in logged(spread)] == [row["loss"] for row in logged(whole)]
    assert contents(spread) == contents(whole)
    workspace = Path(two.request["workspace"])
    assert not (workspace / FILE).exists()
    assert not list((workspace / "staging").iterdir())


@pytest.mark.long
def test_what_waits_says_for_whom_and_can_be_stopped(new: Callable[..., Step]) -> None:
    events: list[Event] = []
    step = new(f"{STEPS}:add_up", {}, {}, **TWO)
    with pytest.raises(PreemptedError):
        step.run(events.append, lambda: bool(events))
    assert events[0]["text"] == "waiting for 1 of 2 machines: `vibethinker join --node 1`"
    assert not (Path(step.request["workspace"]) / FILE).exists()


@pytest.mark.long
def test_the_failure_on_another_machine_is_the_step_s_and_the_next_attempt_finds_it_again(
    new: Callable[..., Step],
    join: Callable[[Step], Any],
) -> None:
    step = new(f"{STEPS}:fail_on_a_rank", {"rank": 1, "error": "out_of_memory"}, {}, **TWO)
    join(step)
    for error, kind in (("out_of_memory", OutOfMemoryError), ("failure", VibeThinkerError)):
        step.request["settings"]["error"] = error
        with pytest.raises(VibeThinkerError, match=r"this is why \(rank 1 of 2\)") as caught:
            step.run()
        assert type(caught.value) is kind
    step.request["settings"]["rank"] = 0  # and then it isn't what the other machine has to say of it
    with pytest.raises(VibeThinkerError, match=r"this is why$"):
        step.run()


def test_a_machine_that_is_gone_ends_the_step_which_another_then_does(
    new: Callable[..., Step],
    join: Callable[[Step], Any],
) -> None:
    step, pids = new(f"{STEPS}:hang_on_a_rank", {}, {}, **TWO), dict[str, float]()
    machine = join(step)

    def hear(event: Event) -> None:
        if event["event"] == "metrics":
            pids.update(event["values"])
            machine.kill()

    with pytest.raises(InfrastructureError, match="node 1 is gone"):
        step.run(hear)
    assert_gone(pids)
    workspace = Path(step.request["workspace"])
    assert not (workspace / FILE).exists()
    until(lambda: not list(workspace.glob("vibethinker-node-*")), 20)
    step.request["kind"] = f"{STEPS}:add_up"
    join(step)
    manifest = json.loads((step.run() / "manifest.json").read_text())
    assert (manifest["metrics"]["total"], manifest["metrics"]["ranks"]) == (3.0, 2)


def test_the_ranks_of_another_machine_end_with_the_first_s_and_it_waits_for_the_next(
    new: Callable[..., Step],
    join: Callable[[Step], Any],
) -> None:
    step, pids = new(f"{STEPS}:hang_on_a_rank", {}, {}, **TWO), dict[str, float]()
    machine = join(step)

    def hear(event: Event) -> None:
        if event["event"] == "metrics":
            pids.update(event["values"] | below(machine))
            psutil.Process(int(event["values"]["0"])).kill()

    with pytest.raises(InfrastructureError, match="killed by SIGKILL"):
        step.run(hear)
    assert not (Path(step.request["workspace"]) / FILE).exists()
    until(lambda: not below(machine), 20)
    assert_gone(pids)
    step.request["kind"] = f"{STEPS}:add_up"
    assert step.run()


def test_a_request_to_stop_reaches_the_other_machine(new: Callable[..., Step], join: Callable[[Step], Any]) -> None:
    step, told = new(f"{STEPS}:note_when_asked", {}, {}, **TWO), list[Event]()
    join(step)
    with pytest.raises(PreemptedError):
        step.run(told.append, lambda: any(event["event"] == "metrics" for event in told))
    workspace = Path(step.request["workspace"])
    assert sorted(path.name for path in workspace.glob("checkpoints/step/f/asked-*")) == ["asked-0", "asked-1"]


def test_a_machine_that_is_asked_to_leave_has_the_step_save_what_it_has(
    new: Callable[..., Step], join: Callable[[Step], Any]
) -> None:
    step = new(f"{STEPS}:note_when_asked", {}, {}, **TWO)
    machine = join(step)
    with pytest.raises(PreemptedError):
        step.run(lambda event: machine.terminate() if event["event"] == "metrics" else None)
    workspace = Path(step.request["workspace"])
    assert sorted(path.name for path in workspace.glob("checkpoints/step/f/asked-*")) == ["asked-0", "asked-1"]
    assert machine.wait(20) == 0


@pytest.mark.long
@pytest.mark.parametrize("leaves", [False, True], ids=["the first is asked", "the second is"])
def test_both_machines_go_on_after_a_request_to_stop(
    specialist: Callable[..., Step], join: Callable[[Step], Any], leaves: bool
) -> None:
    often = {"threads": 1, "checkpoints": {"seconds": 1e6}, **TWO}
    whole, step = specialist({"steps": 6}, **often), specialist({"steps": 6}, **often)
    second = join(step)
    join(whole)
    told: list[int] = []

    def hear(event: Event) -> None:
        if event["event"] == "metrics":
            told.append(event["step"])
            if leaves and len(told) == 1:
                second.terminate()

    with pytest.raises(PreemptedError):
        step.run(hear, lambda: bool(told) and not leaves)
    assert step.saved()
    if leaves:
        join(step)
    assert contents(step.run()) == contents(whole.run())


def test_a_stranger_is_not_let_in(new: Callable[..., Step], join: Callable[[Step], Any]) -> None:
    step = new(f"{STEPS}:add_up", {}, {}, **TWO)
    made: list[Path] = []
    running = threading.Thread(target=lambda: made.append(step.run()))
    running.start()
    call = until(lambda: Call.read(Path(step.request["workspace"])))
    assert (Path(step.request["workspace"]) / FILE).stat().st_mode & 0o777 == 0o600
    for words in (f"{'0' * 32} 1", f"{call.word} 0", f"{call.word} 2", f"{call.word} x", "é 1", ""):
        with socket.create_connection((call.address, call.port)) as stranger:
            stranger.sendall(f"{words}\n".encode())
            assert stranger.recv(100) == b""
    with socket.create_connection((call.address, call.port)) as hasty:  # it is gone before it has heard that it may
        hasty.sendall(f"{call.word} 1\n".encode())
        assert hasty.recv(100) == b"welcome\n"
    with socket.create_connection((call.address, call.port)):  # and one that says nothing
        join(step)
        running.join(60)
    assert made


def test_a_machine_that_leaves_while_others_are_waited_for_may_come_back(
    new: Callable[..., Step], join: Callable[..., Any]
) -> None:
    step = new(f"{STEPS}:add_up", {}, {}, **TWO | {"processes": 3, "nodes": 3})
    made: list[Path] = []
    running = threading.Thread(target=lambda: made.append(step.run()))
    running.start()
    first = join(step, 1)
    until(lambda: below(first), 20)  # it has been let in
    first.kill()
    second = join(step, 1)
    until(lambda: below(second), 20)
    join(step, 2)
    running.join(60)
    assert json.loads((made[0] / "manifest.json").read_text())["metrics"]["total"] == 7.0


def test_an_address_of_another_machine_is_refused(new: Callable[..., Step]) -> None:
    step = new(f"{STEPS}:add_up", {}, {}, **TWO | {"main_address": "192.0.2.1"})
    with pytest.raises(ConfigurationError, match=r"can't be reached at '192.0.2.1'.*main_address"):
        step.run()


@pytest.mark.parametrize(("given", "found"), [(None, "127.0.1.1"), ("0.0.0.0", "0.0.0.0")])
def test_an_address_that_leads_others_nowhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: str | None, found: str
) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda name: found)  # as Debian's hosts file has a machine's own name
    execution = TWO | {"threads": 1, "verifier_workers": 1, "main_address": given}
    context = StepContext("step", {}, execution, {}, Path("output"), Path(), PipeEmitter(2, 0))
    with pytest.raises(ConfigurationError, match=rf"which is {found} here: set execution.main_address"):
        ranks.run("signal", context, None, PipeEmitter(2, 0))


def test_join_says_once_why_it_cannot_take_part(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    known = {"step_id": "step", "checkpoints": str(tmp_path)}
    call = {"word": "", "address": "127.0.0.1", "port": port, "nodes": 2, "kind": "signal"}
    command = [sys.executable, "-m", "vibethinker", "join", "--node", "1", "--workspace", str(tmp_path)]
    write_json(tmp_path / FILE, call | {"context": known, "since": "another version"})
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as machine:
        said = machine.stdout
        assert said
        try:
            assert "waits for trainings" in said.readline()
            assert "is of another version: install" in said.readline()
            write_json(tmp_path / FILE, call | {"context": known})
            assert f"step calls from 127.0.0.1:{port}, which can't be reached" in said.readline()
            write_json(tmp_path / FILE, call | {"context": known | {"checkpoints": str(tmp_path / "elsewhere")}})
            assert "which isn't here: mount the workspace there" in said.readline()
            write_json(tmp_path / FILE, call | {"context": known, "kind": "os:abort"})
            assert "step calls for 'os:abort', which is no training" in said.readline()
        finally:
            machine.kill()


def test_a_call_of_a_machine_that_was_killed_is_given_up_in_time(new: Callable[..., Step]) -> None:
    step = new(f"{STEPS}:add_up", {}, {}, **TWO)
    workspace = Path(step.request["workspace"])

    def hear(event: Event) -> None:
        call = Call.read(workspace)
        assert call
        for process in psutil.Process(step.host._process.pid).children(recursive=True):
            if call.port in {connection.laddr.port for connection in process.net_connections()}:
                process.kill()

    with pytest.raises(InfrastructureError, match="killed by SIGKILL"):
        step.run(hear)
    words = ["join", "--node", "1", "--workspace", str(workspace), "--patience", "1"]
    command, env = [sys.executable, "-m", "vibethinker", *words], {**os.environ, ANY_KIND: "1"}
    given_up = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert given_up.returncode == 1
    assert "can't be reached" in given_up.stdout
    assert given_up.stderr.startswith(f"Error: A call in {workspace / FILE} could not be answered for 1 s, as was said")


def test_a_machine_has_its_part_of_the_processes() -> None:
    assert [ranks.here(kind, {"processes": 8, "nodes": 2}) for kind in ("signal", "probe")] == [4, 1]
