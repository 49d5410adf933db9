"""The weights of a policy in training, as a rollout engine takes them: one tensor at a time, under the file's names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


def policy_tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The effective weights of a model, with the names of its base's file and tied tensors once.

    Of a model trained in full, they are its parameters. Under adapters a weight is W + scale · B A, added in float32
    and rounded to the base's type; a 4-bit W is de-quantised, since that is what the policy computes with (a merged
    checkpoint adds the same B A to the unquantised W instead). Each tensor is made when asked for: only one copy
    exists at a time if the caller keeps none.

    Weights that FSDP2 shards are gathered one by one, so that every process has to go through all of them.

    Args:
        model: as `load_trainable` gives it, without wrappers of DDP or torch.compile.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    adapted = {name: module for name, module in inner.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in inner.named_parameters():
        owner, _, last = name.rpartition(".")
        if owner.endswith(".base_layer"):
            owner = owner.removesuffix(".base_layer")
            yield f"{owner}.{last}", _effective(adapted[owner], parameter) if last == "weight" else _plain(parameter)
        elif not set(owner.split(".")).intersection(LoraLayer.adapter_layer_names):
            yield name, _plain(parameter)


def _effective(layer: nn.Module, weight: nn.Parameter) -> torch.Tensor:
    import torch

    base = _plain(weight)
    with torch.no_grad():
        for adapter in layer.active_adapters:
            base = (base + _whole(layer.get_delta_weight(adapter))).to(base.dtype)
    return base


def _plain(parameter: nn.Parameter) -> torch.Tensor:
    """A parameter without its graph, de-quantised where bitsandbytes holds it in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return _whole(parameter.detach())
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(parameter.data, state)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
