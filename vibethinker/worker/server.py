"""The worker's server: starts a child a request, forwards its events, and outlives none of its masters.

One thread, one selector: stdin (requests; its end means the flow process is gone), the children's event pipes, and
in fork mode the socket to the zygote. A child that says nothing for `stall_seconds` gets its stack dumped into its log
and is killed. Descriptors cross to the zygote by SCM_RIGHTS. SIGTERM and SIGINT are left to the flow process, which
asks the steps to stop: what ends a service sends them to all of its processes at once.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from vibethinker.errors import CHILD_EXITS, InfrastructureError, PreemptedError
from vibethinker.worker import child, exhaustion
from vibethinker.worker.endings import die_with_parent, killed_by

# What a step needs first; loading it costs about 15 s once and is then shared by every forked child. The environment
# variable VIBETHINKER_PRELOAD names other modules.
PRELOAD = ("torch", "transformers", "peft", "datasets", "trl.trainer.sft_trainer", "trl.trainer.grpo_trainer")
TICK_SECONDS = 0.5
DUMP_SECONDS = 0.1  # for one process's stack, so that two don't write into one another
NEWS = struct.Struct("<q?q")  # what the zygote tells: request id, whether a pid or else a status, its value


@dataclass
class _Child:
    id: int
    step: str
    events: int
    pid: int | None = None
    ranks: tuple[int, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    stall_seconds: float = 600.0
    stop_seconds: float = 30.0
    heard: float = 0.0
    end: bytes | None = None
    status: int | None = None
    pipe_open: bool = True
    asked_to_stop: bool = False
    kill_at: float | None = None
    killed_because: str | None = None
    buffer: bytes = b""
    victims: int | None = None  # of the kernel's out-of-memory killer when it started


def serve(*, fork: bool) -> NoReturn:
    """Serve requests until stdin ends; then kill everything and leave."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    zygote = _start_zygote() if fork else None
    server = _Server(zygote)
    try:
        server.loop()
    finally:
        server.kill_all()
        os._exit(0)


class _Server:
    def __init__(self, zygote: socket.socket | None) -> None:
        self.zygote = zygote
        self.children: dict[int, _Child] = {}
        self.selector = selectors.DefaultSelector()
        self.stdin_buffer = b""
        self.selector.register(0, selectors.EVENT_READ, self._requests)
        if zygote:
            self.selector.register(zygote, selectors.EVENT_READ, self._zygote_news)

    def loop(self) -> None:
        while True:
            for key, _ in self.selector.select(TICK_SECONDS):
                handler: Callable[[], bool | None] = key.data
                if handler() is False:
                    return
            for one in list(self.children.values()):
                self._watch(one)

    def kill_all(self) -> None:
        for one in self.children.values():
            _kill_group(one.pid, signal.SIGKILL)

    def _requests(self) -> bool | None:
        data = os.read(0, 1 << 16)
        if not data:
            return False
        *lines, self.stdin_buffer = (self.stdin_buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["op"] == "run":
                self._start(message["id"], {**message["request"], "id": message["id"]})
            elif message["op"] == "stop" and message["id"] in self.children:
                one = self.children[message["id"]]
                if not one.asked_to_stop:
                    one.asked_to_stop, one.kill_at = True, time.monotonic() + one.stop_seconds
                self._watch(one)
        return None

    def _start(self, id: int, request: Mapping[str, Any]) -> None:
        receive, send = os.pipe()
        one = _Child(id, request["step"], receive, heard=time.monotonic())
        one.stall_seconds, one.stop_seconds = request["stall_seconds"], request["stop_seconds"]
        one.victims = exhaustion.killed()
        self.children[id] = one
        self.selector.register(receive, selectors.EVENT_READ, lambda: self._events(one))
        try:
            if self.zygote:
                message = json.dumps(request).encode()
                socket.send_fds(self.zygote, [len(message).to_bytes(8, "big")], [send])
                self.zygote.sendall(message)
            else:
                one.process = subprocess.Popen(
                    [sys.executable, "-m", "vibethinker.worker", "child"],
                    stdin=subprocess.PIPE, stdout=send, start_new_session=True,
                )  # fmt: skip
                one.pid = one.process.pid
                assert one.process.stdin
                one.process.stdin.write(json.dumps(request).encode() + b"\n")
                one.process.stdin.flush()
        except OSError as error:
            one.killed_because = f"no process could be started for it ({error})"
            one.status = InfrastructureError.child_exit
        finally:
            os.close(send)

    def _events(self, one: _Child) -> None:
        if not one.pipe_open:  # given up by what was heard just before
            return
        data = os.read(one.events, 1 << 16)
        if not data:
            self.selector.unregister(one.events)
            os.close(one.events)
            one.pipe_open = False
            self._watch(one)
            return
        one.heard = time.monotonic()
        *lines, one.buffer = (one.buffer + data).split(b"\n")
        for line in lines:
            if not line.startswith(b'{"id"'):  # something else in that interpreter prints at its start
                continue
            # An end is told when the process is gone, so that whoever hears it finds nothing alive.
            event = json.loads(line)
            if event["event"] == "end":
                one.end = one.end or line
            elif event["event"] == "ranks":  # not for the parent: whose stacks a stall is to dump
                one.ranks = tuple(event["pids"])
            else:
                _write(line)

    def _zygote_news(self) -> bool | None:
        assert self.zygote
        data = _receive(self.zygote, NEWS.size)
        if not data:
            return False
        id, is_pid, value = NEWS.unpack(data)
        one = self.children.get(id)
        if one and is_pid:
            one.pid, one.heard = value, time.monotonic()
        elif one:
            one.status = value
            self._watch(one)
        return None

    def _watch(self, one: _Child) -> None:
        now = time.monotonic()
        if one.process is not None and one.status is None:
            one.status = one.process.poll()
        if one.status is not None:
            # The step is over; whatever it left in its group must not keep the pipe, a lock or a GPU.
            _kill_group(one.pid, signal.SIGKILL)
            if not one.pipe_open:
                self._finish(one)
            return
        if one.pid is None:
            if now > (one.kill_at or one.heard + one.stall_seconds):
                self._give_up(one)
        elif one.kill_at is not None and now > one.kill_at:
            _kill_group(one.pid, signal.SIGKILL)
        elif one.asked_to_stop:  # again and again, since it may not have begun to listen; it hears the first alone
            _kill_group(one.pid, signal.SIGTERM)
        elif one.kill_at is None and now - one.heard > one.stall_seconds:
            one.killed_because = (
                f"it reported nothing for {one.stall_seconds:g} s; its stack is in its log, and "
                "execution.stall_seconds sets the limit"
            )
            for pid in (one.pid, *one.ranks):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)
                time.sleep(DUMP_SECONDS)
            one.kill_at = time.monotonic() + 1.0

    def _give_up(self, one: _Child) -> None:
        """End a step for which there is no process yet, as while the trainers' imports hang; one that is forked after
        all finds its pipe closed."""
        error = PreemptedError if one.asked_to_stop else InfrastructureError
        one.killed_because = "no process could be started for it in time, since the trainers are still being loaded"
        one.status = error.child_exit
        self.selector.unregister(one.events)
        os.close(one.events)
        one.pipe_open = False
        self._finish(one)

    def _finish(self, one: _Child) -> None:
        del self.children[one.id]
        if one.end is not None:
            _write(one.end)
            return
        status = one.status or 0
        error, reason = CHILD_EXITS.get(status, InfrastructureError), one.killed_because
        if reason is None and status < 0 and one.asked_to_stop:
            error, reason = PreemptedError, "it was asked to stop"
        elif reason is None and status < 0:
            error, how = killed_by(-status, one.victims if one.kill_at is None else None)
            reason = f"its process was {how}"
        reason = reason or f"its process ended with status {status} and said nothing"
        end = {"id": one.id, "sequence": 0, "time": time.time(), "event": "end", "kind": error.kind}
        _write(json.dumps({**end, "message": f"The step {one.step} didn't finish: {reason}."}).encode())


def _write(line: bytes) -> None:
    data = line + b"\n"
    while data:
        data = data[os.write(1, data) :]


def _kill_group(pid: int | None, number: int) -> None:
    if pid:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, number)


# ---- zygote ----


def _start_zygote() -> socket.socket:
    ours, theirs = socket.socketpair()
    if os.fork():
        theirs.close()
        return ours
    ours.close()
    die_with_parent()
    _zygote(theirs)


def _zygote(server: socket.socket) -> NoReturn:
    """Import what steps need, then fork a child for each request and tell its pid and its status."""
    os.environ.update(child.QUIET)
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 0)
    os.dup2(quiet, 1)
    for name in os.environ.get("VIBETHINKER_PRELOAD", ",".join(PRELOAD)).split(","):
        with contextlib.suppress(ImportError):  # the step that needs it says so with its name
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # keep the collector from touching, and so copying, every shared page in each child
    running: dict[int, int] = {}
    server.settimeout(0.02)
    while True:
        with contextlib.suppress(TimeoutError):
            head, descriptors, _, _ = socket.recv_fds(server, 8, 1)
            if not head:
                os._exit(0)
            server.settimeout(None)
            request = json.loads(_receive(server, int.from_bytes(head, "big")))
            pid = os.fork()
            if pid == 0:
                server.close()
                die_with_parent()
                os.setsid()
                child.run(request, descriptors[0])
            os.close(descriptors[0])
            running[pid] = request["id"]
            server.sendall(NEWS.pack(request["id"], True, pid))
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            server.sendall(NEWS.pack(running.pop(pid), False, os.waitstatus_to_exitcode(status)))
        server.settimeout(0.02 if running else None)


def _receive(server: socket.socket, size: int) -> bytes:
    """`size` bytes, or none when the other side is gone."""
    data = b""
    while len(data) < size:
        more = server.recv(size - len(data))
        if not more:
            return b""
        data += more
    return data
