"""What a step will roughly cost: tokens, time, money, from the configuration alone; its memory is `needs`' to say.

Training does 6 floating-point operations a parameter and token, attention left out; decoding is bound by memory
bandwidth on a GPU: tokens/s = batch x bandwidth / (weights + batch x context x KV bytes). A GPU is assumed to reach
40 % of its dense bf16 peak in training and 60 % of its bandwidth in decoding. On a CPU the constants are those
measured on two cores for models of 0.35 M to 135 M parameters. Traces and completions are assumed to fill half of
their limit. An order of magnitude, then, until runs on the same machine have been measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from vibethinker import hardware
from vibethinker.config import Config
from vibethinker.footprint import Shape
from vibethinker.needs import Place, forecast, place_of, shared_by
from vibethinker.plan import Plan, Step
from vibethinker.settings import Objective
from vibethinker.worker import ranks


@dataclass(frozen=True)
class Device:
    """Dense bf16 FLOP/s, memory bytes/s and memory bytes, from the makers' data sheets."""

    flops: float
    bandwidth: float
    memory: float


GPUS = {
    "H100": Device(989e12, 3.35e12, 80e9),
    "H200": Device(989e12, 4.8e12, 141e9),
    "A100": Device(312e12, 2.04e12, 80e9),
    "L40S": Device(362e12, 0.864e12, 48e9),
    "RTX4090": Device(165e12, 1.008e12, 24e9),
}
FILL = 0.5
CPU_SECONDS_PER_TOKEN, CPU_FLOPS = 24e-6, 1e11  # two cores: 22k tokens/s at 0.35 M, 6k at 1.8 M parameters
DEFAULT_PROBLEMS = 1000  # assumed for files, which the plan doesn't parse


def gpu_of(config: Config) -> tuple[Device | None, Place | None]:
    """The GPU to estimate for, its speed and its memory: the one that `execution.gpu` names, else this machine's; None
    for what isn't known, and on a CPU."""
    if config.execution.gpu:
        known = GPUS.get(_plain(config.execution.gpu))
        return known, Place(config.execution.gpu, int(known.memory), True) if known else None
    if config.execution.device == "cpu" or not hardware.gpus():
        return None, None
    place = place_of(hardware.gpu(0))
    known = next((device for name, device in GPUS.items() if name in _plain(place.name)), None)
    return known, place


def estimate(plan: Plan) -> dict[str, dict[str, Any]]:
    """Step id → tokens (trained and generated), seconds, gpu_memory_bytes, memory and usd; None where it can't be said.

    `memory` is the step's `needs.Forecast`.
    """
    shape = plan.config.architecture()
    execution = plan.config.execution
    device, place = gpu_of(plan.config)
    result = {}
    for step in plan.steps:
        trained, generated = _tokens(plan, step)
        seconds = None
        if shape:
            seconds = _seconds(Shape.of(shape), device, trained, generated, _context(plan, step))
        here = replace(place, shared_by=shared_by(plan.config, step)) if place else place_of(None)
        memory = forecast(plan, step, here).document()
        usd = None if seconds is None or execution.price is None else round(seconds / 3600 * execution.price, 4)
        if seconds is not None and device:  # processes share the work, but each has a GPU that costs as much
            seconds /= ranks.count(step.kind, {"processes": execution.processes})
        if step.kind == "data" and generated:  # another model than the base, perhaps on another machine
            seconds = None
            price = plan.config.data.teacher.budget.output_price
            usd = round(generated * price / 1e6, 4) if price else None
        result[step.id] = {
            "trained_tokens": trained,
            "generated_tokens": generated,
            "seconds": None if seconds is None else float(f"{seconds:.3g}"),
            "gpu_memory_bytes": memory["bytes"],
            "memory": memory,
            "usd": usd,
        }
    return result


def _tokens(plan: Plan, step: Step) -> tuple[int, int]:
    """Tokens trained on, and tokens generated."""
    config, s = plan.config, step.settings
    if step.kind == "base" and config.base_model.source == "embedded":
        e = config.base_model.embedded
        return int(e.steps * e.batch_size * FILL * config.spectrum.sft.max_length), 0
    if step.kind in ("specialist", "distilled"):
        fill = 1.0 if s["sft"]["packing"] else FILL  # steps of epochs over traces that nobody knows yet count as these
        return int(s["sft"]["steps"] * s["sft"]["batch_size"] * s["sft"]["max_length"] * fill), 0
    if step.kind == "solutions":
        asked, data = s["evaluation"], config.data
        generated = data.procedural.problems if data.source == "procedural" else DEFAULT_PROBLEMS
        problems = len(s["domains"]) * (data.max_problems or generated)
        return 0, int(problems * asked["samples"] * asked["max_tokens"] * FILL)
    if step.kind == "probe":
        probing, data = config.spectrum.probing, config.data
        problems = data.probe * config.spectrum.sft.checkpoints + data.validation
        return 0, int(problems * probing.samples * probing.max_tokens * FILL)
    if step.kind == "signal":
        objective = Objective.model_validate(s["objective"])
        completion = (s["stage"]["context"] - objective.max_prompt_tokens) * FILL
        rollouts = s["stage"]["steps"] * objective.batch_size
        return int(rollouts * (completion + objective.max_prompt_tokens * FILL)), int(rollouts * completion)
    if step.kind == "data" and config.data.teacher.model is not None:
        teacher = config.data.teacher
        problems = len(config.domains) * (config.data.max_problems or DEFAULT_PROBLEMS)
        return 0, int(problems * teacher.samples * teacher.max_tokens * FILL)
    if step.kind == "evaluation":
        data, evaluation = config.data, config.evaluation
        each = data.procedural.evaluation if data.source == "procedural" else data.evaluation_limit
        sets = len(s["sets"] or (config.domains if data.source == "procedural" else data.evaluation))
        problems = sets * (each or DEFAULT_PROBLEMS)
        return 0, int(problems * evaluation.samples * evaluation.max_tokens * FILL)
    return 0, 0


def _context(plan: Plan, step: Step) -> float:
    if step.kind == "signal":
        return step.settings["stage"]["context"] * FILL
    return plan.config.evaluation.max_tokens * FILL


def _seconds(shape: Shape, device: Device | None, trained: int, generated: int, context: float) -> float:
    weights = shape.parameters
    if device is None:
        return (CPU_SECONDS_PER_TOKEN + 6 * weights / CPU_FLOPS) * (trained + generated)
    batch = max(1.0, min(512.0, 0.5 * device.memory / (context * shape.cache)))
    decode = batch * 0.6 * device.bandwidth / (2 * weights + batch * context * shape.cache)
    return 6 * weights * trained / (0.4 * device.flops) + generated / decode


def _plain(name: str) -> str:
    return name.upper().replace(" ", "").replace("-", "")
