"""MGPO's formulae [1.5B], as functions of tensors. docs/recipe.md has them with their sources.

A group is the G rollouts of one prompt; tensors of one value a rollout have shape (groups, G). A verdict is 1
(right), 0 (wrong) or NaN: a rollout that the verifier failed on, or that is left out on purpose. NaN verdicts
count in nothing here.
"""

from __future__ import annotations

import torch
from torch import Tensor

P0 = 0.5


def accuracy(verdicts: Tensor) -> Tensor:
    """p, the share of right rollouts in each group.

    Args:
        verdicts: shape (groups, G), the raw verdicts, never a shaped reward.

    Returns:
        Shape (groups,); NaN for a group without any verdict.
    """
    return torch.nanmean(verdicts, dim=1)


def divergence(p: Tensor, p0: float = P0) -> Tensor:
    """D = p·ln(p/p0) + (1−p)·ln((1−p)/(1−p0)) in nats, with 0·ln 0 = 0. [1.5B]"""
    return torch.xlogy(p, p / p0) + torch.xlogy(1 - p, (1 - p) / (1 - p0))


def weight(p: Tensor, lam: float) -> Tensor:
    """w = exp(−λ·D): 1 at p = ½, 2^(−λ) at p = 0 and p = 1; λ = 0 gives 1 everywhere. [1.5B]"""
    return torch.exp(-lam * divergence(p))


def modulate(advantages: Tensor, verdicts: Tensor, lam: float) -> Tensor:
    """A' = w·A. [1.5B] The weight multiplies advantages, since on rewards the group's own scale would cancel
    it.

    Args:
        advantages: A, shape (groups, G).
        verdicts: shape (groups, G).
        lam: λ.

    Returns:
        Shape (groups, G); a group without any verdict keeps its advantages, which are 0.
    """
    w = torch.nan_to_num(weight(accuracy(verdicts), lam), nan=1.0)
    return advantages * w.unsqueeze(1)


def long2short(rewards: Tensor, lengths: Tensor, verdicts: Tensor, scale: float) -> Tensor:
    """Long2Short [3B]: among a group's right rollouts the shorter ones earn more, and their mean stays.

    r'ᵢ = rᵢ + scale·(sᵢ − s̄)/max|sⱼ − s̄| with sᵢ = 1/Lᵢ over the right rollouts; the others' rewards, and
    groups with fewer than two right ones or with equal lengths, stay as they are.

    Args:
        rewards: r, shape (groups, G).
        lengths: L in tokens, at least 1, shape (groups, G).
        verdicts: shape (groups, G).
        scale: 0.2 in the paper.
    """
    right = verdicts == 1
    count = right.sum(dim=1, keepdim=True)
    shortness = torch.where(right, 1.0 / lengths, 0.0)
    mean = shortness.sum(dim=1, keepdim=True) / count.clamp(min=1)
    distance = torch.where(right, shortness - mean, 0.0)
    largest = distance.abs().amax(dim=1, keepdim=True)
    # Equal lengths leave distances of rounding size, which must not be blown up to the full scale.
    shaped = (count >= 2) & (largest > 1e-6 * mean)
    return rewards + torch.where(shaped, scale * distance / torch.where(shaped, largest, 1.0), 0.0)


def histogram(p: Tensor, size: int) -> list[int]:
    """How many groups of `size` rollouts had 0, 1, … `size` right ones; of a group of which rollouts were left out, the
    share of the others is taken for that of all. NaN counts in none."""
    right = torch.round(p[~torch.isnan(p)].cpu() * size).long()
    return torch.bincount(right, minlength=size + 1).tolist()
