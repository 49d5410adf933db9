"""Log-probabilities of given tokens without the logits of a whole sequence in memory.

The logits of 16k tokens over a vocabulary of 152k are 5 GB in bfloat16 and 10 GB in float32; here they exist for a few
thousand tokens at a time. Two ways, by what is known beforehand:

- `token_logprobs` gives each token's log-probability (and entropy), for any loss; the backward pass computes the logits
  again;
- `weighted_nll` is a loss whose weight a token is known, as in supervised training; gradients are made in the forward
  pass, while the logits are there.

Both equal `log_softmax(hidden @ weight.T / temperature)` up to rounding: products in the hidden states' type, sums in
float32. On a GPU what is done to the logits is compiled into one pass each.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vibethinker.footprint import CHUNK_ROWS

ROWS = CHUNK_ROWS  # tokens whose logits exist at once
IGNORED = -100


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The log-probability of each target and the entropy of its distribution, in nats.

    Args:
        hidden: shape (tokens, features), the output of the last block after its norm.
        weight: shape (vocabulary, features), of the output projection, which must have no bias.
        targets: shape (tokens,).
        temperature: divides the logits.

    Returns:
        Two of shape (tokens,), float32; only the first one has a gradient.
    """
    return _TokenLogprobs.apply(hidden, weight, targets, 1 / temperature)


def weighted_nll(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """−Σ weights · log p(targets), and how many targets were the likeliest token; shapes as in `token_logprobs`."""
    return _WeightedNll.apply(hidden, weight, targets, weights)


def _statistics(logits: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of rows of logits: ln Σ exp, the target's logit, the entropy, the highest logit."""
    x = logits.float() * scale
    highest = x.amax(-1, keepdim=True)
    powers = torch.exp(x - highest)
    total = powers.sum(-1)
    normalizer = highest.squeeze(-1) + torch.log(total)
    entropy = normalizer - (powers * x).sum(-1) / total
    return normalizer, x.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy, highest.squeeze(-1)


def _slope(logits: Tensor, targets: Tensor, normalizer: Tensor, weights: Tensor, scale: float) -> Tensor:
    """d(Σ weights · log p)/d logits, in the logits' type."""
    probabilities = torch.exp(logits.float() * scale - normalizer.unsqueeze(-1))
    columns = torch.arange(logits.shape[-1], device=logits.device)
    hit = columns.unsqueeze(0) == targets.unsqueeze(-1)
    return ((hit.float() - probabilities) * (weights * scale).unsqueeze(-1)).to(logits.dtype)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _fast(function: Callable[..., Any], like: Tensor) -> Callable[..., Any]:
    return _compiled(function) if like.is_cuda else function


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        dtype = _compute_dtype(hidden)
        projection = weight.to(dtype)
        statistics = _fast(_statistics, hidden)
        found = [
            statistics(hidden[rows].to(dtype) @ projection.t(), targets[rows], scale) for rows in _chunks(len(hidden))
        ]
        normalizer, chosen, entropy, _ = (torch.cat(parts) for parts in zip(*found, strict=True))
        ctx.save_for_backward(hidden, weight, targets, normalizer)
        ctx.scale, ctx.dtype = scale, dtype
        ctx.mark_non_differentiable(entropy)
        return chosen - normalizer, entropy

    @staticmethod
    def backward(ctx: Any, slopes: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden, weight, targets, normalizer = ctx.saved_tensors
        projection = weight.to(ctx.dtype)
        gradients = _Gradients(hidden, weight, ctx.needs_input_grad)
        slope = _fast(_slope, hidden)
        for rows in _chunks(len(hidden)):
            states = hidden[rows].to(ctx.dtype)
            logits = states @ projection.t()
            gradients.add(
                rows, slope(logits, targets[rows], normalizer[rows], slopes[rows], ctx.scale), states, projection
            )
        return gradients.hidden, gradients.weight, None, None


class _WeightedNll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        dtype = _compute_dtype(hidden)
        projection = weight.to(dtype)
        gradients = _Gradients(hidden, weight, ctx.needs_input_grad)
        statistics, slope = _fast(_statistics, hidden), _fast(_slope, hidden)
        loss = torch.zeros((), device=hidden.device)
        right = torch.zeros((), device=hidden.device)
        for rows in _chunks(len(hidden)):
            states = hidden[rows].to(dtype)
            logits = states @ projection.t()
            normalizer, chosen, _, highest = statistics(logits, targets[rows], 1.0)
            loss -= (weights[rows] * (chosen - normalizer)).sum()
            right += (chosen >= highest).sum()
            gradients.add(rows, slope(logits, targets[rows], normalizer, -weights[rows], 1.0), states, projection)
        ctx.gradients = gradients
        ctx.mark_non_differentiable(right)
        return loss, right

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        found = ctx.gradients
        hidden, weight = (None if g is None else g * slope for g in (found.hidden, found.weight))
        return hidden, weight, None, None


class _Gradients:
    """Of hidden states and projection, gathered chunk by chunk."""

    def __init__(self, hidden: Tensor, weight: Tensor, needed: tuple[bool, ...]) -> None:
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if needed[1] else None

    def add(self, rows: slice, slopes: Tensor, states: Tensor, projection: Tensor) -> None:
        if self.hidden is not None:
            self.hidden[rows] = slopes @ projection
        if self.weight is not None:
            self.weight += slopes.t() @ states


def _chunks(count: int) -> list[slice]:
    return [slice(start, min(start + ROWS, count)) for start in range(0, max(count, 1), ROWS)]
