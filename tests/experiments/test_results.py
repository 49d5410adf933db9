"""What is concluded from outcomes: paired, corrected, given up, costed, and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.experiments.test_design import BASIC
from vibethinker import locks
from vibethinker.artifacts import Store
from vibethinker.errors import ConfigurationError
from vibethinker.experiments import report
from vibethinker.experiments.design import Cell, Experiment, make
from vibethinker.experiments.results import Results
from vibethinker.experiments.study import ALIVE, Study, ended, read_result
from vibethinker.plan import role_of

pytestmark = pytest.mark.slow

SAMPLES, PROBLEMS = 8, 40
DESIGN = {
    **BASIC,
    "arms": {
        "grpo": {"signal.objective.lambda": 0},
        **{f"mgpo-{n}": {"signal.objective.lambda": n} for n in (1, 2, 4)},
    },
    "settings": {"evaluation": {"samples": SAMPLES, "k": [8]}, "execution.price": 3.6},
    "seeds": [1, 2, 3, 4],
    "comparisons": [{"metric": "avg"}, {"metric": "pass@8", "sets": ["algebra"], "arms": ["mgpo-4"]}],
    "futility": {"looks": [2], "gain": 0.02, "risk": 0.1},
}
BETTER = {"grpo": 0.4, "mgpo-1": 0.4, "mgpo-2": 0.9, "mgpo-4": 0.1}  # how likely each arm solves a problem


def publish(experiment: Experiment, step: str, arm: str, seed: int, metrics: dict[str, Any]) -> Path:
    [cell] = [c for c in experiment.of_seed(seed) if c.arm == arm]
    store, fingerprint = Store(experiment.workspace), cell.plan[step].fingerprint
    if there := store.read(step, fingerprint):
        return there.folder
    staging = store.staging(step, fingerprint)
    if step.startswith("evaluation"):
        generator = np.random.default_rng([seed, list(BETTER).index(arm)])
        rows = [
            {"set": name, "id": f"{name}-{i}", "samples": SAMPLES, "correct": int(right), "tokens": [10] * SAMPLES}
            for name in ("algebra", "statistics")
            for i, right in enumerate(generator.binomial(SAMPLES, BETTER[arm], PROBLEMS))
        ]
        (staging / "outcomes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        curve = [{"step": at, "reward": BETTER[arm] * at / 10, "p_histogram": [1]} for at in (1, 2, 3)]
        (staging / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))
    made = {"metrics": metrics, "seconds": 100.0}
    return store.publish(staging, step, fingerprint, inputs={}, record=made).folder


def measured(experiment: Experiment, *seeds: int) -> None:
    speeds = {"seconds_training": 10.0, "trained_tokens_per_second": 5.0}
    for seed in seeds:
        for arm in experiment.arms:
            publish(experiment, "evaluation-signal-2", arm, seed, {})
            publish(experiment, "signal-2", arm, seed, speeds)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return make(DESIGN, tmp_path)


def test_differences_are_paired_corrected_together_and_told(experiment: Experiment):
    study = Study(experiment, DESIGN)
    measured(experiment, 1, 2, 3, 4)
    assert not any(row["significant"] for row in study.save()["comparisons"]), "while it runs nothing is claimed"
    result = study.end("completed")
    rows = {(row["arm"], row["metric"]): row for row in result["comparisons"]}
    assert list(rows) == [("mgpo-1", "avg"), ("mgpo-2", "avg"), ("mgpo-4", "avg"), ("mgpo-4", "pass@8")]
    assert result["registered"]["family"] == 4
    better = rows["mgpo-2", "avg"]
    assert better["low"] < 0.5 < better["high"]
    assert better["simultaneous"][0] < better["low"]
    assert (better["seeds"], better["problems"], better["over"]) == (4, 2 * PROBLEMS, "seeds and problems")
    assert better["difference"] == pytest.approx(np.mean(list(better["by_seed"].values())))
    means = {row["arm"]: row["mean"] for row in result["means"] if row["metric"] == "avg"}
    assert means["mgpo-2"] - means["grpo"] == pytest.approx(better["difference"])
    assert rows["mgpo-4", "pass@8"]["problems"] == PROBLEMS
    assert {key: report.verdict(row) for key, row in rows.items()} == {
        ("mgpo-1", "avg"): "no difference shown",
        ("mgpo-2", "avg"): "better",
        ("mgpo-4", "avg"): "worse",
        ("mgpo-4", "pass@8"): "worse",
    }
    for row in rows.values():
        assert row["p"] <= row["p_holm"] <= 1
    text = (experiment.folder / "report.md").read_text()
    assert "| mgpo-2 − grpo | avg, final | +" in text
    for name in ("difference-1", "difference-2", "training-signal-2-1"):
        plot = (experiment.folder / "plots" / f"{name}.svg").read_text()
        assert f"plots/{name}.svg" in text
        assert ElementTree.fromstring(plot).tag.endswith("svg")
        assert "mgpo-4" in plot
    assert "mgpo-2 − grpo, avg, final" in report.summarise(result, experiment.folder)


def test_the_cost_counts_each_output_once(experiment: Experiment):
    measured(experiment, 1, 2)
    cost = Results(experiment).cost()
    assert cost["outputs"] == 16
    assert cost["seconds"] == cost["seconds_unshared"] == 1600
    assert cost["usd"] == pytest.approx(1600 / 3600 * 3.6)
    assert cost["generated_tokens"] == 8 * 2 * PROBLEMS * SAMPLES * 10
    assert cost["trained_tokens"] == 8 * 50
    publish(experiment, "signal-1", "grpo", 1, {})
    store, first = Store(experiment.workspace), experiment.cells[0].plan
    staging = store.staging("data", first["data"].fingerprint)
    (staging / "x").write_text("")
    store.publish(staging, "data", first["data"].fingerprint, inputs={}, record={"metrics": {}, "seconds": 50.0})
    cost = Results(experiment).cost()
    assert (cost["seconds"], cost["seconds_unshared"]) == (1750, 1700 + 50 * len(experiment.cells))


def test_hopeless_arms_are_given_up_and_nothing_is_claimed_of_them(experiment: Experiment):
    study = Study(experiment, DESIGN)
    measured(experiment, 1, 2)
    assert study.look(1) == []
    assert study.look(2) == ["mgpo-4"]
    bounds = [one["upper"] for one in study.looks[0]["arms"]]
    study.close()
    again = Study(experiment, DESIGN)
    measured(experiment, 3, 4)
    assert again.look(2) == ["mgpo-4"], "what was seen once isn't looked at again"
    found = Results(experiment).look(experiment.design.futility, 2)
    assert [one["upper"] for one in found] == bounds, "a look has the seeds before it alone"
    assert [cell.arm for cell in again.going(3)] == ["grpo", "mgpo-1", "mgpo-2"]
    rows = {(row["arm"], row["metric"]): row for row in again.end("completed")["comparisons"]}
    assert rows["mgpo-4", "avg"]["p"] < 0.05
    assert set(rows["mgpo-4", "avg"]["by_seed"]) == {"1", "2"}
    assert rows["mgpo-4", "avg"]["p_holm"] == 1
    assert report.verdict(rows["mgpo-4", "avg"]) == "given up after 2 seeds"
    assert rows["mgpo-2", "avg"]["significant"]
    assert "| 2 | mgpo-4 | −" in (experiment.folder / "report.md").read_text()


def test_where_all_are_given_up_nothing_more_runs(experiment: Experiment):
    study = Study(experiment, DESIGN)
    study.looks = [{"after": 2, "arms": [{"arm": f"mgpo-{n}", "upper": [], "futile": True} for n in (1, 2, 4)]}]
    assert study.going(3) == []


def test_nothing_is_claimed_of_an_arm_of_which_a_run_diverged(experiment: Experiment):
    study = Study(experiment, DESIGN)
    measured(experiment, 1, 2, 3)
    [cell] = [c for c in experiment.of_seed(4) if c.arm == "mgpo-2"]
    study.note(cell, "some-run", "diverged", "It diverged.")
    assert study.diverged(cell)
    rows = {row["arm"]: row for row in study.end("completed")["comparisons"] if row["metric"] == "avg"}
    assert report.verdict(rows["mgpo-2"]) == "1 runs diverged"
    assert not rows["mgpo-2"]["significant"]
    assert "diverged: It diverged." in (experiment.folder / "report.md").read_text()


def waits(experiment: Experiment, study: Study, first: Cell, other: Cell) -> list[str]:
    """The first run's steps that the other run waits for, in their order; each is published on the way."""
    waited = []
    for step in first.plan.steps:
        if study.lacking(other, [first]):
            waited.append(step.id)
        if role_of(step) not in ("evaluation", "report"):
            publish(experiment, step.id, first.arm, first.seed, {})
    return waited


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_waits_for_what_it_shares_with_another_until_its_own_stages_can_begin(experiment: Experiment, seed: int):
    study, first = Study(experiment, DESIGN), experiment.of_seed(1)[0]
    waited = waits(experiment, study, first, experiment.of_seed(seed)[-1])
    assert waited[0] == "data"
    assert waited[-1] == "fusion"
    assert not study.lacking(first, []), "a run alone waits for nothing"


def test_what_is_shared_with_a_run_that_has_yet_to_begin_is_not_waited_for(tmp_path: Path):
    methods = {"grpo": "linear", "mgpo-1": "linear", "mgpo-2": "ties", "mgpo-4": "ties"}
    arms = {arm: {"spectrum.fusion.method": method, **DESIGN["arms"][arm]} for arm, method in methods.items()}
    experiment = make({**DESIGN, "arms": arms}, tmp_path)
    study = Study(experiment, DESIGN)
    first, second, third, fourth = experiment.of_seed(1)
    assert "fusion" not in waits(experiment, study, first, third)
    assert not study.lacking(second, [first])
    assert study.lacking(fourth, [first, third])


def test_what_was_declared_stays_and_one_process_works_on_it(experiment: Experiment):
    study = Study(experiment, DESIGN)
    declared = read_result(experiment.folder)["registered"]
    assert declared["comparisons"][1]["metric"] == "pass@8"
    assert declared["arms"]["mgpo-2"] == {"signal.objective.lambda": 2}
    with pytest.raises(ConfigurationError, match="is being run by another process"):
        Study(experiment, DESIGN)
    study.close()
    assert not locks.is_held(experiment.folder / ALIVE)
    assert Study(experiment, DESIGN).registered == declared
    assert not ended(experiment)
    (experiment.folder / "result.json").write_text('{"schema": 99}')
    with pytest.raises(ConfigurationError, match="schema 99"):
        read_result(experiment.folder)
