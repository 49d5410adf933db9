"""What a step will roughly cost: tokens, time, money, from the configuration alone; its memory is `needs`' to say.

Training does 6 floating-point operations a parameter and token, attention left out. On a GPU a decoding step reads
weights and cache, and vLLM's scheduler, which is Python, goes through its sequences: the slower of the two counts,
(weights / batch + context x KV bytes) / bandwidth or SCHEDULING seconds a token. A GPU is assumed to reach 40 % of its
dense bf16 peak in training and 60 % of its bandwidth in decoding; each process starts first. On a CPU the constants are
those measured on two cores for models of 0.35 M to 135 M parameters. Traces and completions are assumed to fill half of
their limit. An order of magnitude, then: where the workspace has the output of a like step that this machine has made,
its measured speed counts instead (`vibethinker.throughput`), and `source` says `measured` and not `table`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vibethinker import hardware
from vibethinker.artifacts import Store
from vibethinker.config import Config
from vibethinker.footprint import Shape
from vibethinker.gpus import GPUS, Device, known
from vibethinker.needs import Place, forecast, place_of, shared_by
from vibethinker.plan import Plan, Step
from vibethinker.requirements import samples_by_vllm
from vibethinker.throughput import expected, measurements
from vibethinker.worker import ranks
from vibethinker.workload import computes, context, share, work_of

CPU_SECONDS_PER_TOKEN, CPU_FLOPS = 24e-6, 1e11  # two cores: 22k tokens/s at 0.35 M, 6k at 1.8 M parameters
# [choice], rounded from a run of a 0.5 B model on an H200 with vLLM 0.26 (docs/results.md, "Estimate against actual").
START = 15.0  # seconds of a process: imports, the model's loading and writing
COMPILATION = 20.0  # seconds, of the trained model's blocks in the first update
ENGINE_START = 30.0  # seconds of vLLM's start, once it has compiled for that model and context
SCHEDULING = 1 / 28e3  # seconds a token of one process


def gpu_of(config: Config) -> tuple[Device | None, Place | None]:
    """The GPU to estimate for, its speed and its memory: the one that `execution.gpu` names, else this machine's; None
    for what isn't known, and on a CPU."""
    if config.execution.gpu:
        device = GPUS.get(known(config.execution.gpu) or "")
        return device, Place(config.execution.gpu, int(device.memory), True) if device else None
    if config.execution.device == "cpu" or not hardware.gpus():
        return None, None
    place = place_of(hardware.gpu(0))
    return GPUS.get(known(place.name) or ""), place


def estimate(plan: Plan) -> dict[str, dict[str, Any]]:
    """Step id → tokens (trained and generated), seconds, gpu_memory_bytes, memory and usd; None where it can't be said.

    `memory` is the step's `needs.Forecast`, `source` where seconds and usd come from: `measured`, `table` or None.
    """
    config = plan.config
    shape, words = config.architecture(), _words(plan)
    execution = config.execution
    device, place = gpu_of(config)
    made = measurements(plan.workspace)
    result = {}
    for step in plan.steps:
        work = work_of(config, step, words, place if place and computes(step) else None)
        trained, generated = work["trained_tokens"], work["generated_tokens"]
        teaches, teacher = step.kind == "data" and bool(generated), config.data.teacher
        # Another model's speed isn't known, nor that of a server.
        foreign = teaches and (teacher.engine == "server" or teacher.model != config.base_model.source)
        seconds = None if foreign else expected(step.id, work, made)
        source = None if seconds is None else "measured"
        if seconds is None and shape and not foreign:
            seconds, source = _seconds(Shape.of(shape), config, device, step, (trained, generated)), "table"
        here = replace(place, shared_by=shared_by(config, step)) if place else place_of(None)
        memory = forecast(plan, step, here).document()
        usd = None
        if seconds is not None and execution.price is not None:
            usd = round(seconds / 3600 * execution.price * share(config, step, place), 4)
        if teaches and teacher.engine == "server":
            price = teacher.budget.output_price
            usd = round(generated * price / 1e6, 4) if price else None
        result[step.id] = {
            "trained_tokens": trained,
            "generated_tokens": generated,
            "seconds": None if seconds is None else float(f"{seconds:.3g}"),
            "source": source,
            "gpu_memory_bytes": memory["bytes"],
            "memory": memory,
            "usd": usd,
        }
    return result


def _words(plan: Plan) -> dict[str, Any] | None:
    """Words of the config.json of the recipe's model: the configuration's, else the published base's."""
    if words := plan.config.architecture():
        return words
    base = next((step for step in plan.steps if step.id == "base"), None)
    return Store(plan.workspace).model_words("base", base.fingerprint) if base else None


def _seconds(shape: Shape, config: Config, device: Device | None, step: Step, tokens: tuple[int, int]) -> float:
    """By the table: of a step that trains on and generates so many tokens."""
    (trained, generated), weights = tokens, shape.parameters
    if device is None:
        return (CPU_SECONDS_PER_TOKEN + 6 * weights / CPU_FLOPS) * (trained + generated)
    filled = context(config, step) * shape.cache
    batch = max(1.0, min(512.0, 0.5 * device.memory / filled))
    decode = (2 * weights / batch + filled) / (0.6 * device.bandwidth)
    start = START + COMPILATION * (step.kind in ranks.TRAINS)
    by_vllm = config.data.teacher.engine == "vllm" if step.kind == "data" else samples_by_vllm(config, True)
    if generated and by_vllm:
        decode, start = max(decode, SCHEDULING), start + ENGINE_START
    computed = 6 * weights * trained / (0.4 * device.flops) + generated * decode
    return start + computed / ranks.count(step.kind, {"processes": config.execution.processes})
