"""The graph of a run's outputs: no line too much, none too few, and no two on one another."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vibethinker.config import load
from vibethinker.plan import build
from vibethinker.reporting.provenance import assigned, bundled, essential, graph, ordered

Steps = list[dict[str, Any]]


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    plan = build(load("tiny", environ={}), tmp_path)
    return [{"id": s.id, "fingerprint": s.fingerprint, "state": "done", "depends_on": s.depends_on} for s in plan.steps]


def reachable(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """All pairs of which the second comes from the first."""
    while True:
        more = edges | {(a, d) for a, b in edges for c, d in edges if b == c}
        if more == edges:
            return edges
        edges = more


def test_lines_say_all_that_comes_from_what_and_none_can_be_left_out(steps: Steps) -> None:
    lines = set(essential(steps))
    everything = reachable({(need, step["id"]) for step in steps for need in step["depends_on"]})
    assert reachable(lines) == everything
    assert all(reachable(lines - {line}) != everything for line in lines)
    assert len(lines) < 40 < sum(len(step["depends_on"]) for step in steps)


def test_each_step_comes_after_what_it_reads_and_models_right_before_what_measures_them(steps: Steps) -> None:
    ids = [step["id"] for step in ordered(steps)]
    assert sorted(ids) == sorted(step["id"] for step in steps)
    assert all(ids.index(need) < ids.index(step["id"]) for step in steps for need in step["depends_on"])
    neighbours = set(pairwise(ids))
    for domain in ("algebra", "code"):
        assert (f"specialist-{domain}", f"probe-{domain}") in neighbours
    assert {("fusion", "evaluation-fusion"), ("signal-1", "evaluation-signal-1")} <= neighbours


def test_lanes_are_few_and_cross_no_other_of_the_same_number(steps: Steps) -> None:
    rows = [step["id"] for step in ordered(steps)]
    edges = [(rows.index(a), rows.index(b)) for a, b in essential(steps)]
    lanes = assigned(bundled([(a, b) for a, b in edges if b > a + 1]))
    assert max(lanes.values()) <= 3
    for one, number in lanes.items():
        for other, same in lanes.items():
            assert one == other or number != same or one.last < other.first or other.last < one.first


def test_the_picture_has_every_step_with_its_state_and_is_empty_for_an_older_run(steps: Steps) -> None:
    steps[0] = {**steps[0], "id": "<b>data", "state": "cached"}
    steps[1] = {**steps[1], "depends_on": ["<b>data", "gone"]}
    drawn = ET.fromstring(graph(steps))
    nodes = [e.attrib["class"] for e in drawn.iter("circle")]
    assert len(nodes) == len(steps) and nodes.count("node reused") == 1
    assert {step["id"] for step in steps} <= {e.text for e in drawn.iter("text")}
    assert graph([{k: v for k, v in step.items() if k != "depends_on"} for step in steps]) == ""
