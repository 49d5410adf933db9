"""The flow process's side of a worker: start its server, ask for steps, hear their events.

`Host.run` blocks the calling thread until its step has ended, and may be called from many threads at once. The server
and all it started end with this process, also when it is killed, because the server's stdin closes with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vibethinker.errors import KINDS, ConfigurationError, InfrastructureError, RolledBackError, VibeThinkerError

Event = dict[str, Any]

# OpenMP threads that spin while they wait starve each other when another process has a core: with a busy neighbour on
# two cores, training at two threads fell from 20k to 2k tokens/s. A short spin still spares the sleep between kernels.
SPIN_COUNT = "1000"


class Host:
    """A running worker server.

    Args:
        python: interpreter of the training environment.
        env: variables added to this process's environment.
        fork: preload the trainers and fork a child a step; not with a GPU.
        log: where the server's own output goes.

    Raises:
        ConfigurationError: the interpreter can't be started.
    """

    def __init__(
        self, log: Path, *, python: str | None = None, env: Mapping[str, str] | None = None, fork: bool
    ) -> None:
        command = [python or sys.executable, "-m", "vibethinker.worker", "serve", *(["--fork"] if fork else [])]
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=output,
                    env={"GOMP_SPINCOUNT": SPIN_COUNT, **os.environ, **(env or {})},
                    start_new_session=True,
                )
        except OSError as error:
            raise ConfigurationError(
                f"worker.python {command[0]!r} can't be started ({error.strerror}): name an interpreter that has "
                "vibethinker and its train extra."
            ) from None
        self._log = log
        self._lock = threading.Lock()
        self._waiting: dict[int, queue.SimpleQueue[Event]] = {}
        self._next = 0
        self._silent = threading.Event()
        threading.Thread(target=self._listen, name="worker-events", daemon=True).start()

    def run(
        self, request: Mapping[str, Any], hear: Callable[[Event], None], stopped: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """Run one step to its end and return its result (see `child.execute`); one that went back to an earlier update
        is run again, by a fresh process.

        Args:
            hear: called in this thread with each event but the last.
            stopped: asked twice a second; once true, the child is told to save and leave.

        Raises:
            VibeThinkerError: of the class that the child's end names.
        """
        while True:
            with contextlib.suppress(RolledBackError):  # as often as execution.divergence.rollbacks allows
                return self._run(request, hear, stopped)

    def _run(
        self, request: Mapping[str, Any], hear: Callable[[Event], None], stopped: Callable[[], bool]
    ) -> dict[str, Any]:
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        with self._lock:
            self._next += 1
            id = self._next
            self._waiting[id] = events
        self._send({"op": "run", "id": id, "request": dict(request)})
        asked = False
        try:
            while True:
                if not asked and stopped():
                    asked = True
                    self._send({"op": "stop", "id": id})
                try:
                    event = events.get(timeout=0.5)
                except queue.Empty:
                    if self._process.poll() is not None:
                        raise self._lost() from None
                    continue
                if event["event"] != "end":
                    hear(event)
                elif event["kind"] == "done":
                    return event["result"]
                else:
                    raise KINDS.get(event["kind"], VibeThinkerError)(event["message"])
        except BaseException:
            with contextlib.suppress(VibeThinkerError):
                self._send({"op": "stop", "id": id})
            raise
        finally:
            with self._lock:
                del self._waiting[id]

    def leave(self, seconds: float) -> None:
        """Tell every running step to save and leave, and wait up to so long until all have."""
        with self._lock:
            running = list(self._waiting)
        with contextlib.suppress(VibeThinkerError):
            for id in running:
                self._send({"op": "stop", "id": id})
        limit = time.monotonic() + seconds
        while self._waiting and self.alive and time.monotonic() < limit:
            time.sleep(0.05)

    @property
    def alive(self) -> bool:
        """Whether the server still runs and speaks."""
        return not self._silent.is_set() and self._process.poll() is None

    def close(self) -> None:
        """End the server and whatever it still runs."""
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin
        try:
            with self._lock:
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()
        except (OSError, ValueError):
            raise self._lost() from None

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if not line.startswith(b'{"id"'):  # something else in that interpreter prints at its start
                continue
            event = json.loads(line)
            with self._lock:
                events = self._waiting.get(event["id"])
            if events is not None:
                events.put(event)
        self._silent.set()

    def _lost(self) -> VibeThinkerError:
        status = self._process.poll()
        text = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        if text and "No module named" in text[-1]:
            return ConfigurationError(f"The worker can't start ({text[-1]}): install vibethinker there.")
        return InfrastructureError(f"The worker's server ended with status {status}; {self._log} has its last words.")
