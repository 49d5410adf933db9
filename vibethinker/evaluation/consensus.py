r"""The majority vote over a problem's samples, cons@n, with answers grouped by meaning instead of spelling.

Samples have a vote each, or weights (see `reliability`). The verifier has already gathered the right answers: all are
equivalent to the gold one. Wrong answers are compared with each other, by the same verifier, only where they could
outvote the right ones. So most problems cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Protocol

from vibethinker.evaluation.estimators import cons_at_k
from vibethinker.verification import Item, Verdict, Verifier


class Graded(Protocol):
    """What has verdicts."""

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One a sample."""
        ...


def consensus(
    outcomes: Sequence[Graded],
    verifier: Verifier,
    progress: Callable[[int, int], None] | None = None,
    weights: Sequence[Sequence[int]] | None = None,
) -> list[float]:
    """For each mathematical problem the vote's score; see `cons_at_k`. `progress` is the verifier's.

    Args:
        weights: of each problem's samples; of a problem whose samples that vote all have none, each has one.
    """
    right, wrong = [], []
    for number, outcome in enumerate(outcomes):
        votes = _votes(outcome, weights[number] if weights is not None else None)
        right.append(votes.pop(None, 0))
        wrong.append(votes)
    contested = [i for i, votes in enumerate(wrong) if 0 < right[i] <= votes.total()]
    pairs = [(i, pair) for i in contested for pair in combinations(sorted(map(str, wrong[i])), 2)]
    items = [Item("math", f"\\boxed{{{answer}}}", other) for _, (answer, other) in pairs]
    verdicts = verifier.grade(items, progress)
    equal: dict[int, list[tuple[str, str]]] = {i: [] for i in contested}
    for (i, pair), verdict in zip(pairs, verdicts, strict=True):
        if verdict.counts:
            equal[i].append(pair)
    return [
        cons_at_k(count, [group.total() for group in grouped(votes, equal.get(i, []))])  # type: ignore[arg-type]
        for i, (count, votes) in enumerate(zip(right, wrong, strict=True))
    ]


def _votes(outcome: Graded, weights: Sequence[int] | None) -> Counter[str | None]:
    """Votes by wrong answer as it is spelt; those of the right ones under None."""
    cast = [
        (None if verdict.counts else verdict.extracted, 1 if weights is None else weights[sample])
        for sample, verdict in enumerate(outcome.verdicts)
        if verdict.counts or (verdict.counts is False and verdict.extracted)
    ]
    if not any(weight for _, weight in cast):
        cast = [(answer, 1) for answer, _ in cast]
    votes: Counter[str | None] = Counter()
    for answer, weight in cast:
        votes[answer] += weight
    return votes


def grouped(votes: Counter[str], equal: Sequence[tuple[str, str]]) -> list[Counter[str]]:
    """The votes of each group of answers that `equal` connects, the biggest group first."""
    group = {answer: answer for answer in votes}
    for first, second in equal:
        old, new = group[second], group[first]
        group = {answer: new if label == old else label for answer, label in group.items()}
    members: dict[str, Counter[str]] = {}
    for answer, count in votes.items():
        members.setdefault(group[answer], Counter())[answer] = count
    return sorted(members.values(), key=Counter.total, reverse=True)
