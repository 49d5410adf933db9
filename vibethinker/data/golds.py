"""Gold answers: whether two records of a problem agree on one, and sets that have none but a single one."""

from __future__ import annotations

from collections.abc import Sequence

from vibethinker.data.schema import Problem
from vibethinker.errors import DataError
from vibethinker.verification.answers import decide

CONSTANT_ROWS = 8  # fewer may have one answer by chance


def has_gold(problem: Problem) -> bool:
    """Whether there is something to grade a solution by."""
    return problem.answer is not None or problem.tests is not None


def contradict(one: Problem, other: Problem) -> bool:
    """Whether both have gold, and not the same: other tests, or answers that the verifier's exact comparison doesn't
    hold for equal. One without gold contradicts none."""
    if not has_gold(one) or not has_gold(other):
        return False
    if one.tests is not None or other.tests is not None:
        return one.tests != other.tests
    assert one.answer is not None and other.answer is not None
    return decide(one.answer, other.answer) is not True


def refuse_constant(name: str, problems: Sequence[Problem]) -> None:
    """Refuse a set whose every gold answer is the same: such files circulate (a GPQA with "A" in all of its rows), and
    a model that always says so would have every point.

    Raises:
        DataError: it is one of at least CONSTANT_ROWS problems.
    """
    golds = {problem.answer.strip() for problem in problems if problem.answer is not None}
    if len(golds) == 1 and len(problems) >= CONSTANT_ROWS and all(p.tests is None for p in problems):
        [gold] = golds
        raise DataError(
            f"All {len(problems)} problems of {name} have the same gold answer, {gold[:40]!r}, so that nothing can be "
            "measured on them: name the column that has the right answers, or take another copy of the set."
        )
