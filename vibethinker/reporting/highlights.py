"""Which of a run's many comparisons tell its story, and how scores and differences are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# (title, kind of comparison, metric): the recipe as a whole, then what each phase is for.
_STORY = (
    ("Whole recipe", "final", "avg@"),
    ("Spectrum: more problems solvable", "fusion", "pass@"),
    ("Signal: solved more often", "stage", "avg@"),
)


def highlights(comparisons: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """The gains that the recipe is about, over mathematics and over code, each with a title."""
    found = []
    for scope in ("math", "code"):
        for title, kind, metric in _STORY:
            matching = [
                c for c in comparisons if c["kind"] == kind and c["scope"] == scope and c["metric"].startswith(metric)
            ]
            if matching:
                found.append((title, matching[-1]))  # of the signal stages the last
    return found


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{difference * 100:+.1f}".replace("-", "−")


def score(of: Mapping[str, float]) -> str:
    """A share with its interval, as percentages."""
    return f"{of['value'] * 100:.1f} {interval(of, True)}"


def interval(of: Mapping[str, float], share: bool = False) -> str:
    """`[low, high]`, as percentages or as signed percentage points."""
    ends = (of["low"], of["high"])
    return "[" + ", ".join(f"{v * 100:.1f}" if share else points(v) for v in ends) + "]"


def sort(comparison: Mapping[str, Any]) -> str:
    """`up` or `down` where the difference is significant, else `unsure`."""
    if not comparison["significant"]:
        return "unsure"
    return "up" if comparison["difference"] > 0 else "down"
