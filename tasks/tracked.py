"""What MLflow is told of a run beside its measurements: data sets, generations, files, and the final model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.session import Session
from vibethinker.artifacts import Artifact
from vibethinker.plan import Step, role_of
from vibethinker.tracking import RunTracker, StepTracker
from vibethinker.tracking import datasets as data_sets
from vibethinker.tracking.registry import OUTCOMES

CARD = ("card.html", "card.json")
GENERATIONS = ("generations.jsonl", "samples.jsonl")  # of evaluations, and of signal stages
TABLE = "generations.json"


def begun(session: Session, step: Step, tags: Mapping[str, str] | None = None) -> StepTracker | None:
    """The step's child run, with what the step is; None without MLflow."""
    if session.tracker is None:
        return None
    named = {"domain": step.domain, "stage": step.stage, "role": role_of(step)}
    told = {f"vibethinker.{name}": value for name, value in named.items() if value}
    return session.tracker.step(step.id, step.fingerprint, {**told, **(tags or {})}, step.settings)


def ended(session: Session, tracked: StepTracker, step: Step, artifact: Artifact) -> None:
    """The step is published: what it read, what there is to look at, and its numbers."""
    role = role_of(step)
    for one in data_sets.of_step(step.kind, step.settings, step.outside, _data(session)):
        tracked.dataset(one)
    for name in CARD if role == "data" else ():
        tracked.artifact(artifact.folder / name)
    for name in GENERATIONS:
        if (artifact.folder / name).is_file():
            tracked.table(artifact.folder / name, TABLE)
    tracked.finish("FINISHED", artifact.metrics)


def finished(
    session: Session, tracker: RunTracker, status: str, pages: Sequence[Path], metrics: Mapping[str, Any]
) -> None:
    """The run has ended: its report and model card, its data, and of a completed one its model."""
    for page in pages:
        tracker.artifact(page)
    if (data := _data(session)) is not None:
        for one in data_sets.whole(data):
            tracker.dataset(one)
    if status == "completed" and session.plan.ids("report") and not session.tags:  # an experiment's are no candidates
        _register(session, tracker, data)
    tracker.finish({"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}[status], metrics)


def _register(session: Session, tracker: RunTracker, data: Artifact | None) -> None:
    run, plan, tracking = session.run, session.plan, session.config.tracking
    final = plan[plan.final_model]
    model, damage = run.store.find(final.id, final.fingerprint, level="digest")
    if model is None:
        run.warn(f"The final model isn't registered, since its output is damaged: {damage}.")
        return
    outcomes, sets = _measured(session, final, data)
    tracker.log_model(
        model.folder,
        tracking.registered_model or f"vibethinker-{session.config.profile}",
        outcomes,
        sets,
        tracking.benchmark,
        {"fingerprint": final.fingerprint, "step": final.id, "pipeline_run": run.id},
    )


def _measured(session: Session, final: Step, data: Artifact | None) -> tuple[Path | None, dict[str, str]]:
    """The final model's outcomes, and a digest of each set's problems and of how it was measured."""
    name = f"evaluation-{final.id}"
    if name not in session.plan.fingerprints:
        return None, {}
    step = session.plan[name]
    artifact = session.run.store.read(step.id, step.fingerprint)
    if artifact is None or not (artifact.folder / OUTCOMES).is_file():
        return None, {}
    how = json.dumps(step.settings.get("evaluation"), sort_keys=True)
    read = data_sets.of_step("evaluation", step.settings, {}, data)
    problems = {one.name.removeprefix("evaluation/"): one.digest for one in read}
    return artifact.folder / OUTCOMES, {
        name: hashlib.sha256(f"{digest} {how}".encode()).hexdigest()[:16] for name, digest in problems.items()
    }


def _data(session: Session) -> Artifact | None:
    """What the data step has published, if the plan has one."""
    if not session.plan.ids("data"):
        return None
    return session.run.store.read("data", session.plan["data"].fingerprint)
