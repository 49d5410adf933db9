"""The ranks of a step as the process sees them that has forked them: their start, their ends, and of what the step
fails.

A rank that fails says why before its connections close, so the others' complaints about a lost peer are always the
later ones: the step's failure is the first that names a class (out of memory, diverged, killed by a signal …), else
the first of all. Rank 0's main thread may wait in a collective that never returns, so a thread of its own watches the
others and ends the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing import connection
from pathlib import Path
from typing import NoReturn, Protocol

from vibethinker import preemption, steps
from vibethinker.errors import CHILD_EXITS, InfrastructureError, VibeThinkerError
from vibethinker.worker import exhaustion, nodes
from vibethinker.worker.endings import classify, die_with_parent, killed_by

TICK_SECONDS = 0.1
GRACE_SECONDS = 3.0  # for a rank that names the cause, after another has complained about its loss
NODE_GRACE_SECONDS = 1.0  # likewise on another machine, whose word has to reach the first within the latter's grace
FINISH_SECONDS = 60.0  # for the other ranks, once rank 0 has all that the step makes


class Parent(Protocol):
    """The process that rank 0 speaks to."""

    def ranks(self, pids: Sequence[int]) -> None:
        """These processes are the other ranks."""

    def fail(self, failure: VibeThinkerError) -> NoReturn:
        """Tell the failure and end this process, from whatever thread."""


class Silent:
    """The emitter of all ranks but the first."""

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Say nothing."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Say nothing."""

    def warning(self, text: str) -> None:
        """Say nothing."""


def compute(kind: str, context: steps.StepContext) -> steps.Metrics:
    """Run the step's function in this process."""
    return steps.resolve(kind, context.execution.get("backend", "transformers"))(context)


def leave(status: int) -> NoReturn:
    """End this process without libraries' exit handlers, which may hang on threads that a fork didn't bring along."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Rank:
    """A rank that this process has forked; `words` is the pipe on which it says why it failed."""

    def __init__(self, number: int, total: int, pid: int, words: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self.failure: VibeThinkerError | None = None
        self.failed_at = 0.0
        self._place, self._words, self._victims = f"rank {number} of {total}", words, exhaustion.killed()

    def look(self) -> None:
        """Notice whether it has ended, and what it said."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        if self.failure is None:
            with contextlib.suppress(BlockingIOError):
                if words := os.read(self._words, 1 << 16):
                    said = json.loads(words)
                    error = CHILD_EXITS.get(said["status"], VibeThinkerError)
                    self.failure, self.failed_at = error(self._where(said["message"])), said["time"]
        if self.failure is None and self.status:
            error, how = CHILD_EXITS.get(self.status, InfrastructureError), f"ended with status {self.status}"
            if self.status < 0:
                error, how = killed_by(-self.status, self._victims)
            self.failure, self.failed_at = error(self._where(f"The process was {how}")), time.monotonic()

    def stop(self) -> None:
        """Ask it to save and leave."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it, if it still runs."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.status = -signal.SIGKILL

    def _where(self, message: str) -> str:
        return f"{message.rstrip('.')} ({self._place})."


class Ranks:
    """The ranks that this process has forked, and for rank 0 the other machines of the step.

    Args:
        total: ranks of the step.
        others: other machines, by now connected.
    """

    def __init__(self, total: int, parent: Parent | None = None, others: Sequence[nodes.Node] = ()) -> None:
        self._total, self._parent, self._others = total, parent, others
        self._ranks: list[_Rank | nodes.Node] = list(others)
        self._grace = GRACE_SECONDS if parent else NODE_GRACE_SECONDS
        self._over = threading.Event()
        self._deciding = threading.Lock()

    def start(
        self, numbers: Sequence[int], kind: str, context: steps.StepContext, scratch: Path, gpus: Sequence[str]
    ) -> None:
        """Fork these ranks, each with an output of its own that is dropped; in a rank itself this doesn't return."""
        shutil.rmtree(scratch, ignore_errors=True)
        for number in numbers:
            output = scratch / str(number)
            output.mkdir(parents=True)
            gpu = gpus[number % len(gpus)] if gpus else None
            self._fork(number, kind, replace(context, output=output, emit=Silent()), gpu)

    def _fork(self, number: int, kind: str, context: steps.StepContext, gpu: str | None) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        words, send = os.pipe()
        with warnings.catch_warnings():
            # Python warns of forking beside threads: the only other one here reads stdin and holds no lock.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _live(number, kind, context, gpu, send)
        os.close(send)
        os.set_blocking(words, False)
        self._ranks.append(_Rank(number, self._total, pid, words))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block a rank's failure ends this process; one of this rank becomes the step's cause."""
        watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
        watcher.start()
        assert self._parent
        self._parent.ranks([rank.pid for rank in self._ranks if isinstance(rank, _Rank)])
        try:
            yield
        except BaseException as error:
            with self._deciding:  # for good, where the watcher is ending this process
                self._over.set()
                cause = self._cause(error)
            if cause is error:
                raise
            raise cause from error
        finally:
            self._over.set()
            watcher.join()

    def wait(self) -> None:
        """Until the other ranks have ended; what is left after FINISH_SECONDS has nothing to add and is killed."""
        limit = time.monotonic() + FINISH_SECONDS
        while time.monotonic() < limit and not self.done():
            time.sleep(TICK_SECONDS / 4)
            with self._deciding:
                if (cause := self.failed()) is not None:
                    raise cause

    def stop(self) -> None:
        """Ask all to save and leave."""
        for rank in self._ranks:
            rank.stop()

    def failed(self) -> VibeThinkerError | BaseException | None:
        """Of what the step has failed, if one of them has."""
        self._look()
        return self._cause(None) if any(rank.status for rank in self._ranks) else None

    def seconds_since(self, failure: BaseException) -> float:
        """How long ago one of these ranks failed of this."""
        return next((time.monotonic() - rank.failed_at for rank in self._ranks if rank.failure is failure), 0.0)

    def done(self) -> bool:
        """Whether all have ended, when last looked at."""
        return all(rank.status is not None for rank in self._ranks)

    def end(self, scratch: Path) -> None:
        """End all that still run, and remove what they wrote."""
        for rank in self._ranks:
            rank.kill()
        shutil.rmtree(scratch, ignore_errors=True)

    def _watch(self) -> None:
        asked = False
        while not self._over.wait(TICK_SECONDS):
            with self._deciding:
                if self._over.is_set():
                    return
                if (cause := self.failed()) is not None:
                    for rank in self._ranks:
                        rank.kill()
                    assert self._parent
                    self._parent.fail(classify(cause))
                if any(node.leaving for node in self._others) and not preemption.asked():
                    os.killpg(0, signal.SIGTERM)  # as the server asks for it
                if preemption.asked() and not asked:  # as the ranks of this machine were, by the same signal
                    asked = True
                    for other in self._others:
                        other.stop()

    def _look(self) -> None:
        for rank in self._ranks:
            rank.look()

    def _cause(self, own: BaseException | None) -> VibeThinkerError | BaseException:
        """Of this rank's failure and the others' the one that came first, those that name a class before all."""
        failed_at, limit = time.monotonic(), time.monotonic() + self._grace
        while True:
            self._look()
            failures: list[tuple[float, BaseException]] = [
                (r.failed_at, r.failure) for r in self._ranks if r.failure is not None
            ]
            if own is not None:
                failures.append((failed_at, own))
            failed = min(failures, key=lambda f: (_is_general(f[1]), f[0]))[1]
            if not _is_general(failed) or time.monotonic() > limit:
                return failed
            # Another machine says how long ago its ranks failed, which is to be heard at once.
            connection.wait([node.fileno() for node in self._others if node.status is None], TICK_SECONDS)


def _is_general(error: BaseException) -> bool:
    return type(classify(error)) is VibeThinkerError


def _live(number: int, kind: str, context: steps.StepContext, gpu: str | None, words: int) -> NoReturn:
    """What rank `number` does from its fork to its end."""
    status = 0
    try:
        if sys.platform == "linux":
            die_with_parent()
        become(number, gpu)
        compute(kind, context)
    except BaseException as error:
        failure = classify(error)
        status = failure.child_exit
        said = {"time": time.monotonic(), "status": status, "message": str(failure)[:4000]}
        os.write(words, json.dumps(said).encode())
        traceback.print_exc()
    leave(status)


def become(rank: int, gpu: str | None) -> None:
    """Make this process a rank, with a GPU of its own if it has one."""
    os.environ["RANK"] = str(rank)
    if gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
