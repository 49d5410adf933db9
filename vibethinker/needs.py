"""What a configuration's steps need memory for, on the GPU or the CPU that they get; see `vibethinker.memory`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vibethinker import footprint, hardware, memory
from vibethinker.config import Config
from vibethinker.errors import ConfigurationError
from vibethinker.requirements import steps_interpreter


def samples_by_vllm(config: Config, on_gpu: bool) -> bool:
    """Whether vLLM will sample completions; a plan for another machine, whose interpreter isn't here, assumes it."""
    engine = config.execution.engine
    if engine != "auto" or not on_gpu:
        return engine == "vllm"
    try:
        return "vllm" in steps_interpreter(config).packages
    except ConfigurationError:
        return True


def memory_need(
    config: Config,
    settings: Mapping[str, Any],
    execution: Mapping[str, Any],
    model: Mapping[str, Any] | None,
    gpu: str | None,
    shared_by: int = 1,
) -> memory.Need | None:
    """What the memory of a step depends on; see `vibethinker.memory`.

    Args:
        settings, execution: of the step, as `StepContext` holds them.
        model: words of the config.json of the model that it reads.
        gpu: CUDA_VISIBLE_DEVICES of the step; None on a CPU.
        shared_by: steps that share the GPU.
    """
    least = memory.LEAST_SHARE
    if gpu is None:
        device: dict[str, Any] = {"name": "cpu", "gib": hardware.memory() >> 30}
    else:
        card = hardware.card(gpu.split(",")[0])
        device = {"name": card.name if card else "gpu", "gib": card.memory >> 30 if card else None}
        if card and model and "stage" in settings:
            shape, precision = footprint.Shape.of(model), settings["base_model"]["precision"]
            floor = footprint.vllm_floor(shape, settings["stage"]["context"], precision)
            least = max(least, floor / card.memory)
    device["shared_by"] = shared_by
    vllm = samples_by_vllm(config, gpu is not None)
    return memory.need_of(settings, execution, model, device, vllm=vllm, least_share=least)
