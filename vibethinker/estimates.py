"""What a step will roughly cost: tokens, time, GPU memory, money, from the configuration alone.

Training does 6 floating-point operations a parameter and token, attention left out; decoding is bound by memory
bandwidth on a GPU: tokens/s = batch x bandwidth / (weights + batch x context x KV bytes). A GPU is assumed to reach
40 % of its dense bf16 peak in training and 60 % of its bandwidth in decoding. On a CPU the constants are those
measured on two cores for models of 0.35 M to 135 M parameters. Traces and completions are assumed to fill half of
their limit. An order of magnitude, then, until runs on the same machine have been measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vibethinker.plan import Plan, Step
from vibethinker.settings import Objective


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


def parameters(shape: Mapping[str, Any]) -> int:
    """Number of weights of a Llama-like decoder, from the words of its config.json."""
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    heads = shape["num_attention_heads"]
    kv_heads = shape.get("num_key_value_heads") or heads
    head = shape.get("head_dim") or hidden // heads
    attention = hidden * head * (2 * heads + 2 * kv_heads)
    block = attention + 3 * hidden * shape["intermediate_size"] + 2 * hidden
    embeddings = shape["vocab_size"] * hidden * (1 if shape.get("tie_word_embeddings") else 2)
    return layers * block + embeddings + hidden


def estimate(plan: Plan) -> dict[str, dict[str, Any]]:
    """Step id → tokens (trained and generated), seconds, gpu_memory_bytes and usd; None where it can't be said."""
    shape = plan.config.architecture()
    execution = plan.config.execution
    device = GPUS.get((execution.gpu or "").upper().replace(" ", "").replace("-", ""))
    result = {}
    for step in plan.steps:
        trained, generated = _tokens(plan, step)
        seconds = memory = None
        if shape:
            seconds = _seconds(shape, device, trained, generated, _context(plan, step))
            memory = _memory(plan, shape, step, trained) if device else None
        usd = None if seconds is None or execution.price is None else round(seconds / 3600 * execution.price, 4)
        if step.kind == "data" and generated:  # another model than the base, perhaps on another machine
            seconds = memory = None
            price = plan.config.data.teacher.budget.output_price
            usd = round(generated * price / 1e6, 4) if price else None
        result[step.id] = {
            "trained_tokens": trained,
            "generated_tokens": generated,
            "seconds": None if seconds is None else float(f"{seconds:.3g}"),
            "gpu_memory_bytes": memory,
            "usd": usd,
        }
    return result


def _tokens(plan: Plan, step: Step) -> tuple[int, int]:
    """Tokens trained on, and tokens generated."""
    config, s = plan.config, step.settings
    if step.kind == "base" and config.base_model.source == "embedded":
        e = config.base_model.embedded
        return int(e.steps * e.batch_size * FILL * config.spectrum.sft.max_length), 0
    if step.kind == "specialist":
        fill = 1.0 if s["sft"]["packing"] else FILL
        return int(s["sft"]["steps"] * s["sft"]["batch_size"] * s["sft"]["max_length"] * fill), 0
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


def _seconds(shape: Mapping[str, Any], device: Device | None, trained: int, generated: int, context: float) -> float:
    weights = parameters(shape)
    if device is None:
        return (CPU_SECONDS_PER_TOKEN + 6 * weights / CPU_FLOPS) * (trained + generated)
    heads = shape.get("num_key_value_heads") or shape["num_attention_heads"]
    head = shape.get("head_dim") or shape["hidden_size"] // shape["num_attention_heads"]
    kv_bytes = 4 * shape["num_hidden_layers"] * heads * head
    batch = max(1.0, min(512.0, 0.5 * device.memory / (context * kv_bytes)))
    decode = batch * 0.6 * device.bandwidth / (2 * weights + batch * context * kv_bytes)
    return 6 * weights * trained / (0.4 * device.flops) + generated / decode


def _memory(plan: Plan, shape: Mapping[str, Any], step: Step, trained: int) -> int:
    """Peak bytes: weights; for training also gradients, Adam's two fp32 moments and the logits of a micro-batch."""
    weights, config = parameters(shape), plan.config
    width = 0.5 if config.base_model.quantization == "nf4" else 2 if config.base_model.precision == "bfloat16" else 4
    if not trained:
        return int(weights * width)
    if step.kind == "signal":
        method, tokens = step.settings["objective"]["method"], config.signal.micro_tokens
        lora = step.settings["objective"]["lora"]
    else:
        sft = config.spectrum.sft
        method, tokens, lora = sft.method, sft.micro_tokens, sft.lora.semantic()
    trainable = weights
    if method == "lora":
        wide = shape["hidden_size"] + shape["intermediate_size"]
        trainable = shape["num_hidden_layers"] * lora["rank"] * 7 * wide
    activations = tokens * shape["hidden_size"] * shape["num_hidden_layers"] * 2
    logits = tokens * shape["vocab_size"] * 4
    return int(weights * width + trainable * (width + 8) + activations + logits)
