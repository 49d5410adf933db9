"""Weights from probing: the mean of models, each weighted by the Pass@K that it has in its own domain.

    w_i = Pass@K_i / sum of Pass@K_j

Pass@K is that of the validation split, on which the checkpoint wasn't chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def weights(probes: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """A weight a model, of sum 1, from each one's probe.json; None where none of them has solved anything.

    A probe.json of the command `probe` has no validation split; there the chosen candidate's own counts.
    """
    solved = [_measured(probe)["pass_at"][str(probe["k"])]["value"] for probe in probes]
    total = sum(solved)
    return [value / total for value in solved] if total else None


def _measured(probe: Mapping[str, Any]) -> Mapping[str, Any]:
    if "validation" in probe:
        return probe["validation"]
    return next(c for c in probe["candidates"] if c["checkpoint"] == probe["selected"])
