"""Causal attention over sequences laid end to end, without padding and without a mask.

transformers has packed sequences attend to themselves alone by a mask of all pairs of positions, or by the package
flash-attn, whose wheels fit few environments. torch's own `varlen_attn` runs the same kernel. Where it can't (a CPU, a
cache of keys, float32, windows, a head wider than 256) everything goes through SDPA as before.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "vibethinker_varlen"
# Fewer key heads than query heads always work, but later versions of torch want to be told.
_GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def use_varlen(model: PreTrainedModel, dtype: torch.dtype) -> bool:
    """Have a model on a GPU that computes in `dtype` attend by the lengths of `boundaries`; False where it can't."""
    if model.device.type != "cuda" or not model._supports_attention_backend or not _is_plain(model):
        return False
    if dtype not in (torch.bfloat16, torch.float16) or torch.cuda.get_device_capability(model.device) < (8, 0):
        return False
    model.set_attn_implementation(NAME)
    return True


def boundaries(lengths: list[int], device: torch.device) -> dict[str, Any]:
    """What a forward pass over sequences of these lengths, laid end to end in one row, takes beside the ids."""
    sizes = torch.tensor([0, *lengths])
    ends = sizes.cumsum(0)
    starts = ends[:-1].repeat_interleave(sizes[1:])
    positions = (torch.arange(len(starts)) - starts).unsqueeze(0)
    ends = ends.to(torch.int32)
    if device.type == "cuda":  # without waiting for what the GPU still does
        ends, positions = (x.pin_memory().to(device, non_blocking=True) for x in (ends, positions))
    longest = max(lengths)
    return {
        "position_ids": positions,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _is_plain(model: PreTrainedModel) -> bool:
    """Whether attention is causal and nothing else: no windows, sinks, caps or dropout, and no head wider than 256."""
    config = model.config.get_text_config()
    windows = "sliding_attention" in (getattr(config, "layer_types", None) or ()) or (
        getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None) is not None
    )
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    special = ("attn_logit_softcapping", "attention_dropout", "attn_logit_softcap")
    sinks = any(name.endswith("sinks") for name, _ in model.named_parameters())
    return not windows and not sinks and head <= 256 and not any(getattr(config, name, None) for name in special)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Query (1, heads, tokens, d), key and value (1, kv heads, tokens, d) → (1, tokens, heads, d)."""
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    half = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else value.dtype
    q, k, v = (x.squeeze(0).transpose(0, 1).to(half) for x in (query, key, value))
    lengths = cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q
    attended = varlen_attn(q, k, v, *lengths, scale=scaling, window_size=(-1, 0), **_GROUPED)
    return attended.unsqueeze(0), None


def _mask(*args: Any, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor | None:
    """None for sequences end to end, which come without a mask; else as SDPA has it."""
    return None if attention_mask is None else sdpa_mask(*args, attention_mask=attention_mask, **kwargs)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, _mask)
