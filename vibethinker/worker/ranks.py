"""One training step as several processes, its ranks, each on a GPU of its own or on a part of the CPU.

The step's child is rank 0. It forks ranks 1 … n-1 before anything heavy is imported or a GPU is touched, in its own
process group, so that what ends the group ends them all, and lets accelerate find them through the environment. All
ranks run the same step function; rank 0 alone holds the step's lock, speaks to the parent and writes the output, the
others get a folder whose content is dropped.

A rank that fails says why before its connections close, so the others' complaints about a lost peer are always the
later ones: the step's failure is the first that names a class (out of memory, diverged, killed by a signal …), else
the first of all. Rank 0's main thread may wait in a collective that never returns, so a thread of its own watches the
others and ends the process.

Left out: ranks on other machines, and restarting a single rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, Protocol

from vibethinker import steps
from vibethinker.artifacts import SCRATCH
from vibethinker.errors import CHILD_EXITS, ConfigurationError, InfrastructureError, VibeThinkerError
from vibethinker.worker import exhaustion
from vibethinker.worker.endings import classify, die_with_parent, killed_by

# The embedded base isn't among them: a network of a million weights gains nothing, and Muon wants whole matrices.
TRAINS = ("specialist", "signal")
TICK_SECONDS = 0.1
GRACE_SECONDS = 3.0  # for a rank that names the cause, after another has complained about its loss
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


def count(kind: str, execution: Mapping[str, Any]) -> int:
    """Processes of a step: as many as its execution settings say where it trains, else one."""
    return execution.get("processes", 1) if kind in TRAINS or kind not in steps.STEP_FUNCTIONS else 1


def run(kind: str, context: steps.StepContext, gpus: str | None, parent: Parent) -> steps.Metrics:
    """Run a step's function in as many processes as it takes, and return what rank 0's returned.

    Args:
        gpus: comma-separated names as CUDA_VISIBLE_DEVICES has them, one a process; None: those that this process sees.

    Raises:
        ConfigurationError: there are fewer GPUs than processes.
        VibeThinkerError: of the class of the rank that failed first.
    """
    execution = dict(context.execution)
    execution["processes"] = processes = count(kind, execution)
    if processes == 1:
        return steps.resolve(kind, _backend(context))(replace(context, execution=execution))
    for name in ("threads", "verifier_workers"):
        execution[name] = max(1, execution[name] // processes)
    names = _gpus(gpus, processes) if execution["device"] == "cuda" else None
    scratch = context.output.with_name(context.output.name + SCRATCH)
    shutil.rmtree(scratch, ignore_errors=True)
    os.environ.update(_environment(processes, execution["threads"]))
    context = replace(context, execution=execution)
    ranks = _Ranks(parent)
    try:
        for rank in range(1, processes):
            output = scratch / str(rank)
            output.mkdir(parents=True)
            ranks.start(rank, kind, replace(context, output=output, emit=Silent()), names)
        _become(0, names)
        with ranks.watched():
            metrics = steps.resolve(kind, _backend(context))(context)
            ranks.wait()
        return metrics
    finally:
        ranks.kill()
        shutil.rmtree(scratch, ignore_errors=True)


def _backend(context: steps.StepContext) -> str:
    return context.execution.get("backend", "transformers")


def leave(status: int) -> NoReturn:
    """End this process without libraries' exit handlers, which may hang on threads that a fork didn't bring along."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@dataclass
class _Rank:
    number: int
    pid: int
    words: int  # the pipe on which it says why it failed
    status: int | None = None
    failure: VibeThinkerError | None = None
    failed_at: float = 0.0


class _Ranks:
    """Ranks 1 … n-1 as rank 0 sees them."""

    def __init__(self, parent: Parent) -> None:
        self._parent = parent
        self._ranks: list[_Rank] = []
        self._victims = exhaustion.killed()
        self._over = threading.Event()
        self._deciding = threading.Lock()

    def start(self, number: int, kind: str, context: steps.StepContext, gpus: list[str] | None) -> None:
        """Fork one rank; in the rank itself this doesn't return."""
        sys.stdout.flush()
        sys.stderr.flush()
        words, send = os.pipe()
        with warnings.catch_warnings():
            # Python warns of forking beside threads: the only other one here reads stdin and holds no lock.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _live(number, kind, context, gpus, send)
        os.close(send)
        os.set_blocking(words, False)
        self._ranks.append(_Rank(number, pid, words))

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Within the block a rank's failure ends this process; one of this rank becomes the step's cause."""
        watcher = threading.Thread(target=self._watch, name="ranks", daemon=True)
        watcher.start()
        self._parent.ranks([rank.pid for rank in self._ranks])
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
        while time.monotonic() < limit and any(rank.status is None for rank in self._ranks):
            time.sleep(TICK_SECONDS / 4)
            with self._deciding:
                self._look()
                if any(rank.status for rank in self._ranks):
                    raise self._cause(None)

    def kill(self) -> None:
        """End all that still run."""
        for rank in self._ranks:
            if rank.status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rank.pid, signal.SIGKILL)
                os.waitpid(rank.pid, 0)
                rank.status = -signal.SIGKILL

    def _watch(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            with self._deciding:
                if self._over.is_set():
                    return
                self._look()
                if any(rank.status for rank in self._ranks):
                    cause = self._cause(None)
                    self.kill()
                    self._parent.fail(cause)

    def _look(self) -> None:
        """Notice which ranks have ended, and what they said."""
        for rank in self._ranks:
            if rank.status is None:
                pid, status = os.waitpid(rank.pid, os.WNOHANG)
                if pid:
                    rank.status = os.waitstatus_to_exitcode(status)
            if rank.failure is None:
                with contextlib.suppress(BlockingIOError):
                    if words := os.read(rank.words, 1 << 16):
                        said = json.loads(words)
                        error = CHILD_EXITS.get(said["status"], VibeThinkerError)
                        rank.failure, rank.failed_at = error(self._where(rank, said["message"])), said["time"]
            if rank.failure is None and rank.status:
                error, how = CHILD_EXITS.get(rank.status, InfrastructureError), f"ended with status {rank.status}"
                if rank.status < 0:
                    error, how = killed_by(-rank.status, self._victims)
                rank.failure, rank.failed_at = error(self._where(rank, f"The process was {how}")), time.monotonic()

    def _where(self, rank: _Rank, message: str) -> str:
        return f"{message.rstrip('.')} (rank {rank.number} of {len(self._ranks) + 1})."

    def _cause(self, own: BaseException | None) -> VibeThinkerError | BaseException:
        """Of this rank's failure and the others' the one that came first, those that name a class before all."""
        failed_at, limit = time.monotonic(), time.monotonic() + GRACE_SECONDS
        while True:
            self._look()
            failures = [(r.failed_at, r.failure) for r in self._ranks if r.failure is not None]
            if own is not None:
                failures.append((failed_at, own))
            failed = min(failures, key=lambda f: (_is_general(f[1]), f[0]))[1]
            if not _is_general(failed) or time.monotonic() > limit:
                return failed
            time.sleep(TICK_SECONDS)


def _is_general(error: BaseException) -> bool:
    return type(classify(error)) is VibeThinkerError


def _live(number: int, kind: str, context: steps.StepContext, gpus: list[str] | None, words: int) -> NoReturn:
    """What rank `number` does from its fork to its end."""
    status = 0
    try:
        if sys.platform == "linux":
            die_with_parent()
        _become(number, gpus)
        steps.resolve(kind, _backend(context))(context)
    except BaseException as error:
        failure = classify(error)
        status = failure.child_exit
        said = {"time": time.monotonic(), "status": status, "message": str(failure)[:4000]}
        os.write(words, json.dumps(said).encode())
        traceback.print_exc()
    leave(status)


def _become(rank: int, gpus: list[str] | None) -> None:
    os.environ["RANK"] = str(rank)
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[rank]


def _environment(processes: int, threads: int) -> dict[str, str]:
    """What accelerate, torch and NCCL read, alike for all ranks.

    All have LOCAL_RANK 0, since each sees one GPU, which is then its first. All are on one machine, so they talk over
    the loopback: a container's own name often leads nowhere. NVLink multicast fails in virtual machines that pass GPUs
    through, and two to eight GPUs lose little without it.
    """
    loopback = "lo" if sys.platform == "linux" else "lo0"
    fixed = {
        "WORLD_SIZE": str(processes),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": str(threads),
    }
    usual = {"NCCL_NVLS_ENABLE": "0", "NCCL_SOCKET_IFNAME": loopback, "GLOO_SOCKET_IFNAME": loopback}
    return fixed | {name: value for name, value in usual.items() if name not in os.environ}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _gpus(named: str | None, processes: int) -> list[str]:
    named = named or os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(processes)))
    gpus = [name.strip() for name in named.split(",") if name.strip()]
    if len(gpus) < processes:
        raise ConfigurationError(
            f"execution.processes is {processes} but the step has {len(gpus)} GPU: lower it, or give it more GPUs."
        )
    return gpus
