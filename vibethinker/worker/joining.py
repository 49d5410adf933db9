"""A machine that takes part in training steps of another one: what `vibethinker join` does.

It looks for a call in the workspace (`vibethinker.worker.nodes`), answers, and starts a process for its ranks of that
step, which lasts as long as they and the connection do. What fails here fails the step, whose machine says so; the next
attempt is another call.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from vibethinker import preemption
from vibethinker.errors import ConfigurationError, InfrastructureError, VibeThinkerError
from vibethinker.worker import child, family, ranks
from vibethinker.worker.endings import classify
from vibethinker.worker.nodes import FILE, Call, line, watch

ANY_KIND = "VIBETHINKER_JOIN_ANY"  # a variable by which tests have steps of their own run
LOOK_SECONDS, CONNECT_SECONDS, TICK_SECONDS = 0.5, 10.0, 0.1


def join(workspace: Path, node: int, say: Callable[[str], None], patience: float) -> None:
    """Take part in every step of the workspace that calls for so many machines, until this process is ended.

    A step that runs then is asked to stop, so that it saves what it has before this returns; a second request ends it.

    Args:
        node: this machine's number, from 1; the machine that runs the step is 0.
        say: told what begins and ends.
        patience: seconds for which one call that can't be answered is tried again: a machine that was killed while it
            waited leaves such a call for good. Where nobody calls, this waits for ever.

    Raises:
        InfrastructureError: a call could not be answered for so long.
    """
    complaint = ""  # the last one, which is said once
    word, since = "", time.monotonic()  # the last call that was tried in vain, and since when
    while True:
        call = None
        try:
            call = Call.read(workspace)
            if call is None or node >= call.nodes:
                word, since = "", time.monotonic()
                time.sleep(LOOK_SECONDS)
                continue
            connection = _answer(call, node)
        except ConfigurationError as error:
            if str(error) != complaint:
                complaint = str(error)
                say(complaint)
            if (tried := call.word if call else "") != word:
                word, since = tried, time.monotonic()
            if time.monotonic() - since > patience:
                raise InfrastructureError(
                    f"A call in {workspace / FILE} could not be answered for {patience:g} s, as was said: mend that, "
                    "or start the run of the machine that called again if it has ended; then start this again."
                ) from None
            time.sleep(LOOK_SECONDS)
            continue
        step = call.context["step_id"]
        say(f"{step}: node {node} has joined; its ranks begin once all machines are there.")
        status, asked = _run(call, node, connection)
        say(f"{step}: ranks of node {node} have ended" + (f" with status {status}." if status else "."))
        if asked:
            return


def _answer(call: Call, node: int) -> socket.socket:
    """A connection to the machine that called, which has let this one in.

    Raises:
        ConfigurationError: it can't be reached or doesn't let this one in, the workspace is elsewhere here, or the call
            names code that is no training.
    """
    step, place = call.context["step_id"], f"{call.address}:{call.port}"
    if call.kind not in ranks.TRAINS and ANY_KIND not in os.environ:
        raise ConfigurationError(
            f"{step} calls for {call.kind!r}, which is no training: this machine runs no such code."
        )
    if not Path(call.context["checkpoints"]).is_dir():
        raise ConfigurationError(
            f"{step} has its folders at {call.context['checkpoints']}, which isn't here: mount the workspace there."
        )
    try:
        connection = socket.create_connection((call.address, call.port), CONNECT_SECONDS)
    except OSError as error:
        raise ConfigurationError(
            f"{step} calls from {place}, which can't be reached ({error}): set execution.main_address to an address of "
            "that machine that this one reaches; if it has ended, the next call is waited for."
        ) from None
    try:
        connection.sendall(f"{call.word} {node}\n".encode())
        if line(connection, time.monotonic() + CONNECT_SECONDS) == "welcome":
            connection.sendall(b"here\n")
            watch(connection)
            return connection
    except (OSError, ValueError):
        pass
    connection.close()
    raise ConfigurationError(
        f"{step} at {place} doesn't let node {node} in: another machine has that number, or nobody waits any more."
    )


def _run(call: Call, node: int, connection: socket.socket) -> tuple[int, bool]:
    """Run this machine's ranks in a process of their own, which ends with this one; its exit status, and whether this
    process was asked to stop meanwhile."""
    with tempfile.TemporaryDirectory(prefix="vibethinker-node-", ignore_cleanup_errors=True) as folder:
        command = [sys.executable, "-m", "vibethinker.worker", "node", str(node), str(connection.fileno()), folder]
        with connection:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, pass_fds=[connection.fileno()], start_new_session=True
            )
        assert process.stdin
        process.stdin.write(json.dumps(asdict(call)).encode() + b"\n")
        process.stdin.flush()
        return _ended(process)


def _ended(process: subprocess.Popen[bytes]) -> tuple[int, bool]:
    """The process's exit status, and whether this one was asked to stop meanwhile, which it then is too."""
    asked = threading.Event()

    def leave(number: int, frame: object) -> None:
        asked.set()
        back()
        process.terminate()

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}

    def back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    status = process.wait()
    back()
    return status, asked.is_set()


def main(node: int, descriptor: int, folder: str) -> NoReturn:
    """The process of a machine's ranks, which write into `folder`; the call is stdin's first line, and stdin's end
    means that `join` is gone."""
    call = Call(**json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=child.die_with_stdin, args=[folder], daemon=True).start()
    os.environ.update(child.QUIET)
    child.set_up_libraries(call.kind, Path(call.context["checkpoints"]))
    preemption.install()  # for the ranks, which inherit it
    connection = socket.socket(fileno=descriptor)
    mine = family.Ranks(call.context["execution"]["processes"])
    status = 0
    try:
        store_port = int(line(connection).removeprefix("begin "))
        _take_part(call, node, connection, store_port, Path(folder) / "ranks", mine)
        _tell(connection, 0)
    except BaseException as error:
        failure = classify(error)
        status = failure.child_exit
        _tell(connection, status, str(failure), mine.seconds_since(error))
    family.leave(status)


def _take_part(
    call: Call, node: int, connection: socket.socket, store_port: int, scratch: Path, mine: family.Ranks
) -> None:
    """Fork this machine's ranks and see them to their end, or to that of the machine that called.

    Raises:
        VibeThinkerError: one of them failed.
    """
    context = call.of_node(scratch, family.Silent())
    local = ranks.here(call.kind, context.execution)
    names = ranks.prepare(context, local, call.address, store_port)
    try:
        mine.start(range(node * local, (node + 1) * local), call.kind, context, scratch, names)
        # All ranks of the step have to stop at the same place, so the machine that called asks them, these too.
        signal.signal(signal.SIGTERM, lambda *_: _send(connection, {"leaving": True}))
        connection.settimeout(TICK_SECONDS)
        while (cause := mine.failed()) is None and not mine.done():
            try:
                heard = connection.recv(100)
            except TimeoutError:
                continue
            if not heard:
                raise VibeThinkerError("The machine that called is gone.")
            mine.stop()
        if cause is not None:
            raise cause
    finally:
        mine.end(scratch)


def _tell(connection: socket.socket, status: int, message: str = "", ago: float = 0.0) -> None:
    connection.settimeout(CONNECT_SECONDS)
    _send(connection, {"status": status, "message": message, "ago": ago})


def _send(connection: socket.socket, said: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        connection.sendall(json.dumps(said).encode() + b"\n")
