"""Where each output of a run came from: its steps from top to bottom, joined by lines, each with its fingerprint.

Drawn is what can't be told from other lines: a step that reads another one by way of a third has no line of its own to
it. Lines that begin at one step, or end at one, share a lane left of the steps, as in an underground map, so that the
picture is as narrow as a phone. Lists of what each step reads are the page's to show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from vibethinker.reporting.svg import WIDTH

ROW, TOP, LANE, RADIUS = 24, 14, 13, 4.5
CURVE = 6.0
STATES = {"done": "made", "cached": "reused", "failed": "failed", "waiting": "waiting", "skipped": "missing"}


class Lane(NamedTuple):
    """A vertical line: rows from its first to its last, and the edges (from row, to row) that use it."""

    first: int
    last: int
    edges: Sequence[tuple[int, int]]


def graph(steps: Sequence[Mapping[str, Any]]) -> str:
    """The figure, of the steps of a summary; nothing where they don't say what they read."""
    if not any(step.get("depends_on") for step in steps):
        return ""
    rows = ordered(steps)
    place = {step["id"]: number for number, step in enumerate(rows)}
    edges = sorted((place[a], place[b]) for a, b in essential(steps))
    straight = [(a, b) for a, b in edges if b == a + 1]
    lanes = assigned(bundled([edge for edge in edges if edge not in straight]))
    x0 = 10 + LANE * (1 + max(lanes.values(), default=-1))
    parts = [f'<path class="edge" d="M{x0} {_y(a)}V{_y(b)}"/>' for a, b in straight]
    for lane, number in lanes.items():
        x = x0 - LANE * (number + 1)
        parts += [_bend(x0, x, a, b) for a, b in lane.edges]
    for number, step in enumerate(rows):
        y, state = _y(number), STATES.get(step["state"], "missing")
        tip = f"{step['id']} ({state}): {step['fingerprint']}"
        parts.append(
            f'<g><title>{escape(tip)}</title><circle class="node {state}" cx="{x0}" cy="{y}" r="{RADIUS}"/>'
            f'<text class="step" x="{x0 + 12}" y="{y + 4}">{escape(_short(step["id"]))}</text>'
            f'<text class="print" x="{WIDTH - 2}" y="{y + 4}">{escape(step["fingerprint"][:8])}</text></g>'
        )
    said = f"{len(rows)} steps, from {rows[0]['id']} to {rows[-1]['id']}, with {len(edges)} lines between them."
    return (
        f'<svg class="plot provenance" viewBox="0 0 {WIDTH} {2 * TOP + ROW * (len(rows) - 1)}" role="img" '
        f'aria-label="Provenance of the run\'s outputs"><desc>{escape(said)}</desc>{"".join(parts)}</svg>'
    )


def essential(steps: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Which step is read by which, without what goes by way of others."""
    known = {step["id"] for step in steps}
    needs = {step["id"]: [i for i in step.get("depends_on", ()) if i in known] for step in steps}
    above: dict[str, set[str]] = {}

    def ancestors(id: str) -> set[str]:
        if id not in above:
            above[id] = set()  # a plan has no circles; a damaged one ends all the same
            above[id] = set().union(*({need} | ancestors(need) for need in needs[id]))
        return above[id]

    return [
        (need, id)
        for id, some in needs.items()
        for need in some
        if not any(need in ancestors(other) for other in some if other != need)
    ]


def ordered(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The steps in an order in which each comes soon after what it reads: a specialist's probe right below it."""
    by_id = {step["id"]: step for step in steps}
    left = {id: {i for i in step.get("depends_on", ()) if i in by_id} for id, step in by_id.items()}
    number = {id: i for i, id in enumerate(by_id)}
    done: list[str] = []
    while left:
        ready = [id for id, needs in left.items() if needs <= set(done)] or list(left)
        # Whoever reads the newest output comes first; of those, what is measured, then the plan's order.
        newest = {
            id: max((done.index(i) for i in by_id[id].get("depends_on", ()) if i in done), default=-1) for id in ready
        }
        chosen = min(ready, key=lambda id: (-newest[id], not id.startswith("evaluation-"), number[id]))
        done.append(chosen)
        del left[chosen]
    return [by_id[id] for id in done]


def bundled(edges: Sequence[tuple[int, int]]) -> list[Lane]:
    """Lanes for these edges: one for all that end at a step where several do, else one for all that begin at one."""
    ends = [b for _, b in edges]
    lanes: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for a, b in edges:
        lanes.setdefault(("to", b) if ends.count(b) > 1 else ("from", a), []).append((a, b))
    return [Lane(min(a for a, _ in some), max(b for _, b in some), some) for some in lanes.values()]


def assigned(lanes: Sequence[Lane]) -> dict[Lane, int]:
    """The number of each lane, 0 next to the steps: short ones inside, and none over another."""
    taken: list[list[Lane]] = []
    numbers = {}
    for lane in sorted((_fixed(lane) for lane in lanes), key=lambda lane: (lane.last - lane.first, lane.first)):
        free = next(
            (i for i, some in enumerate(taken) if all(lane.last < o.first or o.last < lane.first for o in some)),
            len(taken),
        )
        if free == len(taken):
            taken.append([])
        taken[free].append(lane)
        numbers[lane] = free
    return numbers


def _fixed(lane: Lane) -> Lane:
    return lane._replace(edges=tuple(lane.edges))


def _bend(x0: float, x: float, a: int, b: int) -> str:
    top, bottom = _y(a), _y(b)
    return (
        f'<path class="edge" d="M{x0} {top}H{x + CURVE}Q{x} {top} {x} {top + CURVE}V{bottom - CURVE}'
        f'Q{x} {bottom} {x + CURVE} {bottom}H{x0}"/>'
    )


def _y(row: int) -> int:
    return TOP + ROW * row


def _short(text: str, length: int = 33) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
