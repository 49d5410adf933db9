"""Ranks of a training step on other machines that share the workspace, as the machine that runs the step has them.

The step's child calls for them by a file of the workspace, in which is what they need: the step, where this machine
can be reached, and a word by which they are known. `vibethinker join` on each of them (`vibethinker.worker.joining`)
answers by a connection that lasts as long as the step: on it a machine is told to begin, once all are there, and to
stop, and tells how its ranks have ended; where either side is gone it breaks, and the other ends its ranks. One step at
a time calls, so that two never have a part of the machines each.

Left out: machines that come or go while a step runs, and another path of the workspace on them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vibethinker import locks, preemption
from vibethinker.errors import CHILD_EXITS, ConfigurationError, InfrastructureError, VibeThinkerError
from vibethinker.steps import Emitter, StepContext

FILE = "nodes.json"  # of a workspace: the call
LOOK_SECONDS, TELL_SECONDS = 0.2, 10.0
MOST_BYTES = 100  # of a line
HELLO_SECONDS = 2.0  # for a machine that has connected to say who it is; meanwhile no other is let in


@dataclass(frozen=True)
class Call:
    """What another machine needs to know to run its ranks of a step.

    `port` is where this machine listens for it; `context` is the step's, without its output and emitter, and paths as
    texts.
    """

    word: str
    address: str
    port: int
    nodes: int
    kind: str
    context: dict[str, Any]

    @classmethod
    def read(cls, workspace: Path) -> Call | None:
        """The call that is there, whether or not somebody still waits for an answer.

        Raises:
            ConfigurationError: it can't be understood.
        """
        try:
            return cls(**json.loads((workspace / FILE).read_text()))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigurationError(f"The call {workspace / FILE} can't be read ({error.strerror}).") from None
        except (ValueError, TypeError):
            raise ConfigurationError(
                f"The call {workspace / FILE} is of another version: install the first machine's here too."
            ) from None

    def write(self, workspace: Path) -> None:
        """Replace the call that is there; readable for this user alone, since who knows the word is let in."""
        aside = workspace / f".{FILE}.{os.getpid()}"
        aside.unlink(missing_ok=True)
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file)
        os.replace(aside, workspace / FILE)

    @classmethod
    def of(cls, kind: str, context: StepContext, address: str, port: int) -> Call:
        """The call for a step's machines."""
        known = {name: getattr(context, name) for name in ("step_id", "settings", "execution")}
        folders = {role: str(folder) for role, folder in context.inputs.items()}
        known |= {"inputs": folders, "checkpoints": str(context.checkpoints)}
        nodes = context.execution["nodes"]
        return cls(secrets.token_hex(16), address, port, nodes, kind, json.loads(json.dumps(known)))

    def of_node(self, scratch: Path, emit: Emitter) -> StepContext:
        """The step's context on another machine, where its output is dropped."""
        inputs = {role: Path(folder) for role, folder in self.context["inputs"].items()}
        places = {"inputs": inputs, "output": scratch, "checkpoints": Path(self.context["checkpoints"])}
        return StepContext(**{**self.context, **places, "emit": emit})


class Node:
    """A machine that has joined: to the others of the step it is like a rank that may fail."""

    def __init__(self, number: int, connection: socket.socket) -> None:
        self.number = number
        self.status: int | None = None
        self.leaving = False  # whether it has been asked to stop, and so the step
        self.failure: VibeThinkerError | None = None
        self.failed_at = 0.0
        self._connection, self._heard = connection, b""
        connection.setblocking(False)

    def look(self) -> None:
        """Notice what the machine has said, or that it is gone."""
        while self.status is None:
            try:
                data = self._connection.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            *lines, self._heard = (self._heard + data).split(b"\n")
            for said in map(json.loads, lines):
                self.leaving |= "leaving" in said
                if "status" in said:
                    self._end(said["status"], said["message"], said["ago"])
            if not data and self.status is None:
                self._end(InfrastructureError.child_exit, f"The machine that joined as node {self.number} is gone.")

    def stays(self) -> bool:
        """Whether it is still there, before its ranks begin."""
        self.look()
        if self.status is None:
            return True
        self.kill()
        return False

    def begin(self, store_port: int) -> None:
        """Have its ranks begin, who find the others of the step by this port."""
        self._send(f"begin {store_port}")

    def stop(self) -> None:
        """Ask its ranks to save and leave."""
        self._send("stop")

    def kill(self) -> None:
        """End its ranks."""
        self._connection.close()
        self.status = self.status or 0

    def fileno(self) -> int:
        """Of the connection, to be waited for."""
        return self._connection.fileno()

    def _send(self, text: str) -> None:
        with contextlib.suppress(OSError):  # it is gone, as is then noticed
            self._connection.sendall(f"{text}\n".encode())

    def _end(self, status: int, message: str, ago: float = 0.0) -> None:
        self.status = status
        if status:
            self.failure = CHILD_EXITS.get(status, VibeThinkerError)(message)
            self.failed_at = time.monotonic() - ago  # clocks of two machines differ, but not in how fast they go


@contextmanager
def called(kind: str, context: StepContext, workspace: Path, address: str) -> Iterator[list[Node]]:
    """Call for the step's other machines and wait until all are there; they have left once the `with` block ends. One
    that leaves before they begin is waited for again.

    Args:
        address: of this machine, by which the others reach it.

    Raises:
        PreemptedError: the step was asked to stop meanwhile.
    """
    count, said = context.execution["nodes"], _Telling(context.emit)
    with locks.held(workspace / "locks" / "nodes", lambda: said.tell("waiting for the machines of another step")):
        listening = socket.create_server((address, 0), backlog=count)
        call = Call.of(kind, context, address, listening.getsockname()[1])
        nodes: dict[int, Node] = {}
        with listening:
            try:
                call.write(workspace)
                listening.settimeout(LOOK_SECONDS)
                while len(nodes) < count - 1:
                    preemption.check()
                    nodes = {number: node for number, node in nodes.items() if node.stays()}
                    missing = [n for n in range(1, count) if n not in nodes]
                    said.tell(f"waiting for {len(missing)} of {count} machines: `vibethinker join --node {missing[0]}`")
                    with contextlib.suppress(TimeoutError):
                        _welcome(listening.accept()[0], call, nodes)
                (workspace / FILE).unlink()  # whatever this process dies of from now on, nobody finds a dead call
                yield list(nodes.values())
            finally:
                (workspace / FILE).unlink(missing_ok=True)
                for node in nodes.values():
                    node.kill()


def line(connection: socket.socket, limit: float | None = None) -> str:
    """The next line that the other side says, and nothing of what follows it.

    Args:
        limit: of `time.monotonic()`, by which it has to be there.

    Raises:
        OSError: the other side is gone, takes too long or says too much.
        ValueError: it is no text.
    """
    heard = b""
    while not heard.endswith(b"\n"):
        connection.settimeout(None if limit is None else max(limit - time.monotonic(), 0.001))
        byte = connection.recv(1)
        if not byte or len(heard) == MOST_BYTES:
            raise ConnectionError("The other machine is gone.")
        heard += byte
    return heard.decode().strip()


def watch(connection: socket.socket) -> None:
    """Have the connection break within a minute where the other machine is off, or the network between them."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class _Telling:
    """Says now and then what is waited for, which proves that the step lives."""

    def __init__(self, emit: Emitter) -> None:
        self._emit, self._at = emit, 0.0

    def tell(self, text: str) -> None:
        if time.monotonic() - self._at > TELL_SECONDS:
            self._at = time.monotonic()
            self._emit.progress(0, 1, text)


def _welcome(connection: socket.socket, call: Call, nodes: dict[int, Node]) -> None:
    """Let in a machine that has read the call, by the number it gives itself; whoever else has connected is left."""
    limit = time.monotonic() + HELLO_SECONDS
    try:
        word, _, number = line(connection, limit).partition(" ")
        if secrets.compare_digest(word, call.word) and int(number) in set(range(1, call.nodes)) - nodes.keys():
            connection.sendall(b"welcome\n")
            if line(connection, limit) == "here":  # else it has given up before its turn came
                watch(connection)
                nodes[int(number)] = Node(int(number), connection)
                return
    except (OSError, ValueError, TypeError):
        pass
    connection.close()
