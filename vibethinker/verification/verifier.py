"""The interface: a batch of items in, their verdicts out, in the same order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from vibethinker.errors import ConfigurationError
from vibethinker.verification.answers import LONGEST_ANSWER, decide, normalise
from vibethinker.verification.extraction import extract_answer, extract_program, last_box
from vibethinker.verification.pool import Pool, Reply
from vibethinker.verification.schema import CodeLimits, Item, Verdict, check_tests

_RETRIED = frozenset({"timeout", "error", "infrastructure"})
_PROGRESS_SECONDS = 1.0


class Verifier:
    """Grades mathematical answers and programs; use it as a context manager, from any thread.

    Workers, up to `workers` of each kind, start when the first item needs one and end with `close`, or with
    this process however it ends. Equal items of a batch are graded once. An item whose worker timed out or
    died is graded once more after the others, alone; `timeout` then stands, and counts as wrong.
    """

    def __init__(self, workers: int = 1, math_seconds: float = 5.0, code: CodeLimits | None = None) -> None:
        self.code = code or CodeLimits()
        self._math = Pool("math", workers, math_seconds, {"seconds": math_seconds})
        self._code = Pool("code", workers, self.code.seconds, asdict(self.code))

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. Safe to call twice; a later `grade` starts new ones."""
        self._math.close()
        self._code.close()

    def grade(self, items: Sequence[Item], progress: Callable[[int, int], None] | None = None) -> list[Verdict]:
        """The items' verdicts, in order.

        `progress` hears at most once a second how many of the items that need a worker are graded, counted in their
        order up to the first that isn't, and of how many.
        Raises ConfigurationError for code without `allow_unsafe`, ValueError for an unknown kind, and
        InfrastructureError when a worker can't be started.
        """
        if any(item.kind == "code" for item in items) and not self.code.allow_unsafe:
            raise ConfigurationError(
                "grading code means running what a model wrote, under resource limits that are no sandbox: "
                "set verification.allow_unsafe_code to true if this machine can take it"
            )
        verdicts: list[Verdict | _Pending] = []
        shared: dict[tuple[Any, ...], _Pending] = {}
        for item in items:
            if item.kind == "math":
                verdicts.append(self._begin_math(item, shared))
            elif item.kind == "code":
                verdicts.append(self._begin_code(item, shared))
            else:
                raise ValueError(f"an item's kind is math or code, not {item.kind!r}")
        replies: dict[tuple[Any, ...], Reply] = {}
        told = time.monotonic()

        def replied(key: tuple[Any, ...], reply: Future[Reply]) -> None:
            nonlocal told
            replies[key] = reply.result()
            if progress and time.monotonic() - told >= _PROGRESS_SECONDS:
                told = time.monotonic()
                progress(len(replies), len(shared))

        for key, pending in shared.items():
            replied(key, pending.reply)
        for key, pending in shared.items():
            if replies[key]["verdict"] in _RETRIED:
                replied(key, pending.pool.submit(pending.request))
        return [v if isinstance(v, Verdict) else v.verdict(replies[v.key]) for v in verdicts]

    def _begin_math(self, item: Item, shared: dict[tuple[Any, ...], _Pending]) -> Verdict | _Pending:
        started = time.perf_counter()
        extracted = extract_answer(item.response)
        if extracted is None:
            return Verdict("no_answer", None, time.perf_counter() - started)
        gold = str(item.reference)
        gold = normalise(last_box(gold) or gold)
        if not gold:
            return Verdict("error", extracted[:LONGEST_ANSWER], time.perf_counter() - started)
        if len(extracted) > max(LONGEST_ANSWER, 2 * len(gold)):
            return Verdict("wrong", extracted[:LONGEST_ANSWER], time.perf_counter() - started)
        answer = normalise(extracted)
        equal = decide(gold, answer)
        if equal is not None:
            return Verdict("correct" if equal else "wrong", extracted, time.perf_counter() - started)
        return self._share(shared, ("math", gold, answer), self._math, {"gold": gold, "answer": answer}, extracted)

    def _begin_code(self, item: Item, shared: dict[tuple[Any, ...], _Pending]) -> Verdict | _Pending:
        program = extract_program(item.response)
        if check_tests(item.reference) is not None:
            return Verdict("infrastructure", program, 0.0)
        if program is None:
            return Verdict("no_code", None, 0.0)
        key = ("code", program, id(item.reference))
        request = {"program": program, "tests": item.reference}
        return self._share(shared, key, self._code, request, program)

    def _share(
        self,
        shared: dict[tuple[Any, ...], _Pending],
        key: tuple[Any, ...],
        pool: Pool,
        request: dict[str, Any],
        extracted: str,
    ) -> _Pending:
        if key not in shared:
            shared[key] = _Pending(key, pool, request, extracted, pool.submit(request))
        return _Pending(key, pool, request, extracted, shared[key].reply)


class _Pending:
    """An item that a worker grades."""

    def __init__(
        self, key: tuple[Any, ...], pool: Pool, request: dict[str, Any], extracted: str, reply: Future[Reply]
    ) -> None:
        self.key, self.pool, self.request, self.extracted, self.reply = key, pool, request, extracted, reply

    def verdict(self, reply: Reply) -> Verdict:
        return Verdict(reply["verdict"], self.extracted, reply["seconds"])
