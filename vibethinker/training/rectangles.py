"""TRL's batch of rollouts: some of its rows, cut to what they need, or with other rows in their place.

Prompts are padded on the left, completions on the right.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from trl.trainer.utils import pad

from vibethinker.training.rollouts import Batch

# What fills the ids is the pad token, else 0.
_PROMPT, _COMPLETION = ("prompt_ids", "prompt_mask"), (
    "completion_ids", "completion_mask", "ref_per_token_logps", "old_per_token_logps", "sampling_per_token_logps",
    "tool_mask",
)  # fmt: skip


def cut(batch: Batch, rows: Tensor) -> Batch:
    """These rows, cut to their longest prompt and completion; the batch itself where they are all."""
    if len(rows) == len(batch["advantages"]):
        return batch if torch.equal(rows, torch.arange(len(rows), device=rows.device)) else rows_of(batch, rows)
    part = rows_of(batch, rows)
    prompt = int(part["prompt_mask"].sum(dim=1).max())
    completion = int(part["completion_mask"].sum(dim=1).max())
    for name in _PROMPT:
        part[name] = part[name][:, part[name].shape[1] - prompt :]
    for name in _COMPLETION:
        if name in part:
            part[name] = part[name][:, :completion]
    return part


def rows_of(batch: Batch, rows: Tensor) -> Batch:
    """These rows, as wide as they are."""
    return {name: value[rows] if isinstance(value, Tensor) and value.dim() else value for name, value in batch.items()}


def replaced(batch: Batch, groups: Sequence[int], more: Batch, size: int, pad_token: int) -> Batch:
    """The batch with these groups of `size` rows replaced by the first ones of `more`."""
    count = len(batch["advantages"])
    sources = list(range(count))
    for place, group in enumerate(groups):
        sources[group * size : (group + 1) * size] = range(count + place * size, count + (place + 1) * size)
    fill = {"prompt_ids": pad_token, "completion_ids": pad_token}
    merged = dict(batch)
    for name in (*_PROMPT, *_COMPLETION):
        if name in batch or name in more:
            # Only `tool_mask` can be in one of them alone: nothing is left out of the other.
            both = [one[name] if name in one else one["completion_mask"].clone() for one in (batch, more)]
            side = "left" if name in _PROMPT else "right"
            rows = [row for one in both for row in one]
            merged[name] = pad(rows, padding_value=fill.get(name, 0), padding_side=side)[sources]
    merged["advantages"] = torch.cat([batch["advantages"], more["advantages"]])[sources]
    return merged
