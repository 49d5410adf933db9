"""A training that diverges leaves its evidence, and goes back where it may."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import Trainer

from tests.training.stopping import CASES, OBJECTIVE, SFT, STAGE, Fragile, Killed, die, files, restarted, trained
from tests.training.test_resuming import listening  # noqa: F401 (a fixture)
from vibethinker import models
from vibethinker.errors import DivergedError, RolledBackError
from vibethinker.training import sft, signal, trainer
from vibethinker.training.rollouts import RolloutGrading

pytestmark = pytest.mark.slow

COMMON = {
    "seed": 1, "deterministic": True, "domains": ["algebra"], "prompts": {}, "verification": {}, "base_model": {},
}  # fmt: skip


@pytest.fixture
def new(new_step, taught_folder, data_folder):
    """A function step's settings, **settings of the divergence → its context, which saves after each update."""

    def make(own, *, checkpoints=None, **divergence):
        inputs = {"base": taught_folder, "model": taught_folder, "data": data_folder}
        return new_step(COMMON | own, inputs, checkpoints={"seconds": 0} | (checkpoints or {}), divergence=divergence)

    return make


@pytest.fixture
def break_after(monkeypatch):
    """A function update → gradients of the next one are NaN, as long as no learning rate was lowered."""

    def arm(update, rate=1.0):
        for module in (sft, trainer):

            def broken(one, model, *rest, accumulate=module.accumulate):
                total = accumulate(one, model, *rest)
                if one.state.global_step == update and one.rate >= rate:
                    for parameter in model.parameters():
                        if parameter.grad is not None:
                            parameter.grad.fill_(torch.nan)
                return total

            monkeypatch.setattr(module, "accumulate", broken)

    return arm


def evidence(context, name: str, file: str = "divergence"):
    return json.loads((context.checkpoints / "evidence" / name / f"{file}.json").read_text())


def saved(context) -> list[int]:
    return sorted(int(path.name) for path in (context.checkpoints / "updates").iterdir())


@pytest.mark.parametrize("case", ["base", *(pytest.param(one, marks=pytest.mark.long) for one in ("sft", "signal"))])
def test_a_rollback_is_a_run_from_that_checkpoint_at_the_smaller_rate_killed_or_not(
    new, break_after, monkeypatch, case
):
    module, own = CASES[case]
    run = models.run_base if module is models else module.run
    # Killed before update 4 is saved, and gone on with after all rates were halved by hand.
    halved = new(own)
    with pytest.raises(Killed):
        run(replace(halved, emit=Fragile(4, die)))
    load = Trainer._load_optimizer_and_scheduler

    def halves(one, checkpoint):
        load(one, checkpoint)
        for name in ("base_lrs", "_last_lr"):  # the second is only what is logged next
            setattr(one.lr_scheduler, name, [rate / 2 for rate in getattr(one.lr_scheduler, name)])
        for group in one.optimizer.param_groups:
            group["lr"] /= 2

    halved = restarted(halved)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_load_optimizer_and_scheduler", halves)
        run(halved)

    break_after(4)
    for killed in (False, True):
        context = new(own, rollbacks=1)
        with pytest.raises(RolledBackError, match="gradient norm became nan at update 5"):
            run(context)
        assert any("rollback 1 of 1" in text for text in context.emit.warnings)
        assert (5, {"rollbacks": 1, "rollback_rate": 0.5}) in context.emit.rows
        assert saved(context) == [3, 4]
        assert evidence(context, "update-5")["goes_back_to"] == 3
        if killed:
            context = replace(restarted(context), emit=Fragile(5, die))
            with pytest.raises(Killed):
                run(context)
            assert saved(context) == [3, 4]  # another 4 than before
        context = restarted(context)
        metrics = run(context)
        assert trained(context.emit) == ([5, 6] if killed else [4, 5, 6])
        assert files(context.output) == files(halved.output)
        assert (metrics["rollbacks"], metrics["rollback_rate"]) == (1, 0.5)
        assert metrics["rolled_back"] == [{"sign": "not_finite", "update": 5, "healthy": 3, "rate": 0.5}]


def test_without_a_healthy_checkpoint_it_starts_over_at_the_smaller_rate(new, break_after):
    slow = {name: SFT.get(name, 8e-8) / 2 for name in ("learning_rate", "final_learning_rate")}
    whole = new({"sft": SFT | slow})
    sft.run(whole)
    break_after(1)  # update 2 was computed by weights that update 1 made
    context = new({"sft": SFT}, rollbacks=1)
    with pytest.raises(RolledBackError):
        sft.run(context)
    context = restarted(context)
    sft.run(context)
    assert trained(context.emit) == [1, 2, 3, 4, 5, 6]
    assert files(context.output) == files(whole.output)


def test_after_the_last_rollback_it_halts_and_each_has_its_evidence(new, break_after):
    break_after(4, rate=0.0)
    context = new({"sft": SFT}, rollbacks=2, rollback_rate=0.25)
    for _ in range(2):
        with pytest.raises(RolledBackError):
            sft.run(context)
        context = restarted(context)
    with pytest.raises(DivergedError, match="further than 2 rollbacks did"):
        sft.run(context)
    kept = sorted(path.name for path in (context.checkpoints / "evidence").iterdir())
    assert kept == ["update-5", "update-5-rollback-1", "update-5-rollback-2"]
    last = evidence(context, kept[-1])
    assert [one["rate"] for one in last["rollbacks_before"]] == [0.25, 0.25]
    rates = [row["learning_rate"] for row in evidence(context, kept[-1], "metrics")]
    first = [row["learning_rate"] for row in evidence(context, kept[0], "metrics")]
    assert rates[:3] == first[:3]  # up to the checkpoint of update 3, and from there at 1/16
    assert rates[4] == first[4] / 16


def test_with_an_interval_it_goes_back_to_one_that_does_not_depend_on_time(new, break_after):
    break_after(4)
    context = new({"sft": SFT}, checkpoints={"every": 2}, rollbacks=1)
    with pytest.raises(RolledBackError):
        sft.run(context)
    assert saved(context) == [2, 3, 4]
    context = restarted(context)
    sft.run(context)
    assert trained(context.emit) == [3, 4, 5, 6]


@pytest.fixture
def judge(monkeypatch):
    """A function verdict of an update's number → every rollout that ends by itself gets it."""

    def by(verdict):
        def graded(self, texts, numbers):
            self.updates = getattr(self, "updates", 0) + 1
            self._start()
            return [verdict(self.updates)] * len(texts)

        monkeypatch.setattr(RolloutGrading, "__call__", graded)

    return by


def test_a_reward_that_falls_to_0_halts_with_its_rollouts_and_the_last_healthy_checkpoint(new, judge):
    judge(lambda update: update <= 3)
    context = new({"stage": STAGE | {"steps": 8}, "objective": OBJECTIVE}, all_wrong=3)
    with pytest.raises(DivergedError) as caught:
        signal.run(context)
    assert "No rollout has been right for 3 updates" in str(caught.value)
    assert "lower the learning rate" in str(caught.value)
    assert "execution.divergence.rollbacks" in str(caught.value)
    assert str(context.checkpoints / "evidence" / "update-6") in str(caught.value)
    assert 2 in saved(context)  # beside the two newest
    summary = evidence(context, "update-6")
    assert (summary["sign"], summary["since"], summary["last_healthy_update"]) == ("all_wrong", 4, 2)
    assert summary["settings"]["stage"]["name"] == "sums"
    assert (summary["seed"], summary["deterministic"]) == (1, True)
    assert summary["versions"]["torch"]
    assert summary["environment"]["deterministic_algorithms"] is True
    assert [row["step"] for row in evidence(context, "update-6", "metrics")] == [1, 2, 3, 4, 5, 6]
    rollouts = evidence(context, "update-6", "rollouts")
    assert len(rollouts) == 16
    assert all(one["verdict"] == 0 and one["tokens"] > 0 and "?" in one["prompt"] for one in rollouts)


def test_a_reward_that_stays_at_1_halts_and_does_not_go_back(new, judge):
    judge(lambda update: True)
    stage, objective = STAGE | {"steps": 8}, OBJECTIVE | {"truncated": "mask"}
    context = new({"stage": stage, "objective": objective}, all_right=3, rollbacks=1)
    with pytest.raises(DivergedError, match=r"right for 3 updates.*give harder problems"):
        signal.run(context)


def test_a_full_disk_does_not_hide_the_divergence(new, break_after, monkeypatch):
    from vibethinker.training import halting

    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(halting, "write_json", full)
    break_after(4)
    with pytest.raises(DivergedError, match=r"update 5 \(its evidence could not be saved: No space left on device\)"):
        sft.run(new({"sft": SFT}))


def test_hostile_text_and_numbers_that_json_lacks_are_kept_as_text():
    from vibethinker.training.halting import _as_json

    kept = _as_json({"a": float("nan"), "b": [float("inf"), "\ud800<script>"], "c": (1, None, True)})
    assert kept == {"a": "nan", "b": ["inf", "?<script>"], "c": [1, None, True]}
