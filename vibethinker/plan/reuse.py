"""What of a plan is there already: the state of each step, and what to know of outputs that are reused. The workspace
is only looked at; whoever runs a step puts damaged outputs aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vibethinker.artifacts import Artifact, Store
from vibethinker.environment import versions
from vibethinker.plan.steps import Plan


@dataclass(frozen=True)
class StepState:
    """`state` is cached, resumable (its training goes on after `update`) or to_run; `reason` says why something that is
    there can't be used."""

    state: str
    artifact: Artifact | None = None
    reason: str | None = None
    update: int | None = None


def states(
    plan: Plan,
    store: Store,
    refresh: frozenset[str] = frozenset(),
    known: dict[tuple[str, str], StepState] | None = None,
) -> dict[str, StepState]:
    """What can be reused: a valid output of the same fingerprint made from the inputs published now.

    Args:
        known: step and fingerprint → its state, where several plans share steps; what is found is added.
    """
    known = {} if known is None else known
    result: dict[str, StepState] = {}
    for step in plan.steps:
        if step.id in refresh:
            result[step.id] = StepState("to_run", reason="refresh was asked for")
            continue
        if found := known.get((step.id, step.fingerprint)):
            result[step.id] = found
            continue
        upstream = {role: result[i].artifact for role, i in step.inputs.items()}
        if any(a is None for a in upstream.values()):
            result[step.id] = known[step.id, step.fingerprint] = StepState("to_run")
            continue
        digests = {role: a.digest for role, a in upstream.items() if a}
        artifact, reason = store.find(step.id, step.fingerprint, digests)
        update = None if artifact else store.update(step.id, step.fingerprint, digests)
        state = "cached" if artifact else "to_run" if update is None else "resumable"
        result[step.id] = known[step.id, step.fingerprint] = StepState(state, artifact, reason, update)
    return result


def reuse_warnings(states: Mapping[str, StepState]) -> list[str]:
    """What to know of reused outputs: a sentence for each library whose version differs from the one that made them,
    and for each training that diverged and was rolled back, whose rates aren't those of its settings."""
    now = versions()
    changed: dict[tuple[str, str], list[str]] = {}
    rolled_back = {id: state.artifact.metrics for id, state in states.items() if state.artifact}
    for step_id, state in states.items():
        for name, version in (state.artifact.manifest.get("versions", {}) if state.artifact else {}).items():
            if name in now and now[name] != version:
                changed.setdefault((name, version), []).append(step_id)
    return [
        f"{name} is {now[name]} but {version} made {', '.join(steps)}: --refresh those steps if results must agree."
        for (name, version), steps in sorted(changed.items())
    ] + [
        f"{step_id} diverged, was rolled back and trained on at {made['rollback_rate']:g} of its learning rate, as its "
        "manifest says: configure a smaller one if that is to be the recipe."
        for step_id, made in rolled_back.items()
        if made.get("rollbacks")
    ]
