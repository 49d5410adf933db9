"""Attention of a single query token over cached keys, without copying them.

With a padding mask, transformers' SDPA path repeats keys and values for every query head of a group and
leaves the fused kernel; for one query token that copy costs more than the attention itself. Here the query
heads of a group are the rows of one batched product instead. Prefill and everything unusual still go through
SDPA.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "vibethinker_grouped"


def _grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What `sdpa_attention_forward` computes; query (b, heads, q, d), key and value (b, kv heads, length,
    d)."""
    batch, heads, length, width = query.shape
    boolean = attention_mask is None or attention_mask.dtype == torch.bool
    if length != 1 or position_bias is not None or not boolean:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, position_bias=position_bias, **kwargs
        )
    groups = key.shape[1]
    query = query.reshape(batch, groups, heads // groups, width) * (width**-0.5 if scaling is None else scaling)
    scores = torch.matmul(query, key.transpose(-1, -2))
    if attention_mask is not None:  # (batch, 1, 1, length)
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(shares, value).reshape(batch, 1, heads, value.shape[-1]), None


AttentionInterface.register(_NAME, _grouped_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)


@contextmanager
def grouped_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use it for a while where the model runs on SDPA; any other implementation stays as it is."""
    if model.config._attn_implementation != "sdpa" or not model._supports_attention_backend:
        yield
        return
    model.set_attn_implementation(_NAME)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")
