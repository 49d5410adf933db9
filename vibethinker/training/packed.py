"""Forward passes of a model in training over sequences laid end to end, without padding, masks or whole logits.

On a GPU a model is prepared once: its attention takes the sequences' lengths (`attention`), its blocks are compiled,
one graph for all of them and all lengths, and under autocast its residual stream is bfloat16, as it is in the engine
that samples. The output projection is told which positions count and computes from them, chunk by chunk, what the loss
needs (`logprobs`); it does so within the model's own forward pass, so that wrappers for several processes see an
ordinary one.

Unsloth's models have kernels of their own for all of that and are only told where each sequence ends (`unsloth_nll`).

Left out: models whose head has a bias or scales its logits, and CPUs, which lack the kernel: those train on padded
batches (see `prepare`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._inductor.config
from torch import Tensor
from transformers import PreTrainedModel

from vibethinker import hardware
from vibethinker.training import attention
from vibethinker.training.logprobs import IGNORED, token_logprobs, weighted_nll

Head = Callable[[Tensor, Tensor], Tensor]


def prepare(model: PreTrainedModel, dtype: torch.dtype, *, compiled: bool = True) -> bool:
    """Make a model ready for packed passes, in place; False where it can't be, and nothing was changed.

    Args:
        dtype: type of computation under autocast.
        compiled: compile its blocks; not where they are quantised, or also decode with a cache.
    """
    inner = plain(model)
    if not can_pack(inner) or not attention.use_varlen(inner, dtype):
        return False
    if dtype == torch.bfloat16:
        inner.get_input_embeddings().register_forward_hook(lambda module, ids, output: output.to(dtype))
    if compiled:
        # vLLM, where it has been imported, has torch compile with one process.
        torch._inductor.config.compile_threads = min(8, hardware.cores())
        for block in inner.model.layers:
            block.compile(dynamic=True)
    return True


def can_pack(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its head's product with the hidden states and nothing else."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    scaled = any(
        getattr(config, name, None) for name in ("final_logit_softcapping", "logit_scale", "output_multiplier")
    )
    blocks = getattr(getattr(model, "model", None), "layers", None)
    return isinstance(head, torch.nn.Linear) and head.bias is None and not scaled and blocks is not None


def plain(model: torch.nn.Module) -> PreTrainedModel:
    """The transformers model within adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def nll(
    model: torch.nn.Module, inner: PreTrainedModel, ids: Tensor, labels: Tensor, lengths: list[int], weight: float
) -> tuple[Tensor, Tensor]:
    """−weight · Σ log p over the tokens whose label counts.

    Args:
        model: what is called, wrappers of several processes included; `inner` is the model within.
        ids: of all sequences end to end, on the CPU, so that nothing waits for the GPU.
        labels: of the same shape; IGNORED where a token doesn't count, as the first one of a sequence never does.
        lengths: of the sequences.

    Returns:
        The loss, and how many of the tokens were the likeliest.
    """
    at = (labels != IGNORED).nonzero().squeeze(-1)
    targets = _sent(labels[at], inner.device)
    weights = torch.full(targets.shape, weight, device=inner.device)

    def head(hidden: Tensor, projection: Tensor) -> Tensor:
        return torch.stack(weighted_nll(hidden, projection, targets, weights))

    loss, right = _pass(model, inner, _sent(ids, inner.device), lengths, _sent(at - 1, inner.device), head)
    return loss, right


def unsloth_nll(
    model: torch.nn.Module, ids: Tensor, labels: Tensor, lengths: list[int], device: torch.device, weight: float
) -> Tensor:
    """The loss of `nll` by a model that Unsloth has loaded."""
    # It divides by the number of items, and shifts the labels itself.
    found = model(
        input_ids=_sent(ids, device).unsqueeze(0),
        position_ids=_sent(torch.cat([torch.arange(length) for length in lengths]), device).unsqueeze(0),
        packed_seq_lengths=_sent(torch.tensor(lengths, dtype=torch.int32), device),
        labels=_sent(labels, device).unsqueeze(0),
        num_items_in_batch=1,
        use_cache=False,
    )
    return found.loss * weight


def logprobs(
    model: torch.nn.Module, inner: PreTrainedModel, ids: Tensor, mask: Tensor, completion: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of completions in a padded rectangle, 0 where there is padding.

    Args:
        model, inner: see `nll`.
        ids: shape (rows, length), prompts padded on the left and completions on the right.
        mask: of the same shape, 1 for tokens.
        completion: how many of the last columns are completions.

    Returns:
        Two of shape (rows, completion), float32; the first one has a gradient.
    """
    tokens = mask.bool()
    scored = tokens.clone()
    scored[:, : ids.shape[1] - completion] = False
    at = scored[tokens].nonzero().squeeze(-1)
    flat = ids[tokens]

    def head(hidden: Tensor, projection: Tensor) -> Tensor:
        return torch.stack(token_logprobs(hidden, projection, flat[at], temperature))

    found = _pass(model, inner, flat, tokens.sum(1).tolist(), at - 1, head)
    where = scored[:, ids.shape[1] - completion :]
    empty = found.new_zeros(where.shape)
    return empty.masked_scatter(where, found[0]), empty.masked_scatter(where, found[1].detach())


def score(
    model: torch.nn.Module, inner: PreTrainedModel, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[list[float]]:
    """Log-probabilities, at temperature 1, of the completions of pairs of prompt and completion."""
    ids = torch.tensor([token for prompt, completion in sequences for token in (*prompt, *completion)])
    counts = torch.tensor([[len(prompt), len(completion)] for prompt, completion in sequences]).flatten()
    at = torch.tensor([False, True]).repeat(len(sequences)).repeat_interleave(counts).nonzero().squeeze(-1)
    targets = _sent(ids[at], inner.device)

    def head(hidden: Tensor, projection: Tensor) -> Tensor:
        return token_logprobs(hidden, projection, targets)[0]

    lengths = counts.view(-1, 2).sum(1).tolist()
    found = _pass(model, inner, _sent(ids, inner.device), lengths, _sent(at - 1, inner.device), head)
    return [part.tolist() for part in found.detach().split([len(completion) for _, completion in sequences])]


def _pass(
    model: torch.nn.Module, inner: PreTrainedModel, ids: Tensor, lengths: list[int], at: Tensor, head: Head
) -> Tensor:
    """What `head` makes of the hidden states at the positions `at`."""
    with _headed(inner, head):
        return model(
            input_ids=ids.unsqueeze(0), use_cache=False, logits_to_keep=at, **attention.boundaries(lengths, ids.device)
        ).logits


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, without waiting for what the GPU still does."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@contextmanager
def _headed(inner: PreTrainedModel, head: Head) -> Iterator[None]:
    projection: Any = inner.get_output_embeddings()
    before = projection.__dict__.get("forward")  # a library may have put one there
    projection.forward = lambda hidden: head(hidden.squeeze(0), projection.weight)
    try:
        yield
    finally:
        del projection.forward
        if before is not None:
            projection.forward = before
