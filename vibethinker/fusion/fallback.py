"""Is the fused model better than the best specialist alone? Where a run asks for it, the better one goes on.

The best specialist is chosen on the probe splits of all domains. It and the fused model then meet on the validation
splits, which neither choice has seen, problem by problem; the fused model goes on unless its mean is lower there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vibethinker.fusion.measuring import Bench, interval, mean


def better_alone(bench: Bench, fused: Path, specialists: Sequence[Path], domains: Sequence[str]) -> dict[str, Any]:
    """What was measured; `taken` is the domain of the specialist that goes on in the fused model's place, or None."""
    alone = {
        domain: mean(bench.scores(folder, "probe", f"specialist {domain}"))
        for domain, folder in zip(domains, specialists, strict=True)
    }
    best = max(alone, key=alone.__getitem__)
    other = bench.scores(specialists[list(domains).index(best)], "validation", f"specialist {best}")
    own = bench.scores(fused, "validation", "fused model")
    difference = interval(own, minus=other)
    return {
        "k": bench.k,
        "probe": alone,
        "best": best,
        "specialist": interval(other),
        "fused": interval(own),
        "difference": difference,
        "taken": best if difference["value"] < 0 else None,
    }
