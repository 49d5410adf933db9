"""Items, verdicts, limits, and the form of a code item's tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MATH_VERDICTS = ("correct", "wrong", "no_answer", "timeout", "error")
CODE_VERDICTS = (
    "passed",
    "wrong_answer",
    "time_limit",
    "memory_limit",
    "runtime_error",
    "no_code",
    "infrastructure",
)
TIERS = ("bubblewrap", "landlock", "rlimits")  # the strongest first
RIGHT = frozenset({"correct", "passed"})
LEFT_OUT = frozenset({"error", "infrastructure"})


@dataclass(frozen=True)
class Verdict:
    """What became of one response; `seconds` is the time its grading took, without waiting."""

    verdict: str
    extracted: str | None
    seconds: float

    @property
    def counts(self) -> bool | None:
        """True: right. False: wrong. None: the verifier failed; the response is left out, never scored 0."""
        return None if self.verdict in LEFT_OUT else self.verdict in RIGHT


class Item(NamedTuple):
    """One response to grade.

    `prompt`, where given, is what the response answers: an answer copied from it doesn't count.
    `kind` is "math", "code", or the name of a plugin's reward. `reference` is the gold answer, or the tests (code),
    which are `{"kind": "stdin", "cases": [{"input", "output"}]}`,
    `{"kind": "function", "entry_point", "cases": [{"args", "expected"}]}` or `{"kind": "assert", "code"}`;
    the first two may carry "tolerance", the largest error of a number, relative above 1 and absolute below.
    """

    kind: str
    response: str
    reference: Any
    prompt: str = ""


@dataclass(frozen=True)
class CodeLimits:
    """What one program may use, and where it runs.

    Attributes:
        seconds: wall time over all the tests of a program, counted from the moment the interpreter is ready, and CPU
            time of each of its processes.
        memory_mib: memory of all its processes together, and address space of each.
        output_bytes: of each case's output, and of each file.
        processes: how many it may have at once.
        files: how many each process may have open.
        disk_mib: of its private folder, where the tier can bound it.
        tier: one of TIERS, or "auto" for the strongest that holds on this machine.
        allow_unsafe: run programs in the tier "rlimits", which is no sandbox, where no other holds.
        python: the interpreter that runs programs; None for the one that runs this.
    """

    seconds: float = 5.0
    memory_mib: int = 512
    output_bytes: int = 1 << 20
    processes: int = 32
    files: int = 64
    disk_mib: int = 64
    tier: str = "auto"
    allow_unsafe: bool = False
    python: str | None = None


def check_tests(tests: Any) -> str | None:
    """Why `tests` can't decide anything, or None when they are well formed and there is at least one."""
    if not isinstance(tests, Mapping):
        return "tests must be an object"
    kind = tests.get("kind")
    if kind == "assert":
        code = tests.get("code")
        return None if isinstance(code, str) and code.strip() else 'assert tests need "code", a non-empty string'
    if kind not in ("stdin", "function"):
        return f'tests\' "kind" must be stdin, function or assert, not {kind!r}'
    if kind == "function" and not (isinstance(tests.get("entry_point"), str) and tests["entry_point"]):
        return 'function tests need "entry_point", the name of a function'
    tolerance = tests.get("tolerance", 0)
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not tolerance >= 0:
        return '"tolerance" must be a number, at least 0'
    cases = tests.get("cases")
    if not isinstance(cases, list) or not cases:
        return '"cases" must be a non-empty list'
    for number, case in enumerate(cases, 1):
        if not isinstance(case, Mapping):
            return f"case {number} must be an object"
        if kind == "stdin" and not (isinstance(case.get("input"), str) and isinstance(case.get("output"), str)):
            return f'case {number} needs "input" and "output", both strings'
        if kind == "function" and not (isinstance(case.get("args"), list) and "expected" in case):
            return f'case {number} needs "args", a list, and "expected"'
    return None
