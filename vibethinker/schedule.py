"""How long the steps of a run take together: those that wait for none run side by side, as far as there are slots.

The order is that of `tasks.slots`: first come, first served, evaluations behind whatever trains, and nobody passes the
first of the queue. Left out: retries, and the moments between two steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping
from typing import Any

from vibethinker import hardware
from vibethinker.config import Config
from vibethinker.needs import Place, alone
from vibethinker.plan import Plan, Step, role_of
from vibethinker.worker import ranks
from vibethinker.workload import computes

# Until the first step begins, and after the last one: Prefect's server, the steps' imports, MLflow, the report.
AROUND_SECONDS = 20.0


def makespan(
    plan: Plan, seconds: Mapping[str, float | None], wanted: Collection[str], place: Place | None
) -> float | None:
    """Seconds from the beginning of the first to the end of the last of these steps; None if one's are unknown.

    Args:
        seconds: step id → its own.
        wanted: the steps that run; others are there already.
        place: the GPU; None is the CPU.
    """
    if any(seconds[id] is None for id in wanted):
        return None
    total = slots(plan.config, place)
    left = {step.id: {i for i in step.depends_on if i in wanted} for step in plan.steps if step.id in wanted}
    order = {step.id: number for number, step in enumerate(plan.steps)}
    queue: list[tuple[bool, float, int, Step]] = []  # patient, came at, number
    running: list[tuple[float, int, int, str]] = []  # ends at, number, width, id
    free, now = total, 0.0

    def arrive(id: str) -> None:
        step = plan[id]
        heapq.heappush(queue, (role_of(step) == "evaluation", now, order[id], step))

    for id in [id for id, needs in left.items() if not needs]:
        arrive(id)
    while queue or running:
        while queue and (width := _width(plan.config, queue[0][3], place, total)) <= free:
            *_, number, step = heapq.heappop(queue)
            free -= width
            heapq.heappush(running, (now + (seconds[step.id] or 0.0), number, width, step.id))
        now, _, width, ended = heapq.heappop(running)
        free += width
        for id, needs in left.items():
            if ended in needs:
                needs.discard(ended)
                if not needs:
                    arrive(id)
    return now


def slots(config: Config, place: Place | None) -> int:
    """Steps that compute at once: on a CPU, or on the GPUs that are here, of which a plan for elsewhere assumes one."""
    if place is None:
        return hardware.slots(config)
    return config.execution.slots or max(1, hardware.gpus()) * config.execution.steps_per_gpu


def _width(config: Config, step: Step, place: Place | None, total: int) -> int:
    """Slots that a step holds."""
    if place is not None and not computes(step):
        return 0
    if place is None:
        return total if alone(config, step) else 1
    several = ranks.count(step.kind, {"processes": config.execution.processes})
    gpus = several if several > 1 else int(alone(config, step))
    return min(total, config.execution.steps_per_gpu * gpus or 1)


def whole(
    plan: Plan, estimates: Mapping[str, Mapping[str, Any]], wanted: Collection[str], place: Place | None
) -> dict[str, Any]:
    """The estimate of a whole run: `seconds` in which its steps run, `elapsed_seconds` with what is around them,
    `work_seconds` of its steps one after the other, `usd`, and how many of its steps were `measured`."""
    steps = [estimates[id] for id in wanted]
    work = [one["seconds"] for one in steps]
    prices = [one["usd"] for one in steps if one["usd"] is not None]
    together = makespan(plan, {id: one["seconds"] for id, one in estimates.items()}, wanted, place)
    return {
        "seconds": None if together is None else round(together, 1),
        "elapsed_seconds": None if together is None else round(together + AROUND_SECONDS, 1),
        "work_seconds": None if None in work else round(sum(work), 1),
        "usd": round(sum(prices), 4) if prices else None,
        "slots": slots(plan.config, place),
        "measured": sum(one["source"] == "measured" for one in steps),
        "steps": len(steps),
    }
