"""A stage that ends with its rollouts: refills count, and no more and no fewer are sampled."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.training.stopping import OBJECTIVE, STAGE, Fragile, ask, files, restarted, trained
from tests.training.test_validating import data, listening  # noqa: F401
from vibethinker import preemption
from vibethinker.config import load
from vibethinker.errors import PreemptedError
from vibethinker.plan import build
from vibethinker.steps import StepContext
from vibethinker.training.signal import run
from vibethinker.workload import tokens

pytestmark = pytest.mark.slow

BATCH, GROUP, BUDGET = OBJECTIVE["batch_size"], OBJECTIVE["group_size"], 6 * OBJECTIVE["batch_size"]


@pytest.fixture
def stage(new_step, taught_folder, data) -> Callable[..., StepContext]:  # noqa: F811
    """A function budget, settings of the objective → a fresh context of a stage that saves after each update."""

    def new(rollouts: int | None = BUDGET, validation: dict | None = None, **objective) -> StepContext:
        preemption.install()
        settings = {
            "seed": 1, "deterministic": True, "domains": ["algebra"], "prompts": {}, "verification": {},
            "base_model": {}, "stage": STAGE | {"rollouts": rollouts}, "objective": OBJECTIVE | objective,
        }  # fmt: skip
        if validation is not None:
            settings["validation"] = validation
        return new_step(settings, {"model": taught_folder, "data": data}, checkpoints={"seconds": 0, "keep": 9})

    return new


def updates(context: StepContext) -> list[int]:
    """The sizes of the generations' groups, an update each."""
    rows = [json.loads(line) for line in (context.output / "metrics.jsonl").read_text().splitlines()]
    return [GROUP * sum(row["p_histogram"]) for row in rows if "p_histogram" in row]


@pytest.mark.parametrize("refill", [1, 3])
def test_refills_count_and_the_rollouts_are_exactly_as_many(stage, refill: int) -> None:
    context = stage(refill=refill)
    found = run(context)
    sizes = updates(context)
    assert found["refilled"] > 0
    assert found["rollouts"] == sum(sizes) == BUDGET
    assert len(sizes) < STAGE["steps"]
    assert all(size >= BATCH for size in sizes[:-1])


def test_without_refills_as_many_rollouts_as_the_steps_have_change_nothing(stage) -> None:
    bounded, plain = stage(), stage(None)
    assert run(bounded)["rollouts"] == run(plain)["rollouts"] == BUDGET
    assert files(bounded.output) == files(plain.output)


def test_several_updates_of_a_last_batch_that_is_not_whole(stage) -> None:
    context = stage(refill=3, updates=4)
    assert run(context)["rollouts"] == BUDGET
    assert updates(context)[-1] > 0


def test_a_stage_stopped_after_its_last_update_trains_no_further(stage) -> None:
    whole, context = stage(refill=3), stage(refill=3)
    run(whole)
    last = len(updates(whole))
    with pytest.raises(PreemptedError):
        run(replace(context, emit=Fragile(last, ask)))
    context = restarted(context)
    assert run(context)["rollouts"] == BUDGET
    assert trained(context.emit) == []
    assert files(context.output) == files(whole.output)


def test_the_last_update_is_measured_and_published(stage) -> None:
    context = stage(refill=3, validation={"every": 100, "samples": 2, "problems": 6})
    found, last = run(context), len(updates(context))
    assert last < STAGE["steps"]
    assert found["selected_update"] == last
    assert "validation/last" in found


def test_a_plan_counts_what_a_stage_samples_and_only_such_a_one_has_another_fingerprint(tmp_path) -> None:
    def planned(*settings: str):
        config = load("tiny", overrides=settings, environ={})
        step = build(config, tmp_path)["signal-1"]
        return step.fingerprint, tokens(config, step)[1]

    plain, bounded = planned(), planned("signal.stages.0.rollouts=2560")
    assert planned("signal.stages.0.rollouts=null") == plain
    assert bounded[0] != plain[0]
    assert bounded[1] == plain[1] // 7  # 10 of 70 batches
    refilled = planned("signal.stages.0.rollouts=17920", "signal.objective.refill=3")
    assert refilled[1] == plain[1]
