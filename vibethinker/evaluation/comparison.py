"""Two models on the same problems: the mean difference of a metric with its paired bootstrap interval.

Rows are those of outcomes.jsonl. Only problems that both models have enough samples of are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vibethinker.errors import DataError
from vibethinker.evaluation.estimators import paired_bootstrap, pass_at_k


class Difference(NamedTuple):
    """The second model's metric minus the first's: mean over problems, 95 % interval, number of problems."""

    difference: float
    low: float
    high: float
    problems: int


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
    found = paired_bootstrap([a[key] for key in common], [b[key] for key in common])
    return Difference(*found, len(common))


def _values(rows: Sequence[Mapping[str, Any]], k: int | None) -> dict[tuple[str, str], float]:
    """(set, id) → the problem's value."""
    values = {}
    for row in rows:
        n, c = row["samples"], row["correct"]
        if n >= (k or 1):
            values[row["set"], row["id"]] = c / n if k is None else pass_at_k(n, c, k)
    return values
