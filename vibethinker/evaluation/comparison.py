"""Two models on the same problems: the mean difference of a metric with its paired bootstrap interval and p-value.

Rows are those of outcomes.jsonl. Only problems that both models have enough samples of are compared. A difference is
significant by its p-value, wherever one is called so: of a few problems the bootstrap interval is too narrow, that of
a single one has no width at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vibethinker.errors import DataError
from vibethinker.evaluation.estimators import paired_bootstrap, pass_at_k, sign_flip

SIGNIFICANT = 0.05  # a p-value below it


class Difference(NamedTuple):
    """The second model's metric minus the first's: mean over problems, 95 % interval, number of problems, and the
    p-value of a paired sign-flip test."""

    difference: float
    low: float
    high: float
    problems: int
    p: float

    @property
    def significant(self) -> bool:
        """Whether equal models would differ so much less often than one time in twenty."""
        return self.p < SIGNIFICANT


def compare(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], k: int | None = None
) -> Difference:
    """The change of Pass@k, or of the share of right samples (`k` None), from the first model to the second.

    Args:
        first, second: rows with `set`, `id`, `correct` and `samples`; the order does not matter.
        k: draws of Pass@k.

    Raises:
        DataError: no problem is in both.
    """
    a, b = _values(first, k), _values(second, k)
    common = sorted(a.keys() & b.keys())
    if not common:
        raise DataError("The two models have no graded problem in common: evaluate both on the same sets.")
    return paired([a[key] for key in common], [b[key] for key in common])


def comparisons(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], sets: Sequence[str], k: int | None = None
) -> list[dict[str, Any]]:
    """The changes of the share of right samples (`avg`), of pass@k if given, and of the majority vote (`cons`) where
    rows have one, for each set and, where there are several, for all problems together (`set` None).

    Each has `a` and `b`, the means over the problems of both, the difference b − a with `low`, `high` and `p`, and
    whether it is significant. No correction is made for the number of comparisons.

    Raises:
        DataError: no problem of a set is in both.
    """
    metrics = {"avg": lambda row: _value(row, None), "cons": lambda row: row.get("cons")}
    if k is not None:
        metrics[f"pass@{k}"] = lambda row: _value(row, k)
    found = []
    for scope in (*sets, *([None] if len(sets) > 1 else [])):
        wanted = set(sets) if scope is None else {scope}
        for metric, value in metrics.items():
            a, b = _by_problem(first, wanted, value), _by_problem(second, wanted, value)
            both = sorted(a.keys() & b.keys())
            if not both and metric == "avg":
                raise DataError(f"The two models have no graded problem of {scope} in common: evaluate both on it.")
            if not both:
                continue
            change = paired([a[key] for key in both], [b[key] for key in both])
            means = {"a": sum(a[key] for key in both) / len(both), "b": sum(b[key] for key in both) / len(both)}
            found.append(
                {"set": scope, "metric": metric, **means, **change._asdict(), "significant": change.significant}
            )
    return found


def _by_problem(
    rows: Sequence[Mapping[str, Any]], sets: set[str], value: Callable[[Mapping[str, Any]], float | None]
) -> dict[tuple[str, str], float]:
    found = {(row["set"], row["id"]): value(row) for row in rows if row["set"] in sets}
    return {key: one for key, one in found.items() if one is not None}


def _value(row: Mapping[str, Any], k: int | None) -> float | None:
    """A problem's share of right samples, or its Pass@k; None where too few samples count."""
    n, c = row["samples"], row["correct"]
    if n < (k or 1):
        return None
    return c / n if k is None else pass_at_k(n, c, k)


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The change from the first model's values to the second's, of the same problems in the same order."""
    found = paired_bootstrap(first, second)
    return Difference(*found, len(first), sign_flip([b - a for a, b in zip(first, second, strict=True)]))


def _values(rows: Sequence[Mapping[str, Any]], k: int | None) -> dict[tuple[str, str], float]:
    """(set, id) → the problem's value."""
    return _by_problem(rows, {row["set"] for row in rows}, lambda row: _value(row, k))
