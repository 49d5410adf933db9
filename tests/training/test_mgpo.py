"""MGPO's weights and Long2Short's rewards, against the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch

from vibethinker.training import mgpo

LAMBDAS = (0.0, 0.5, 1.0, 4.0)
SHARES = torch.linspace(0, 1, 9)
NAN = float("nan")
# Groups of G = 4: mixed, all right, all wrong, one rollout left out, all left out.
VERDICTS = torch.tensor([[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [1, NAN, 0, 0], [NAN, NAN, NAN, NAN]])


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Normalised within the group, 0 for what is left out."""
    mean = rewards.nanmean(dim=1, keepdim=True)
    std = ((rewards - mean) ** 2).nanmean(dim=1, keepdim=True).sqrt()
    return torch.nan_to_num((rewards - mean) / (std + 1e-4))


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_weight_is_1_where_half_the_group_is_right(lam):
    assert mgpo.weight(torch.tensor(0.5), lam) == 1


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_the_weight_is_2_to_minus_lambda_where_all_or_none_are_right(lam, p):
    assert mgpo.weight(torch.tensor(p), lam).item() == pytest.approx(2**-lam, rel=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("size", range(2, 17))
def test_the_curves_are_the_papers_at_every_p_that_a_group_can_have(size, lam):
    """p, w and A' of groups with 0 to all rollouts right, against the formulae in double precision."""
    verdicts = torch.tril(torch.ones(size + 1, size), diagonal=-1)
    p, weighted = mgpo.accuracy(verdicts), mgpo.modulate(advantages(verdicts), verdicts, lam)
    for right in range(size + 1):
        share = right / size
        entropy = -sum(part * math.log(part) for part in (share, 1 - share) if part)
        w = math.exp(-lam * (math.log(2) - entropy))  # D is what a fair coin's entropy is above the group's
        deviation = math.sqrt(share * (1 - share)) + 1e-4
        assert p[right].item() == pytest.approx(share)
        assert mgpo.weight(p[right], lam).item() == pytest.approx(w, rel=1e-5)
        expected = [w * (1 - share) / deviation] * right + [-w * share / deviation] * (size - right)
        assert weighted[right].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_weight_is_symmetric_about_one_half(lam):
    torch.testing.assert_close(mgpo.weight(SHARES, lam), mgpo.weight(SHARES.flip(0), lam))


def test_the_weight_falls_with_the_distance_from_one_half():
    w = mgpo.weight(SHARES, 1.0)
    assert (w[:4] < w[1:5]).all()
    assert (w[5:] < w[4:-1]).all()


def test_lambda_0_weighs_nothing_bit_for_bit():
    assert torch.equal(mgpo.weight(SHARES, 0.0), torch.ones(9))
    a = advantages(VERDICTS)
    assert torch.equal(mgpo.modulate(a, VERDICTS, 0.0), a)


def test_the_divergence_is_that_of_two_coins():
    p, p0 = 0.3, 0.6
    expected = p * math.log(p / p0) + (1 - p) * math.log((1 - p) / (1 - p0))
    assert mgpo.divergence(torch.tensor(p), p0).item() == pytest.approx(expected, rel=1e-5)
    assert mgpo.divergence(torch.tensor(0.0)).item() == pytest.approx(math.log(2), rel=1e-6)


def test_the_accuracy_counts_only_those_with_a_verdict():
    p = mgpo.accuracy(VERDICTS)
    torch.testing.assert_close(p[:4], torch.tensor([0.5, 1.0, 0.0, 1 / 3]))
    assert p[4].isnan()


@pytest.mark.parametrize("lam", LAMBDAS)
def test_weighted_advantages_of_a_group_sum_to_0(lam):
    sums = mgpo.modulate(advantages(VERDICTS), VERDICTS, lam).sum(dim=1)
    torch.testing.assert_close(sums, torch.zeros(5), atol=1e-6, rtol=0)


def test_the_weight_multiplies_advantages_by_group():
    a = advantages(VERDICTS)
    weighted = mgpo.modulate(a, VERDICTS, 2.0)
    assert torch.equal(weighted[0], a[0])  # p = 1/2
    torch.testing.assert_close(weighted[3], a[3] * mgpo.weight(torch.tensor(1 / 3), 2.0))


def test_a_group_without_any_verdict_keeps_its_zeros():
    assert torch.equal(mgpo.modulate(advantages(VERDICTS), VERDICTS, 4.0)[4], torch.zeros(4))


def test_mgpo_at_lambda_1_is_within_10_percent_of_twice_dr_grpo_at_8_rollouts():
    """Known algebra: exp(-D)/std against 2, for each p that has a gradient."""
    for right in range(1, 8):
        p = torch.tensor(right / 8)
        std = (p * (1 - p) * 8 / 7).sqrt()
        assert (mgpo.weight(p, 1.0) / std).item() == pytest.approx(2, rel=0.1)


def test_long2short_rewards_the_shorter_right_rollouts_and_keeps_their_mean():
    verdicts = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    lengths = torch.tensor([[10, 20, 5, 40]])
    shaped = mgpo.long2short(verdicts, lengths, verdicts, 0.2)
    s = [1 / 10, 1 / 20, 1 / 40]
    mean = sum(s) / 3
    top = max(abs(x - mean) for x in s)
    expected = [1 + 0.2 * (x - mean) / top for x in s]
    torch.testing.assert_close(shaped, torch.tensor([[expected[0], expected[1], 0.0, expected[2]]]))
    assert shaped.sum().item() == pytest.approx(3)


@pytest.mark.parametrize(
    ("verdicts", "lengths"),
    [([0, 0, 0], [3, 4, 5]), ([1, 0, 0], [3, 4, 5]), ([1, 1, 1], [7, 7, 7]), ([1, 1, 0], [13, 13, 2])],
    ids=["none right", "one right", "equal lengths", "equal lengths of the right"],
)
def test_long2short_changes_nothing_without_two_right_rollouts_of_different_length(verdicts, lengths):
    verdicts = torch.tensor([verdicts], dtype=torch.float32)
    assert torch.equal(mgpo.long2short(verdicts, torch.tensor([lengths]), verdicts, 0.2), verdicts)


def test_long2short_passes_over_rollouts_without_a_verdict():
    verdicts = torch.tensor([[1.0, NAN, 1.0]])
    shaped = mgpo.long2short(verdicts, torch.tensor([[10, 1, 30]]), verdicts, 0.2)
    torch.testing.assert_close(shaped, torch.tensor([[1.2, NAN, 0.8]]), equal_nan=True)


def test_the_histogram_counts_groups_by_their_right_rollouts():
    p = torch.tensor([0.0, 1 / 6, 1 / 6, 5 / 6, 1.0, NAN])
    assert mgpo.histogram(p, 6) == [1, 2, 0, 0, 0, 1, 1]
    assert mgpo.histogram(torch.tensor([2 / 3]), 4) == [0, 0, 0, 1, 0]  # of three, since one was left out
