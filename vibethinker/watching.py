"""How far a run is, seen from its folder alone: each step's state, progress and last measurements, and the time left.

The time left is an estimate of what remains, divided by how many steps at once the run has managed so far, but no less
than its longest chain of steps takes. A running step's rest is told by its own speed; a waiting step's time is the
plan's estimate, corrected by what finished steps of its kind took against theirs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vibethinker import live, locks, runs

OVER = {"completed": 0, "failed": 1, "interrupted": 1, "paused": 1}  # status → exit code
ENDED = (*runs.FINISHED, "failed", "skipped")
# What is worth a look, in this order, under these names.
METRICS = {
    "reward": "reward", "entropy": "entropy", "token_accuracy": "accuracy",
    "generated_tokens_per_second": "tokens/s", "trained_tokens_per_second": "trained/s", "loss": "loss",
}  # fmt: skip


@dataclass(frozen=True)
class StepView:
    """One step as it is now.

    Attributes:
        state: see `runs.Run`.
        seconds: it took, or has taken so far.
        left: seconds until it ends, if it runs and has said how far it is.
        share: of its work that is done, if it runs and says so.
        text: what it is at, or why it failed.
        metrics: title → last value.
    """

    id: str
    state: str
    seconds: float | None = None
    left: float | None = None
    share: float | None = None
    text: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RunView:
    """A run as it is now.

    Attributes:
        gone: its process is gone though it has not ended.
        seconds: since it was started, or went on.
        left: seconds until it ends; None where that can't be said.
        reason: why it is paused.
    """

    id: str
    status: str
    gone: bool
    seconds: float
    left: float | None
    steps: Sequence[StepView]
    warnings: Sequence[str]
    resume: str
    reason: str = ""

    @property
    def exit_code(self) -> int | None:
        """What the run's end means to a caller; None before its end."""
        return OVER.get(self.status, 1 if self.gone else None)

    @property
    def ended(self) -> int:
        """How many steps are over."""
        return sum(step.state in ENDED for step in self.steps)


def look(folder: Path, now: float | None = None) -> RunView:
    """The run of this folder at this moment.

    Raises:
        ConfigurationError: its summary can't be read.
    """
    now = time.time() if now is None else now
    summary, noted, gone = runs.read_summary(folder), live.read(folder), False
    if summary["status"] == "running" and not locks.is_held(folder / runs.ALIVE):
        summary = runs.read_summary(folder)  # which may have ended since
        gone = summary["status"] == "running"
    state = _json(folder / "state.json")
    steps = [_step(entry, noted.get(entry["id"], {}), now) for entry in summary["steps"]]
    seconds = max(0.0, now - float(state.get("started", now)))
    return RunView(
        id=summary["run_id"],
        status=summary["status"],
        gone=gone,
        seconds=seconds,
        left=_left(steps, _json(folder / "plan.json").get("steps", []), seconds),
        steps=steps,
        warnings=summary["warnings"],
        resume=str(state.get("resume", "")),
        reason=summary.get("reason", ""),
    )


def _step(entry: Mapping[str, Any], noted: Mapping[str, Any], now: float) -> StepView:
    if entry["state"] != "running":
        text, metrics = entry.get("error", ""), _measured({**entry["metrics"], **noted.get("metrics", {})})
        return StepView(entry["id"], entry["state"], entry["seconds"], text=text, metrics=metrics)
    seconds = max(0.0, now - noted["began"]) if "began" in noted else None
    done, total, text = noted.get("done"), noted.get("total"), noted.get("text", "")
    share = left = None
    if done is not None and total:
        share = done / total
        begun, since, _ = noted["first"]
        speed = (done - begun) / (now - since) if now > since else 0.0
        left = (total - done) / speed if speed > 0 else None
        text = f"{done:g} of {total:g} {text}".rstrip()
    return StepView(entry["id"], "running", seconds, left, share, text, _measured(noted.get("metrics", {})))


def _measured(values: Mapping[str, Any]) -> dict[str, float]:
    found = {title: values[name] for name, title in METRICS.items() if isinstance(values.get(name), (int, float))}
    accuracies = [v for name, v in values.items() if name.rpartition("/")[2].startswith("avg@")]
    return {**found, **({"mean accuracy": sum(accuracies) / len(accuracies)} if accuracies else {})}


def _left(steps: Sequence[StepView], planned: Sequence[Mapping[str, Any]], elapsed: float) -> float | None:
    """See the module; None where a waiting step's time isn't known."""
    plan = {step["id"]: step for step in planned}
    rest: dict[str, float] = {}
    for step in steps:
        seconds = 0.0
        if step.state not in ENDED:
            expected = _expected(step, steps, plan)
            if step.state == "running" and step.left is not None:
                seconds = step.left
            elif expected is None:
                return None
            else:
                seconds = max(0.0, expected - (step.seconds or 0.0))
        rest[step.id] = seconds
    worked = sum(s.seconds or 0.0 for s in steps if s.state in ("done", "running"))
    at_once = max(1.0, worked / elapsed if elapsed else 1.0)
    chains: dict[str, float] = {}
    for step in steps:  # in the plan's order, so after what they depend on
        before = (chains.get(other, 0.0) for other in plan.get(step.id, {}).get("depends_on", ()))
        chains[step.id] = rest[step.id] + max(before, default=0.0)
    return max(sum(rest.values()) / at_once, max(chains.values(), default=0.0))


def _expected(step: StepView, steps: Sequence[StepView], plan: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Seconds that a step will take."""
    if step.id not in plan:
        return None
    kind, estimate = plan[step.id]["kind"], plan[step.id]["estimate"]["seconds"]
    pairs = [
        (other.seconds, plan[other.id]["estimate"]["seconds"])
        for other in steps
        if other.state == "done" and other.seconds and other.id in plan and plan[other.id]["kind"] == kind
    ]
    if not pairs:
        return estimate
    took, guessed = sum(a for a, _ in pairs), sum(b or 0.0 for _, b in pairs)
    return estimate * took / guessed if estimate and guessed else took / len(pairs)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
