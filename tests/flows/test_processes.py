"""Processes that outlive the command that starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from flows import processes
from flows.processes import MARK, Process
from vibethinker.errors import ConfigurationError

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
PARENT = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); " \
         "print('up', flush=True); time.sleep(99)"  # fmt: skip


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[list[Process]]:
    """Processes that are killed after the test."""
    found: list[Process] = []
    yield found
    for process in [*found, *processes.marked(tmp_path.name)]:
        if process.alive:
            psutil.Process(process.pid).kill()


def start(tmp_path: Path, begun: list[Process], code: str) -> Process:
    log = tmp_path / "logs" / str(len(begun))
    one = processes.start([sys.executable, "-c", code], {**os.environ, MARK: tmp_path.name}, log, tmp_path)
    begun.append(one)
    while "up" not in log.read_text():
        assert one.alive
        time.sleep(0.01)
    return one


def test_a_process_is_known_by_its_number_and_its_start(tmp_path: Path, begun: list[Process]) -> None:
    one = start(tmp_path, begun, PARENT)
    assert one.alive
    assert not replace(one, started=f"1 {one.started}").alive  # another one that was given its number
    assert processes.session(one) == one.pid  # so that Ctrl-C in the terminal doesn't reach it


def test_stopping_ends_what_it_has_started_too(tmp_path: Path, begun: list[Process]) -> None:
    one = start(tmp_path, begun, PARENT)
    family = processes.marked(tmp_path.name)
    assert len(family) == 2
    assert processes.stop(one, 10)
    assert processes.wait(family, 10)


def test_one_that_does_not_heed_is_killed(tmp_path: Path, begun: list[Process]) -> None:
    one = start(tmp_path, begun, STUBBORN)
    assert not processes.stop(one, 0.3)
    assert not one.alive


def test_marked_processes_end_with_those_that_started_them_asked_first(tmp_path: Path, begun: list[Process]) -> None:
    start(tmp_path, begun, STUBBORN)
    start(tmp_path, begun, PARENT)
    family = processes.marked(tmp_path.name)
    assert len(family) == 3
    assert not processes.stop_all(family, 0.5)
    assert not [process for process in family if process.alive]
    assert processes.stop_all(family, 0.5)


def test_without_proc_a_process_is_known_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PROC", Path("/nowhere"))
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
    started = processes._started(sleeper.pid)
    one = Process(sleeper.pid, started or "")
    assert started
    assert one.alive
    sleeper.kill()
    sleeper.wait()
    assert not one.alive


def test_a_port_that_is_in_use_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigurationError, match="name another one by --mlflow-port"):
            processes.free_port(taken.getsockname()[1], "--mlflow-port")
