"""What a verifier did: verdicts counted by kind and class, and how long grading took. Bounded memory, any thread."""

from __future__ import annotations

import math
import threading
from collections import Counter

from vibethinker.verification.schema import Verdict

_STEP = math.log(1.1)  # each class of durations is a tenth longer than the one before
_SHORTEST = 1e-6  # seconds
PERCENTILES = (50, 95, 99)


class Statistics:
    """Counts of verdicts, and of durations in classes 10 % wide, which is how exact the percentiles are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._verdicts: Counter[tuple[str, str]] = Counter()
        self._durations: dict[str, Counter[int]] = {}

    def add(self, kind: str, verdict: Verdict) -> None:
        """Count one verdict."""
        place = math.floor(math.log(max(verdict.seconds, _SHORTEST) / _SHORTEST) / _STEP)
        with self._lock:
            self._verdicts[kind, verdict.verdict] += 1
            self._durations.setdefault(kind, Counter())[place] += 1

    def values(self) -> dict[str, float]:
        """`math/correct`, `code/time_limit`… (counts), and `math/seconds_p50`… of each kind that there was."""
        with self._lock:
            result: dict[str, float] = {f"{kind}/{name}": n for (kind, name), n in sorted(self._verdicts.items())}
            for kind, durations in sorted(self._durations.items()):
                for percentile in PERCENTILES:
                    result[f"{kind}/seconds_p{percentile}"] = _percentile(durations, percentile)
        return result


def _percentile(durations: Counter[int], percentile: int) -> float:
    wanted, seen = durations.total() * percentile / 100, 0
    for place, count in sorted(durations.items()):
        seen += count
        if seen >= wanted:
            return _SHORTEST * math.exp(_STEP * (place + 0.5))
    return 0.0
