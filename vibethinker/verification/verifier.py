"""The interface: a batch of items in, their verdicts out, in the same order."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any, NamedTuple

from vibethinker import plugins
from vibethinker.errors import InfrastructureError
from vibethinker.verification.answers import LONGEST_ANSWER, decide
from vibethinker.verification.extraction import boxed, extract_answer, extract_program
from vibethinker.verification.pool import Pool, Reply
from vibethinker.verification.schema import CodeLimits, Item, Verdict, check_tests
from vibethinker.verification.statistics import Statistics

_PROGRESS_SECONDS = 1.0
Progress = Callable[[int, int], None]


class Verifier:
    """Grades mathematical answers, programs, and what plugins' rewards judge; use it as a context manager, from any
    thread.

    Workers, up to `workers` of each kind, start when the first item needs one and end with `close`, or with
    this process however it ends. Equal items of a batch are graded once. An item whose worker timed out or
    died, and a program whose time ran out while it had little of the processor, are graded once more when the
    others are done; what is said then stands.

    `statistics` counts verdicts and times their grading, over the verifier's life.
    """

    def __init__(self, workers: int = 1, math_seconds: float = 5.0, code: CodeLimits | None = None) -> None:
        self.code = code or CodeLimits()
        self.statistics = Statistics()
        self._workers, self._seconds = workers, math_seconds
        self._code = Pool("code", workers, self.code.seconds, {"limits": asdict(self.code)})
        self._pools = {"math": self._timed("math"), "code": self._code}  # and one a plugin's reward that is asked for
        self._lock = threading.Lock()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. Safe to call twice; a later `grade` starts new ones."""
        for pool in list(self._pools.values()):
            pool.close()

    @property
    def tier(self) -> str | None:
        """The sandbox's tier that programs ran in; None before the first."""
        return self._code.tier

    def try_sandbox(self) -> str:
        """Run an empty program, and tell the sandbox's tier.

        Raises:
            ConfigurationError: programs can't be run as configured.
            InfrastructureError: the program failed.
        """
        tests = {"kind": "stdin", "cases": [{"input": "", "output": ""}]}
        found = self._code.submit({"program": "pass", "tests": tests}).result()["verdict"]
        if found != "passed" or self.tier is None:
            raise InfrastructureError(f"an empty program ends with {found} in the sandbox: see what the machine lacks")
        return self.tier

    def grade(self, items: Sequence[Item], progress: Progress | None = None) -> list[Verdict]:
        """The items' verdicts, in order; see `submit` and `Grading.verdicts`."""
        return self.submit(items).verdicts(progress)

    def submit(self, items: Sequence[Item]) -> Grading:
        """Begin to grade the items, so that the caller can do something else meanwhile; see `Grading.add`."""
        grading = Grading(self._pool, self.statistics)
        for item in items:
            grading.add(item)
        return grading

    def _pool(self, kind: str) -> Pool:
        with self._lock:
            if kind not in self._pools:
                plugins.find(plugins.REWARDS, kind)
                self._pools[kind] = self._timed(kind)
            return self._pools[kind]

    def _timed(self, kind: str) -> Pool:
        return Pool(kind, self._workers, self._seconds, {"seconds": self._seconds})


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


class _Entry(NamedTuple):
    """One item: decided, or waiting for the reply to its key."""

    item: Item  # kept, since the key may hold its reference's identity
    verdict: Verdict | None
    key: tuple[Any, ...]
    extracted: str | None


class Grading:
    """Items that are being graded, made by `Verifier.submit`."""

    def __init__(self, pool: Callable[[str], Pool], statistics: Statistics) -> None:
        self._pool, self._statistics = pool, statistics
        self._entries: list[_Entry] = []
        self._found: list[Verdict] = []
        self._shared: dict[tuple[Any, ...], tuple[Pool, dict[str, Any], Future[Reply]]] = {}

    def add(self, item: Item) -> int:
        """Begin to grade an item; its place among the verdicts.

        Returns once it is decided, or with a worker, or in the workers' queue; where that is full, waits for room.

        Raises:
            ConfigurationError: there is no reward of its kind.
        """
        {"math": self._add_math, "code": self._add_code}.get(item.kind, self._add_other)(item)
        return len(self._entries) - 1

    def _add_math(self, item: Item) -> None:
        started = time.perf_counter()
        gold = str(item.reference).strip()
        gold = boxed(gold) or gold
        extracted = extract_answer(item.response, item.prompt)
        if extracted is None:
            verdict = "no_answer"
        elif not gold:
            verdict = "error"
        elif (equal := decide(gold, extracted)) is None:
            self._wait_for(item, (gold, extracted), {"gold": gold, "answer": extracted}, extracted)
            return
        else:
            verdict = "correct" if equal else "wrong"
        shown = extracted and extracted[:LONGEST_ANSWER]
        self._decided(item, Verdict(verdict, shown, time.perf_counter() - started))

    def _add_code(self, item: Item) -> None:
        program = extract_program(item.response)
        if check_tests(item.reference) is not None or not _is_json(item.reference):
            self._decided(item, Verdict("infrastructure", program, 0.0))
        elif program is None:
            self._decided(item, Verdict("no_code", None, 0.0))
        else:
            key = (program, id(item.reference))
            self._wait_for(item, key, {"program": program, "tests": item.reference}, program)

    def _add_other(self, item: Item) -> None:
        request = {"response": item.response, "gold": str(item.reference), "problem": item.prompt}
        extracted = extract_answer(item.response, item.prompt)
        self._wait_for(item, tuple(request.values()), request, extracted and extracted[:LONGEST_ANSWER])

    def _decided(self, item: Item, verdict: Verdict) -> None:
        self._entries.append(_Entry(item, verdict, (), None))

    def _wait_for(self, item: Item, key: tuple[Any, ...], request: dict[str, Any], extracted: str | None) -> None:
        """A worker grades it; items of one key are graded once."""
        key, pool = (item.kind, *key), self._pool(item.kind)
        if key not in self._shared:
            self._shared[key] = (pool, request, pool.submit(request))
        self._entries.append(_Entry(item, None, key, extracted))

    def verdicts(self, progress: Progress | None = None) -> list[Verdict]:
        """All verdicts, in the order of adding; waits for them.

        `progress` hears at most once a second how many of the items that need a worker are graded, counted in their
        order up to the first that isn't, and of how many.

        Raises:
            ConfigurationError: programs can't be run as configured.
            InfrastructureError: a worker can't be started, or the verifier was closed.
        """
        if len(self._found) == len(self._entries):
            return self._found
        replies: dict[tuple[Any, ...], Reply] = {}
        told = time.monotonic()
        for key, (_, _, reply) in self._shared.items():
            replies[key] = reply.result()
            if progress and time.monotonic() - told >= _PROGRESS_SECONDS:
                told = time.monotonic()
                progress(len(replies), len(self._shared))
        again = {
            key: pool.submit(request)
            for key, (pool, request, _) in self._shared.items()
            if replies[key].get("again") or replies[key]["verdict"] == "infrastructure"
        }
        replies |= {key: reply.result() for key, reply in again.items()}
        verdicts: list[Verdict] = []
        for place, entry in enumerate(self._entries):
            verdict = entry.verdict
            if verdict is None:
                said = replies[entry.key]
                verdict = Verdict(said["verdict"], entry.extracted, said["seconds"])
            verdicts.append(verdict)
            if place >= len(self._found):  # the others were counted by an earlier call
                self._statistics.add(entry.item.kind, verdict)
        self._found = verdicts
        return verdicts
