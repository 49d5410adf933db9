"""How long steps took before: what the manifests of a workspace say, and what follows for a step that is planned.

A manifest's `seconds` and `work` (see `vibethinker.workload`) count where the conditions were the same and the step was
made in one go, nothing of it by an earlier process. Preferred are measurements of the same step, then of the same
kind. The seconds of phases that a training tells (generation, training, grading) grow with their tokens, what is beside
them (loading, an engine's start, writing) doesn't; a step that tells no phases grows as a whole. Of several
measurements the median counts, of the NEWEST alone, since libraries and machines change.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vibethinker.steps import KEPT
from vibethinker.validation import MANIFEST

NEWEST = 5  # measurements that count for a step
READ = 12  # newest manifests that are read of each step
PHASE = "seconds_"
GENERATED = ("generation", "grading", "validation")  # phases that grow with generated tokens; others with trained ones


@dataclass(frozen=True)
class Measurement:
    """What one step took: `seconds` of all, of which `phases` by name."""

    step: str
    work: Mapping[str, Any]
    seconds: float
    phases: Mapping[str, float]
    finished: float

    def scaled(self, work: Mapping[str, Any]) -> float:
        """Seconds that this much work will take."""
        if not self.phases:
            return self.seconds * _ratio(work, self.work, "trained_tokens", "generated_tokens")
        growing = sum(self.phases.values())
        grown = sum(
            seconds * _ratio(work, self.work, "generated_tokens" if name in GENERATED else "trained_tokens")
            for name, seconds in self.phases.items()
        )
        return max(0.0, self.seconds - growing) + grown


def measurements(workspace: Path) -> list[Measurement]:
    """All that the workspace's published outputs say, the newest first."""
    found = [one for folder in sorted((workspace / "artifacts").glob("*")) for one in _of_step(folder)]
    return sorted(found, key=lambda one: -one.finished)


def expected(step: str, work: Mapping[str, Any], known: Sequence[Measurement]) -> float | None:
    """Seconds that a step will take, from what is known; None where nothing like it was measured."""
    alike = [one for one in known if one.work["conditions"] == work["conditions"] and _comparable(one.work, work)]
    same = [one for one in alike if one.step == step]
    chosen = (same or alike)[:NEWEST]
    return statistics.median(one.scaled(work) for one in chosen) if chosen else None


def _of_step(folder: Path) -> Iterator[Measurement]:
    files = sorted(folder.glob(f"*/{MANIFEST}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files[:READ]:
        try:
            manifest = json.loads(file.read_text())
            work, metrics = manifest["work"], manifest["metrics"]
            if not work or manifest["resumed"] or metrics.get(KEPT):
                continue
            phases = {k.removeprefix(PHASE): float(v) for k, v in metrics.items() if k.startswith(PHASE)}
            yield Measurement(folder.name, work, float(manifest["seconds"]), phases, float(manifest["finished"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # an older manifest, or one that is being written or collected


def _comparable(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both have tokens, or neither has."""
    return all(bool(one[kind]) == bool(other[kind]) for kind in ("trained_tokens", "generated_tokens"))


def _ratio(work: Mapping[str, Any], measured: Mapping[str, Any], *kinds: str) -> float:
    before = sum(measured[kind] for kind in kinds)
    return sum(work[kind] for kind in kinds) / before if before else 1.0
