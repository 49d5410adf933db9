"""What an experiment would do: which outputs its arms share, which are there, and what the rest will cost."""

from __future__ import annotations

from typing import Any

from vibethinker.artifacts import Store
from vibethinker.estimates import estimate
from vibethinker.experiments.design import Experiment
from vibethinker.plan import StepState, states

SCHEMA = 1


def document(experiment: Experiment) -> dict[str, Any]:
    """The experiment's outputs, each once: its step and fingerprint, how many runs and which arms use it, its state now
    and its estimate."""
    known: dict[tuple[str, str], StepState] = {}
    store = Store(experiment.workspace)
    outputs: dict[tuple[str, str], dict[str, Any]] = {}
    for cell in experiment.cells:
        found, estimates = states(cell.plan, store, known=known), estimate(cell.plan)
        for step in cell.plan.steps:
            one = outputs.setdefault(
                (step.id, step.fingerprint),
                {
                    "step": step.id,
                    "fingerprint": step.fingerprint,
                    "arms": [],
                    "runs": 0,
                    "state": found[step.id].state,
                    "estimate": {n: estimates[step.id][n] for n in ("seconds", "usd")}
                    | {"tokens": estimates[step.id]["trained_tokens"] + estimates[step.id]["generated_tokens"]},
                },
            )
            one["runs"] += 1
            if cell.arm not in one["arms"]:
                one["arms"].append(cell.arm)
    return {
        "schema": SCHEMA,
        "id": experiment.id,
        "arms": list(experiment.arms),
        **experiment.rules,
        "runs": len(experiment.cells),
        "family": len(list(experiment.pairs())),
        "outputs": list(outputs.values()),
    }


def groups(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The outputs for people: those of one step that the same arms use (over several seeds) together, with how many
    there are, how many are cached, and the sums of their estimates, None where one can't be said."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in outputs:
        found.setdefault((one["step"], tuple(one["arms"])), []).append(one)
    rows = []
    for (step, arms), some in found.items():
        left = [one for one in some if one["state"] != "cached"]
        rows.append(
            {
                "step": step,
                "arms": list(arms),
                "outputs": len(some),
                "cached": len(some) - len(left),
                "resumable": sum(one["state"] == "resumable" for one in some),
                "runs": sum(one["runs"] for one in some),
                **{name: total(left, name) for name in ("tokens", "seconds", "usd")},
            }
        )
    return rows


def total(outputs: list[dict[str, Any]], name: str) -> float | None:
    """The sum of an estimate; None where one of them can't be said."""
    values = [one["estimate"][name] for one in outputs]
    return None if None in values else sum(values)
