"""Paired comparison of two models' outcomes, by set and over all problems."""

from __future__ import annotations

import pytest

from vibethinker.errors import DataError
from vibethinker.evaluation.comparison import compare, comparisons


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


def test_comparisons_of_sets_and_of_all_problems_together():
    first = rows((0, 4), (2, 4), set="a") + rows((1, 4), set="b") + rows((4, 4), set="alone")
    second = rows((4, 4), (2, 4), set="a") + rows((1, 4), set="b")
    for row in second:
        row["cons"] = 1.0
    first[0]["cons"] = 0.0
    found = {(c["set"], c["metric"]): c for c in comparisons(first, second, ["a", "b"], k=4)}
    assert {(s, m) for s, m in found} == {(s, m) for s in ("a", "b", None) for m in ("avg", "pass@4")} | {
        ("a", "cons"),
        (None, "cons"),
    }
    assert (found["a", "avg"]["a"], found["a", "avg"]["b"], found["a", "avg"]["difference"]) == (0.25, 0.75, 0.5)
    assert found[None, "avg"]["problems"] == 3 and found[None, "avg"]["difference"] == pytest.approx(1 / 3)
    assert found["a", "cons"]["problems"] == 1 and not found["a", "avg"]["significant"]


def test_a_change_is_significant_by_its_p_value():
    first, second = rows(*[(1, 8)] * 12), rows(*[(3, 8)] * 12)
    [found] = comparisons(first, second, ["s"])
    assert found["p"] == 2 / 2**12 / 2 and found["significant"] and found["low"] == 0.25
    few = compare(rows(*[(1, 8)] * 4), rows(*[(3, 8)] * 4))
    assert few.low == 0.25 and not few.significant, "an interval of no width proves nothing"
