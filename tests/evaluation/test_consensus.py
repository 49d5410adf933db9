"""Majority votes over equivalent answers, with ties and weights."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from vibethinker.evaluation.consensus import consensus
from vibethinker.verification import Verdict


@dataclass
class Votes:
    verdicts: tuple[Verdict, ...]


def votes(right: int, *wrong: str | None, failed: int = 0) -> Votes:
    verdicts = [Verdict("correct", "7", 0.0)] * right
    verdicts += [Verdict("wrong" if answer else "no_answer", answer, 0.0) for answer in wrong]
    return Votes((*verdicts, *[Verdict("error", "7", 0.0)] * failed))


def test_equivalent_wrong_answers_vote_together(verifier):
    halves = votes(2, "\\frac{1}{2}", "0.5", "1/2", "3")
    assert consensus([halves], verifier) == [0.0]
    assert consensus([votes(2, "1", "2", "3", "4")], verifier) == [1.0]


def test_a_tie_is_shared(verifier):
    assert consensus([votes(2, "x+1", "1+x", "3")], verifier) == [0.5]


def test_no_answer_and_a_failed_verifier_do_not_vote(verifier):
    assert consensus([votes(1, None, None, None, failed=3)], verifier) == [1.0]
    assert consensus([votes(0, None), votes(0, "1")], verifier) == [0.0, 0.0]


@pytest.mark.slow
def test_equivalence_that_only_the_verifier_sees_joins_groups(verifier):
    assert consensus([votes(1, "2\\sqrt{2}", "\\sqrt{8}")], verifier) == [0.0]


def test_weights_decide_and_samples_that_all_weigh_nothing_count_once_each(verifier):
    some = votes(2, "\\frac12", "0.5", "1/2")
    assert consensus([some], verifier, weights=[[3, 4, 2, 2, 2]]) == [1.0]
    assert consensus([some], verifier, weights=[[3, 3, 2, 2, 2]]) == [0.5]
    assert consensus([some], verifier, weights=[[1, 0, 2, 0, 0]]) == [0.0]
    assert consensus([some], verifier, weights=[[0] * 5]) == [0.0]
