from __future__ import annotations

import pytest

from vibethinker.errors import DataError
from vibethinker.evaluation.comparison import compare


def rows(*counts: tuple[int, int], set: str = "s") -> list[dict]:
    return [{"set": set, "id": str(i), "correct": c, "samples": n} for i, (c, n) in enumerate(counts)]


def test_problems_are_paired_by_set_and_id_in_any_order():
    first, second = rows((0, 4), (2, 4), (4, 4)), rows((1, 4), (3, 4), (4, 4))
    found = compare(first, second[::-1])
    assert found.difference == pytest.approx((0.25 + 0.25 + 0) / 3) and found.problems == 3
    assert found.low <= found.difference <= found.high


def test_pass_at_k_is_compared_where_both_have_k_samples():
    found = compare(rows((0, 4), (1, 4), (2, 2)), rows((4, 4), (1, 4), (2, 4)), k=4)
    assert (found.difference, found.problems) == (0.5, 2)


def test_a_constant_gain_is_certain():
    first = rows(*[(c % 5, 8) for c in range(40)])
    second = rows(*[(c % 5 + 2, 8) for c in range(40)])
    assert compare(first, second)[:3] == (0.25, 0.25, 0.25)


def test_models_without_common_problems_are_refused():
    with pytest.raises(DataError, match="no graded problem in common"):
        compare(rows((1, 4)), rows((1, 4), set="t"))
    with pytest.raises(DataError, match="no graded problem in common"):
        compare(rows((0, 0)), rows((1, 4)))
