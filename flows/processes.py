"""Processes that go on when the command that started them has ended, and how a later command knows them again.

A process is known by its number and by when it started, since numbers are given again. All that it starts carries a
mark in its environment, so that a flow run is found also when the worker that started it is gone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vibethinker.errors import ConfigurationError

MARK = "VIBETHINKER_SERVICE"  # the variable by which a service's processes are found
LOOK_SECONDS = 0.1
SAME_SECONDS = 0.3  # in which a second signal counts as the first
SAVE_SECONDS = 50.0  # for flow runs that save what they have; their steps get 30 of them
TELL_SECONDS = 10.0  # for Prefect to note how flow runs ended
SAVING = "Flow runs are under way, and save what they have ..."
_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process: its number, and when it started in the words of this system."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """Whether it still runs; one that has ended and whose parent hasn't heard of it doesn't."""
        return _started(self.pid) == self.started


def start(command: Sequence[str], environ: Mapping[str, str], log: Path, folder: Path) -> Process:
    """Start a program in a session of its own, with its output appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        begun = subprocess.Popen(
            list(command), env=dict(environ), cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    return known(begun.pid)


def known(pid: int) -> Process:
    """The process that has this number now; where none has, one that isn't alive."""
    return Process(pid, _started(pid) or "")


def stop(process: Process, seconds: float) -> bool:
    """Ask a process to end, and kill it and its group after so long; whether it ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGTERM)
    ended = wait([process], seconds)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # helpers that it left, and itself
    wait([process], seconds)
    return ended


def stop_all(processes: Sequence[Process], seconds: float) -> bool:
    """Ask those of them that none of them has started to end, and kill all that haven't after so long; whether they
    ended by themselves."""
    numbers = {process.pid for process in processes}
    for process in processes:
        if _parent(process.pid) not in numbers and process.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
    if wait(processes, seconds):
        return True
    for process in processes:
        if process.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
    wait(processes, seconds)
    return False


def wait(processes: Iterable[Process], seconds: float) -> bool:
    """Wait until all of them have ended; whether they have, in so long."""
    limit = time.monotonic() + seconds
    for process in processes:
        while process.alive:
            if time.monotonic() > limit:
                return False
            time.sleep(LOOK_SECONDS)
    return True


def marked(mark: str) -> list[Process]:
    """All processes that carry this mark, this one excepted; none on systems without /proc."""
    found = []
    for folder in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                pid = int(folder.name)
                if pid != os.getpid() and (started := _started(pid)):
                    found.append(Process(pid, started))
    return found


def flow_runs(mark: str, besides: Collection[int]) -> list[Process]:
    """The flow runs that carry this mark, with all that they have started.

    Args:
        besides: the servers and workers of that mark; what is in a session of theirs is no flow run.
    """
    return [one for one in marked(mark) if session(one) not in besides]


def stop_flow_runs(mark: str, besides: Collection[int], say: Callable[[str], None]) -> None:
    """End the flow runs that carry this mark, also those whose worker is gone; `besides` as of `flow_runs`."""
    if runs := flow_runs(mark, besides):
        say(SAVING)
        if not stop_all(runs, SAVE_SECONDS):
            say(f"Some didn't end in {SAVE_SECONDS:.0f} s and were killed.")


def session(process: Process) -> int:
    """The number of the process that began its session; 0 if it is gone."""
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return 0


def _started(pid: int) -> str | None:
    """When a process started; None if there is none, or only what is left of one."""
    if (_PROC / "self" / "stat").exists():
        words = _stat(pid)
        return f"{words[19]} {_boot()}" if words and words[0] not in "ZX" else None
    told = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, started = told.stdout.strip().partition(" ")
    return started.strip() if state and not state.startswith("Z") else None


def _parent(pid: int) -> int:
    words = _stat(pid)
    return int(words[1]) if words else 0


def _stat(pid: int) -> list[str]:
    """What the kernel tells of a process, after its name; nothing if there is none."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def free_port(port: int, option: str) -> None:
    """Refuse a port of this machine that something listens at.

    Raises:
        ConfigurationError: naming the option that chooses another.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigurationError(
                f"Port {port} can't be used ({error.strerror}): name another one by {option}, or stop what uses it."
            ) from None
