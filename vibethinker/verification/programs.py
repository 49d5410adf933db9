"""One program against its tests. Runs in a worker; expected outputs stay in it, except for assert code that
isn't plain.

The program's process gets inputs or arguments, one request at a time, and what it returns is compared here,
so that forging a result takes knowing the expected one. Each request carries a fresh nonce that the reply
must repeat. The first test that fails decides the verdict. Whatever goes wrong once the program has been
loaded is the program's fault.

Equality. stdin: lines without trailing white space, and no empty lines at the end; with a tolerance, token by
token. function: as JSON values, so tuples equal lists and keys are compared as JSON writes them; true isn't
1, while 2 equals 2.0; numbers are compared exactly unless the tests carry a tolerance. assert: Python's `==`
on plain values.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from vibethinker.verification import descendants
from vibethinker.verification.asserts import COUNTER, Call, TestCode, prepare
from vibethinker.verification.child import MEMORY_EXIT, decode, encode, frame
from vibethinker.verification.sandbox import Sandbox

_START_SECONDS = 60.0
_BUSY = 0.5  # share of its time that a program which isn't waiting uses on an idle processor, at least
_POLL_MS = 50
_LOOK_SECONDS = 0.05  # between two looks at the memory of a program's processes
_SLACK_BYTES = 1 << 16  # beyond an expected output, before one that is too long is cut off


class Ended(Exception):
    """The verdict is known."""

    def __init__(self, verdict: str) -> None:
        super().__init__(verdict)
        self.verdict = verdict


class Broken(Ended):
    """A process that never became ready."""


class Judged(NamedTuple):
    """The verdict on a program, the seconds it ran, and whether its time ran out while others had the processor."""

    verdict: str
    seconds: float
    starved: bool = False
    broken: bool = False  # no interpreter could be started


def judge(program: str, tests: Mapping[str, Any], sandbox: Sandbox) -> Judged:
    """Run a program against its tests, which passed `check_tests`."""
    prepared = prepare(tests["code"], program) if tests["kind"] == "assert" else None
    if tests["kind"] == "assert" and not prepared:
        return Judged("infrastructure", 0.0)
    with sandbox.folder() as folder:
        started = time.monotonic()
        try:
            with (
                closing(Child(sandbox, "program", folder, size=_largest(tests))) as child,
                _alarm(sandbox.limits.seconds),
            ):
                started = time.monotonic()
                child.deadline = started + sandbox.limits.seconds
                is_script = tests["kind"] == "stdin"
                child.value(do="load", program=program, run=not is_script)
                if is_script:
                    _check_script(child, tests)
                elif isinstance(prepared, TestCode):
                    _check_code(child, prepared, sandbox, folder)
                elif prepared:
                    _check_calls(child, prepared)
                else:
                    _check_function(child, tests)
        except Ended as ended:
            idle = ended.verdict == "time_limit" and descendants.cpu_seconds() < _BUSY * sandbox.limits.seconds
            return Judged(ended.verdict, time.monotonic() - started, idle, isinstance(ended, Broken))
        except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError, RecursionError, MemoryError):
            return Judged("runtime_error", time.monotonic() - started)  # what the program sent is no value
        return Judged("passed", time.monotonic() - started)


def _largest(tests: Mapping[str, Any]) -> int:
    """Bytes of the largest file that the tests themselves call for: an input, or an output and some more."""
    if tests["kind"] != "stdin":
        return 0
    texts = (text for case in tests["cases"] for text in (case["input"], case["output"]))
    return max(len(text.encode("utf-8", "surrogatepass")) for text in texts) + _SLACK_BYTES


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """End with `time_limit` what the worker itself does for too long: comparing is quadratic in what a program makes
    of it."""

    def ring(*_: object) -> None:
        raise Ended("time_limit")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 2 * seconds + 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Child:
    """A process of the sandbox and the worker's end of its socket."""

    def __init__(
        self,
        sandbox: Sandbox,
        role: str,
        folder: str,
        *descriptors: int,
        seconds: float = _START_SECONDS,
        size: int = 0,
    ) -> None:
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process: subprocess.Popen[bytes] = sandbox.start(
                role, folder, theirs.fileno(), *descriptors, size=size
            )
        self.memory = sandbox.limits.memory_mib << 20
        self.look_at = time.monotonic() + _LOOK_SECONDS
        # A reply holds one output, each of whose bytes JSON may write as six.
        self.longest = 8 * max(sandbox.limits.output_bytes, size) + (1 << 16)
        self.buffer = bytearray()
        self.deadline = time.monotonic() + seconds
        try:
            self._line()
        except Ended:
            raise Broken("infrastructure") from None

    def close(self) -> None:
        """Close the socket; the sandbox ends the process."""
        self.socket.close()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The reply to a request. Raises `Ended`."""
        nonce = secrets.token_hex(8)
        data = frame({"id": nonce, **request})
        try:
            self.socket.settimeout(max(self.deadline - time.monotonic(), 0.001))
            self.socket.sendall(data)
        except TimeoutError:
            raise Ended("time_limit") from None
        except OSError:
            raise self._gone() from None
        try:
            reply = json.loads(self._line())
        except (ValueError, RecursionError):
            raise Ended("runtime_error") from None
        if not isinstance(reply, dict) or reply.get("id") != nonce:
            raise Ended("runtime_error")
        return reply

    def value(self, **request: Any) -> Any:
        """The encoded value that a request results in."""
        reply = self.ask(**request)
        if "value" in reply:
            return reply["value"]
        raise Ended(_raised(reply))

    def _line(self) -> bytes:
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        searched = 0
        while (end := self.buffer.find(b"\n", searched)) < 0:
            searched = len(self.buffer)
            remaining = self.deadline - time.monotonic()
            if remaining <= 0:
                raise Ended("time_limit")
            if searched > self.longest:
                raise Ended("runtime_error")
            if time.monotonic() >= self.look_at:
                self.look_at = time.monotonic() + _LOOK_SECONDS
                if descendants.memory() > self.memory:
                    # The kernel's limit holds for each process, this one for all together.
                    raise Ended("memory_limit")
            if poll.poll(min(_POLL_MS, remaining * 1000)):
                try:
                    received = self.socket.recv(1 << 16)
                except OSError:
                    received = b""
                if not received:
                    raise self._gone()
                self.buffer += received
            elif self.process.poll() is not None:
                # A grandchild holds the socket open.
                raise self._gone()
        line = bytes(self.buffer[:end])
        del self.buffer[: end + 1]
        return line

    def _gone(self) -> Ended:
        try:
            code = self.process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            return Ended("runtime_error")
        # bwrap tells a signal as shells do.
        return Ended("time_limit" if code in (-signal.SIGXCPU, 128 + signal.SIGXCPU) else "runtime_error")


def _raised(reply: Mapping[str, Any]) -> str:
    raised = reply.get("raised")
    return "memory_limit" if isinstance(raised, list) and raised[:1] == ["MemoryError"] else "runtime_error"


def _check_script(child: Child, tests: Mapping[str, Any]) -> None:
    for number, case in enumerate(tests["cases"]):
        reply = child.ask(do="stdin", input=case["input"])
        if "failed" in reply:
            # Only an earlier case of the same program could have used the resources up.
            raise Ended("runtime_error" if number else "infrastructure")
        status = reply["status"]
        if os.WIFSIGNALED(status):
            raise Ended("time_limit" if os.WTERMSIG(status) == signal.SIGXCPU else "runtime_error")
        if (code := os.WEXITSTATUS(status)) != 0:
            raise Ended("memory_limit" if code == MEMORY_EXIT else "runtime_error")
        if not same_output(case["output"], reply["output"], tests.get("tolerance", 0)):
            raise Ended("wrong_answer")


def _check_function(child: Child, tests: Mapping[str, Any]) -> None:
    function = child.value(do="get", name=tests["entry_point"])
    for case in tests["cases"]:
        found = child.value(do="call", call=[function, _encode(case["args"]), _encode({})])
        if not same_json(case["expected"], found, tests.get("tolerance", 0)):
            raise Ended("wrong_answer")


def _check_calls(child: Child, calls: list[Call]) -> None:
    for call in calls:
        function = child.value(do="get", name=call.function)
        found = child.value(do="call", call=[function, _encode(call.args), _encode(call.kwargs)])
        try:
            same = decode(found, lambda _: object()) == call.expected
        except (ValueError, TypeError, RecursionError):
            raise Ended("runtime_error") from None
        if not same:
            raise Ended("wrong_answer")


def _check_code(child: Child, code: TestCode, sandbox: Sandbox, folder: str) -> None:
    child.socket.setblocking(True)  # a time-out is a flag of the socket, which the tester shares
    with closing(Child(sandbox, "tester", folder, child.socket.fileno())) as tester:
        tester.deadline = child.deadline
        reply = tester.ask(code=code.source, names=code.names, modules=code.modules, counter=COUNTER)
    match reply["ended"]:
        case "failed":
            raise Ended("wrong_answer")
        case "raised":
            raise Ended(_raised(reply))
        case "unsupported":
            raise Ended("infrastructure")
    if not reply["uses"]:
        raise Ended("infrastructure")
    if not reply["asserts"]:
        raise Ended("wrong_answer")


def _encode(value: Any) -> Any:
    def refuse(value: Any) -> int:
        raise Ended("infrastructure")

    return encode(value, refuse)


def same_output(expected: str, found: str, tolerance: float = 0) -> bool:
    """Whether two texts are the same output, as judges compare them."""
    first = [line.rstrip() for line in expected.rstrip().split("\n")]
    second = [line.rstrip() for line in found.rstrip().split("\n")]
    if first == second or not tolerance:
        return first == second
    return len(first) == len(second) and all(
        len(a := left.split()) == len(b := right.split())
        and all(_same_token(x, y, tolerance) for x, y in zip(a, b, strict=True))
        for left, right in zip(first, second, strict=True)
    )


def _same_token(expected: str, found: str, tolerance: float) -> bool:
    if expected == found:
        return True
    try:
        return _close(float(expected), float(found), tolerance)
    except ValueError:
        return False


def same_json(expected: Any, found: Any, tolerance: float = 0) -> bool:
    """Whether `found`, as child.encode wrote it, is the JSON value `expected`."""
    if isinstance(expected, list):
        items = found.get("tuple") if isinstance(found, dict) and len(found) == 1 else found
        return (
            isinstance(items, list)
            and len(items) == len(expected)
            and all(same_json(a, b, tolerance) for a, b in zip(expected, items, strict=True))
        )
    if isinstance(expected, dict):
        pairs = found.get("dict") if isinstance(found, dict) else None
        if not isinstance(pairs, list) or len(pairs) != len(expected):
            return False
        items = {_json_key(key): value for key, value in pairs}
        return items.keys() == expected.keys() and all(
            same_json(value, items[key], tolerance) for key, value in expected.items()
        )
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    if isinstance(expected, int | float) and isinstance(found, int | float):
        return expected == found or _close(expected, found, tolerance)
    return type(expected) is type(found) and expected == found


def _json_key(key: Any) -> str | None:
    if isinstance(key, str):
        return key
    return json.dumps(key) if key is None or isinstance(key, bool | int | float) else None


def _close(expected: float, found: float, tolerance: float) -> bool:
    try:
        if math.isnan(expected):
            return math.isnan(found)
        return abs(expected - found) <= tolerance * max(1.0, abs(expected))
    except OverflowError:  # an integer that no float can hold
        return False
