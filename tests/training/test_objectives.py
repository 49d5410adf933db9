"""Each objective against TRL's own, and what each setting changes and doesn't."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from trl.rewards import get_soft_overlong_punishment

from tests.training.test_trainer import (  # noqa: F401
    BATCH,
    GROUP,
    all_right,
    generation,
    new_trainer,
    problems,
    tokenizer,
    trained,
    verdicts_of,
)
from vibethinker.training.objectives import overlong

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).parents[2] / "docs" / "objectives.md"
METHODS = yaml.safe_load(DOCUMENT.read_text().split("```yaml\n")[1].split("```")[0])
# The same in TRL's words, which are its papers'. MGPO isn't among them.
TRLS = {
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "gspo": {
        "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4
    },
    "grpo_kl": {"loss_type": "grpo", "beta": 0.5},
}  # fmt: skip


def small(method: str) -> dict:
    """A documented method for two updates of a few short rollouts, none of which is replaced."""
    chosen = dict(METHODS[method]) | {"updates": 2, "refill": 0}
    chosen["lambda_"] = chosen.pop("lambda")
    if "overlong" in chosen:
        chosen["overlong"] = 16  # of 24; and a power of two, whose sixteenths are exact in any precision
    if "beta" in chosen:
        chosen["beta"] = 0.5
    return chosen


@pytest.mark.parametrize("method", TRLS)
def test_each_documented_method_is_trls_own_bit_for_bit(new_trainer, method):  # noqa: F811
    ours, stock = (trained(new_trainer(steps=1, stock=words, **small(method))) for words in (None, TRLS[method]))
    assert all(torch.equal(ours[name], stock[name]) for name in stock)


@pytest.mark.parametrize("method", ["mgpo", "dr_grpo", "dapo", "gspo"])
def test_packing_changes_nothing_but_rounding(new_trainer, method):  # noqa: F811
    whole, parts = (
        trained(new_trainer(steps=1, **small(method), **more)) for more in ({}, {"micro": 64, "end_to_end": True})
    )
    start = new_trainer().model.state_dict()
    moved = max((whole[name] - start[name]).abs().max() for name in whole)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=float(moved) / 50, rtol=0)


def test_on_policy_clip_ranges_change_no_bit_and_the_ratio_only_rounding(new_trainer):  # noqa: F811
    plain = trained(new_trainer(steps=1))
    clipped = trained(new_trainer(steps=1, epsilon_low=1e-4, epsilon_high=1e-4))
    sequence = trained(new_trainer(steps=1, ratio="sequence"))
    start = new_trainer().model.state_dict()
    for name, tensor in plain.items():
        assert torch.equal(clipped[name], tensor)
        moved = float((tensor - start[name]).abs().max())
        torch.testing.assert_close(sequence[name], tensor, atol=moved / 50, rtol=0)


def test_off_policy_clip_ranges_and_the_ratio_act(new_trainer):  # noqa: F811
    plain = trained(new_trainer(steps=1, updates=2))
    for setting in ({"epsilon_low": 1e-4, "epsilon_high": 1e-4}, {"ratio": "sequence"}):
        other = trained(new_trainer(steps=1, updates=2, **setting))
        apart = max((other[name] - plain[name]).abs().max() for name in plain)
        assert apart > 1e-4  # of a learning rate of 1e-3


def test_advantages_that_are_not_scaled_are_rewards_less_their_mean(new_trainer):  # noqa: F811
    trainer = new_trainer(lambda_=0.0, scale_rewards="none")
    found = generation(trainer)["advantages"].view(-1, GROUP)
    v = verdicts_of(trainer)
    torch.testing.assert_close(found, v - v.mean(dim=1, keepdim=True))


def test_the_punishment_is_trls_at_every_length():
    lengths = torch.arange(1, 21)
    theirs = torch.tensor(get_soft_overlong_punishment(20, 8)([[1] * n for n in lengths.tolist()]))
    torch.testing.assert_close(overlong(lengths, 20, 8, 1.0), -theirs)
    assert overlong(lengths, 20, 8, 0.5)[-1] == 0.5


def test_half_the_punishment_between_0_and_1_is_dapos_between_minus_1_and_1():
    right, lengths = torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]), torch.tensor([20, 20, 15, 3, 9])

    def normalised(rewards):
        return (rewards - rewards.mean()) / rewards.std()

    theirs = 2 * right - 1 - overlong(lengths, 20, 8, 1.0)
    torch.testing.assert_close(normalised(right - overlong(lengths, 20, 8, 0.5)), normalised(theirs))


def test_groups_of_one_verdict_are_replaced_though_their_lengths_are_rewarded(new_trainer):  # noqa: F811
    trainer = new_trainer(all_right, refill=1, spare=range(4, 8), overlong=16)
    trainer.rollout_func._max_tokens = 60  # long enough that none is truncated
    assert (generation(trainer)["advantages"] != 0).any()
    assert trainer.totals["refilled"] == BATCH // GROUP
    assert trainer.row["zero_variance"] == 1
