"""One verifier of each kind for the whole session: its workers start once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from vibethinker.errors import ConfigurationError
from vibethinker.verification import CodeLimits, Item, Verifier

SHARED = Path(os.environ.get("VIBETHINKER_SHARED_DATA", Path(__file__).parents[2] / "../shared/data"))

GradeMath = Callable[[Sequence[tuple[str, str]]], list[str]]
GradeCode = Callable[..., str]


@pytest.fixture(scope="session")
def verifier() -> Iterator[Verifier]:
    with Verifier(math_seconds=2.0, code=CodeLimits(seconds=1.5, allow_unsafe=True)) as shared:
        yield shared


@pytest.fixture(scope="session")
def grade_boxed(verifier: Verifier) -> GradeMath:
    """The verdicts on pairs (gold, content of the box)."""

    def grade(pairs: Sequence[tuple[str, str]]) -> list[str]:
        items = [Item("math", f"So it is $\\boxed{{{answer}}}$.", gold) for gold, answer in pairs]
        return [verdict.verdict for verdict in verifier.grade(items)]

    return grade


@pytest.fixture(scope="session")
def grade_program(verifier: Verifier) -> GradeCode:
    """The verdict on a program against tests, both as keyword-free arguments."""

    def grade(program: str, tests: object) -> str:
        return verifier.grade([Item("code", f"```python\n{program}\n```", tests)])[0].verdict

    return grade


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the shared data isn't at {SHARED}: set VIBETHINKER_SHARED_DATA to its folder")
    return SHARED


TIERS = ["bubblewrap", "landlock", "rlimits"]


@pytest.fixture(scope="module", params=TIERS)
def confined(request: pytest.FixtureRequest) -> Iterator[Verifier]:
    """A verifier that runs programs in one tier after the other; skipped where the machine lacks it."""
    yield from _in_tier(request.param, seconds=1.5)


@pytest.fixture(scope="module", params=TIERS)
def unhurried(request: pytest.FixtureRequest) -> Iterator[Verifier]:
    """`confined` for what is to end by its memory: on a busy machine touching 256 MiB can take longer than 1.5 s."""
    yield from _in_tier(request.param, seconds=30.0)


def _in_tier(tier: str, seconds: float) -> Iterator[Verifier]:
    limits = CodeLimits(seconds=seconds, memory_mib=256, tier=tier, allow_unsafe=tier == "rlimits")
    with Verifier(code=limits) as verifier:
        try:
            assert verifier.try_sandbox() == tier
        except ConfigurationError as error:
            pytest.skip(str(error))
        yield verifier
