"""One step in its own process: lock, look once more, run, publish, say how it ended.

Events go to one pipe as JSON lines; everything that libraries print goes to the step's log file. A failure's class
is told twice, by the end event and by the exit status, since a dying process may manage only one of the two.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from vibethinker import environment, faults, plugins, preemption, steps, telemetry
from vibethinker.artifacts import INPUTS, Artifact, Store
from vibethinker.errors import ConfigurationError, InfrastructureError, PreemptedError, VibeThinkerError
from vibethinker.redaction import learn, redact
from vibethinker.worker import family, ranks
from vibethinker.worker.endings import classify

QUIET = telemetry.OFF | {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}


QUIET_SECONDS = 10.0  # of a step that reads or writes large files


class PipeEmitter:
    """Writes events to the server; safe to use from a trainer's threads."""

    def __init__(self, descriptor: int, request_id: int) -> None:
        self._descriptor, self._id = descriptor, request_id
        self._sequence, self._lock = 0, threading.Lock()
        self._sent_at = time.monotonic()

    def progress(self, done: int, total: int, text: str = "") -> None:
        """See `steps.Emitter`."""
        self.send("progress", done=done, total=total, text=text)

    def alive(self, doing: str) -> None:
        """A sign of life where the last one is QUIET_SECONDS ago, of a step that hasn't begun, or is over."""
        if time.monotonic() - self._sent_at > QUIET_SECONDS:
            self.progress(0, 1, doing)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """See `steps.Emitter`."""
        self.send("metrics", step=step, values={k: float(v) for k, v in values.items()})

    def warning(self, text: str) -> None:
        """See `steps.Emitter`."""
        self.send("warning", text=redact(text))

    def ranks(self, pids: Sequence[int]) -> None:
        """See `family.Parent`."""
        self.send("ranks", pids=list(pids))

    def fail(self, failure: VibeThinkerError) -> NoReturn:
        """See `family.Parent`."""
        with contextlib.suppress(OSError):  # nobody listens any more; the status still tells
            self.send("end", kind=failure.kind, message=str(failure))
        family.leave(failure.child_exit)

    def send(self, event: str, **fields: Any) -> None:
        """Write one event whole; a pipe that nobody reads any more ends the process, since its flow is gone."""
        with self._lock:
            self._sent_at = time.monotonic()
            self._sequence += 1
            line = {"id": self._id, "sequence": self._sequence, "time": time.time(), "event": event, **fields}
            data = (json.dumps(line) + "\n").encode()
            while data:
                data = data[os.write(self._descriptor, data) :]


def main() -> None:
    """A fresh process: the request is stdin's first line, and stdin's end means that the server is gone."""
    request = json.loads(sys.stdin.buffer.readline())
    events = os.dup(1)
    threading.Thread(target=die_with_stdin, daemon=True).start()
    run(request, events)


def run(request: Mapping[str, Any], events: int) -> NoReturn:
    """Execute one request in this process and leave it."""
    os.environ.update(QUIET)
    if request.get("gpu") is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = request["gpu"]
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    preemption.install()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to everyone; the flow process decides
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    learn(request["execution"].get("secrets", {}).values())
    emitter = PipeEmitter(events, request["id"])
    try:
        result = execute(request, emitter)
        preemption.finish()
        emitter.send("end", kind="done", result=result)
    except BaseException as error:
        traceback.print_exc()
        emitter.fail(classify(error))
    family.leave(0)


def execute(request: Mapping[str, Any], emitter: PipeEmitter) -> dict[str, Any]:
    """Run and publish one step, or find that another process has done so meanwhile.

    Returns:
        `folder`, `digest`, `metrics`, `seconds`, and `reused`: whether somebody else had published it.

    Raises:
        VibeThinkerError: of the class that says what to do about it.
    """
    store = Store(Path(request["workspace"]))
    step, fingerprint = request["step"], request["fingerprint"]
    if planned := request["settings"].get("plugins"):
        for problem in plugins.differences(planned, plugins.present(), "this step's interpreter"):
            raise ConfigurationError(problem)
    with store.lock(step, fingerprint, lambda: emitter.progress(0, 1, "waiting for another run that makes this step")):
        # Within the lock, since what was read before a wait of hours may have been made anew meanwhile.
        digests = {role: store.input(*named).digest for role, named in request["inputs"].items()}
        found, reason = store.find(step, fingerprint, digests)
        if found:
            return _result(found, reused=True)
        if reason:
            emitter.warning(f"The published output of {step} moved to {store.retire(step, fingerprint)}: {reason}.")
        faults.point("child.locked", step)
        started = time.monotonic()
        reading = partial(emitter.alive, "reading its inputs")
        inputs = {role: store.read_whole(source, made, reading) for role, (source, made) in request["inputs"].items()}
        digests = {role: artifact.digest for role, artifact in inputs.items()}
        staging = store.staging(step, fingerprint)
        checkpoints = store.resumable(step, fingerprint, digests)
        folders = {role: a.folder for role, a in inputs.items()}
        resumed = any(entry.name != INPUTS for entry in checkpoints.iterdir())
        set_up_libraries(request["kind"], checkpoints)
        context = steps.StepContext(
            step, request["settings"], request["execution"], folders, staging, checkpoints, emitter
        )
        try:
            metrics = ranks.run(request["kind"], context, request.get("gpu"), emitter, store.workspace)
        except PreemptedError:
            raise
        except Exception as error:
            _blame_inputs(store, request["inputs"], digests, error)
            raise
        preemption.finish()
        faults.point("child.computed", step)
        record = {
            "kind": request["kind"],
            "settings": request["settings"],
            "metrics": metrics,
            "seconds": round(time.monotonic() - started, 3),
            "resumed": resumed,
            "work": request.get("work"),
            "finished": time.time(),
            "seed": request["settings"].get("seed"),
            "deterministic": request["settings"].get("deterministic"),
            "versions": environment.versions() | request["settings"].get("plugins", {}),
            "environment": environment.facts(),
            "revision": request.get("revision"),
            "run_id": request.get("run_id"),
        }
        writing = partial(emitter.alive, "writing its output")
        artifact = store.publish(staging, step, fingerprint, inputs=digests, record=record, tell=writing)
        faults.point("child.published", step)
        return _result(artifact, reused=False)


def set_up_libraries(kind: str, checkpoints: Path) -> None:
    """Set what a step's libraries read when they are imported."""
    # Else Unsloth writes the code that it generates into the current folder.
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(checkpoints / "unsloth"))
    if kind in ("specialist", "distilled"):
        # Passes differ in length, so that fixed blocks of memory would be freed and taken anew; vLLM, which may sleep,
        # can't do with it.
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")


def _blame_inputs(
    store: Store, named: Mapping[str, Sequence[str]], digests: Mapping[str, str], error: Exception
) -> None:
    """Of a step that failed while an input was taken away under it, as by another run that refreshes it, say so.

    Raises:
        InfrastructureError: it was; the step reads what is there now when it is tried again.
    """
    for role, (step, fingerprint) in named.items():
        now = store.read(step, fingerprint)
        if now is None or now.digest != digests[role]:
            raise InfrastructureError(f"The output of {step} was made anew while this step read it.") from error


def _result(artifact: Artifact, *, reused: bool) -> dict[str, Any]:
    return {
        "folder": str(artifact.folder),
        "digest": artifact.digest,
        "metrics": artifact.metrics,
        "seconds": artifact.manifest["seconds"],
        "reused": reused,
    }


def die_with_stdin(scratch: str | None = None) -> None:
    """End this process and its group once whoever started it is gone, who would have removed `scratch`."""
    while os.read(0, 1 << 16):
        pass
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
