"""Which rows go through the model together: micro-batches bounded by tokens, whose gradients add up to one update.

A trainer gets the whole batch of an update at once and splits it here. Where sequences are laid end to end, a
micro-batch is as many rows as its tokens allow; where they are padded, it is a rectangle of at most as many tokens. A
longer row has one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor
from transformers import Trainer

from vibethinker.training import processes

Part = TypeVar("Part")


def split(lengths: Sequence[int], most: int, *, padded: bool, least: int = 1) -> list[list[int]]:
    """The rows of each micro-batch by their numbers, the longest first; the given order where one holds all.

    Args:
        lengths: of the rows, in tokens.
        most: tokens of a micro-batch.
        padded: whether rows are padded to the longest of their micro-batch.
        least: how many micro-batches there must be; some are empty where there are fewer rows.
    """
    if least == 1 and (len(lengths) * max(lengths) if padded else sum(lengths)) <= most:
        return [list(range(len(lengths)))]
    parts: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        together = [*parts[-1], row] if parts else [row]
        taken = lengths[together[0]] * len(together) if padded else sum(lengths[i] for i in together)
        if not parts or taken > most:
            parts.append([row])
        else:
            parts[-1].append(row)
    while len(parts) < least:
        largest = max(range(len(parts)), key=lambda part: len(parts[part]))
        half = len(parts[largest]) // 2
        parts[largest : largest + 1] = [parts[largest][:half], parts[largest][half:]]
    return parts


def accumulate(
    trainer: Trainer, model: torch.nn.Module, parts: Sequence[Part], loss: Callable[[Part], Tensor]
) -> Tensor:
    """Run each part's forward and backward pass and return the sum of the losses. Processes that hold the whole model
    exchange gradients with the last part alone; those that hold parts of it would have to keep whole gradients."""
    total = torch.zeros((), device=trainer.accelerator.device)
    for number, part in enumerate(parts, start=1):
        exchanging = number == len(parts) or trainer.is_fsdp_enabled
        alone = nullcontext() if exchanging else trainer.accelerator.no_sync(model)
        with alone:
            with trainer.compute_loss_context_manager():
                one = loss(part)
            trainer.accelerator.backward(one)
        total += one.detach().to(total)
    return total


def split_alike(lengths: Sequence[int], most: int, *, padded: bool) -> list[list[int]]:
    """`split` into as many micro-batches as the process that has the most: where weights are sharded, each must run as
    many passes as the others."""
    parts = split(lengths, most, padded=padded)
    least = agreed(len(parts))
    return parts if len(parts) == least else split(lengths, most, padded=padded, least=least)


def agreed(value: int) -> int:
    """The largest value of all processes."""
    return max(processes.gathered([value]))
