"""Worker processes: started when first needed, killed when stuck, replaced, gone when their owner is.

One thread owns each worker, starts it and talks to it, several items at a time so that the worker never
waits. The thread lives as long as the pool, which matters: the kernel ends a worker when the *thread* that
started it ends, a caller's thread may be short-lived, and nothing else works when the owning process is
killed outright. When a worker dies, the first item without a reply is the culprit; the others go to its
successor.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vibethinker.errors import ConfigurationError, InfrastructureError, VibeThinkerError
from vibethinker.verification import descendants, folders

WORKER = "vibethinker.verification.worker"
Reply = dict[str, Any]  # {"verdict": str, "seconds": float}

_START_SECONDS = 120.0
_GRACE_SECONDS = 60.0  # beyond an item's limit, for the limit is kept in the worker
_STOP_SECONDS = 3.0
# Items sent to a worker at once: their requests must fit into a socket's buffer, of other kinds the whole response.
_AHEAD = {"math": 8}
_CLOSED = "the verifier was closed while it graded: grade again with an open one"
_WAITING = 256  # items a worker that `submit` takes before it lets its caller wait
_ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "TMPDIR")  # no secrets


@dataclass
class Task:
    """One request and the place of its reply."""

    request: dict[str, Any]
    reply: Future[Reply] = field(default_factory=Future)


class Pool:
    """At most `workers` workers of a kind ("math", "code" or a plugin's) with these settings and `seconds` an item.

    `tier` is where programs run, known once a worker has started.
    """

    def __init__(self, kind: str, workers: int, seconds: float, settings: dict[str, Any]) -> None:
        self.kind, self.workers, self.seconds, self.settings = kind, workers, seconds, settings
        self.tier: str | None = None
        self._lock = threading.Lock()
        self._open()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._room = threading.Semaphore(_WAITING * self.workers)
        self.tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._threads: list[_Worker] = []

    def submit(self, request: dict[str, Any]) -> Future[Reply]:
        """The reply to come; waits while too many others are to come.

        From the reply: InfrastructureError, when no worker starts or the pool was closed, and ConfigurationError, when
        programs can't be run as configured.
        """
        with self._lock:
            if self._pid != os.getpid():
                self._open()  # a fork of the owner: its threads didn't come along, its workers aren't ours
            room, tasks = self._room, self.tasks
        room.acquire()
        task = Task(request)
        task.reply.add_done_callback(lambda _: room.release())
        with self._lock:
            if self.tasks is not tasks:
                task.reply.set_exception(InfrastructureError(_CLOSED))
                return task.reply
            self.tasks.put(task)
            if len(self._threads) < self.workers:
                self._threads.append(_Worker(self))
                self._threads[-1].start()
        return task.reply

    def close(self) -> None:
        """End every worker, busy or not."""
        with self._lock:
            if self._pid != os.getpid():
                return
            threads, tasks = self._threads, self.tasks
            self._open()
        for thread in threads:
            thread.close()
        for _ in threads:
            tasks.put(None)
        for thread in threads:
            thread.join()


class _Worker(threading.Thread):
    def __init__(self, pool: Pool) -> None:
        super().__init__(name=f"verifier-{pool.kind}", daemon=True)
        self.pool = pool
        self.tasks = pool.tasks
        self._process: _Process | None = None
        self._closed = False
        self._lock = threading.Lock()  # between starting a process and closing

    def run(self) -> None:
        while (task := self.tasks.get()) is not None:
            pending = deque([task])
            try:
                self._take_more(pending)
                while pending:
                    self._exchange(pending)
            except Exception as error:  # raised where the caller waits for the replies
                self._end()  # whatever it still says belongs to no one
                for task in pending:
                    task.reply.set_exception(error)
        self._end()

    def _take_more(self, pending: deque[Task]) -> None:
        share = max(1, self.tasks.qsize() // self.pool.workers)
        with suppress(queue.Empty):
            while len(pending) < min(_AHEAD.get(self.pool.kind, 1), share):
                if (task := self.tasks.get_nowait()) is None:
                    self.tasks.put(None)
                    return
                pending.append(task)

    def _exchange(self, pending: deque[Task]) -> None:
        process = self._running()
        try:
            process.send([task.request for task in pending])
            while pending:
                reply = process.receive(self.pool.seconds + _GRACE_SECONDS)
                pending.popleft().reply.set_result(reply)
        except OSError:
            self._end()
            verdict = "infrastructure" if self.pool.kind == "code" else "error"
            if process.popen.returncode == -signal.SIGALRM:
                verdict = "timeout"
            if not self._closed:
                pending.popleft().reply.set_result({"verdict": verdict, "seconds": self.pool.seconds, "again": True})

    def _running(self) -> _Process:
        with self._lock:
            if self._closed:
                raise InfrastructureError(_CLOSED)
            if self._process is None:
                self._process = _Process(self.pool.kind, self.pool.settings)
            process = self._process
        if not process.ready:
            try:
                self.pool.tier = process.wait_until_ready()
            except VibeThinkerError:
                self._end()
                raise
        return process

    def _end(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.end()
                self._process = None

    def close(self) -> None:
        self._closed = True
        self._end()


class _Process:
    """One worker and its socket. Methods raise OSError once it is gone."""

    def __init__(self, kind: str, settings: dict[str, Any]) -> None:
        self.kind = kind
        self.ready = False
        self.socket, theirs = socket.socketpair()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end
        self.root = folders.make() if kind == "code" else None
        settings = settings | {"root": self.root}
        # -P and this path: the package that runs here, whatever the current folder holds; then where its libraries are.
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        with theirs:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "-m", WORKER, kind, json.dumps(settings), str(os.getpid())],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self.log,
                env=environment,
                start_new_session=True,
            )
        self.lines = self.socket.makefile("rb")

    def wait_until_ready(self) -> str | None:
        """The sandbox's tier, of a worker that runs programs."""
        try:
            said = self.receive(_START_SECONDS)
        except (OSError, ValueError):  # the latter where `end` has closed what is read from
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(_STOP_SECONDS)
            if self.log.closed:
                raise InfrastructureError(_CLOSED) from None
            self.log.seek(0)
            lines = self.log.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"it ended with status {self.popen.returncode} and said nothing"
            raise InfrastructureError(f"the {self.kind} verifier's worker didn't start: {reason}") from None
        if "refused" in said:
            raise ConfigurationError(said["refused"])
        self.ready = True
        return said.get("tier")

    def send(self, requests: list[dict[str, Any]]) -> None:
        self.socket.settimeout(_GRACE_SECONDS)
        self.socket.sendall(b"".join(json.dumps(request).encode() + b"\n" for request in requests))

    def receive(self, seconds: float) -> Reply:
        self.socket.settimeout(seconds)
        line = self.lines.readline()
        if not line.endswith(b"\n"):
            raise ConnectionError("the worker ended")
        return json.loads(line)

    def end(self) -> None:
        """Terminate, which lets a code worker end its programs too; where it doesn't, kill it and all below it."""
        self.popen.terminate()
        try:
            self.popen.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            # Stopped first, so that it starts nothing more; programs have sessions of their own.
            os.kill(self.popen.pid, signal.SIGSTOP)
            for pid in [*descendants.descendants(self.popen.pid), self.popen.pid]:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            self.popen.wait()
        self.lines.close()
        self.socket.close()
        self.log.close()
        if self.root is not None:
            folders.remove(self.root)  # the worker has, unless it was killed
