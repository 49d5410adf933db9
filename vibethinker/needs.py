"""What a plan's steps need memory for on the device that they get, and whether it will do: `plan` asks beforehand.

The bytes are those of `vibethinker.footprint`, the settings that they grow with, and what is tried when they don't
suffice, those of `vibethinker.memory`. A signal stage peaks in training or in generation, whichever is more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vibethinker import footprint, hardware, memory
from vibethinker.config import Config
from vibethinker.footprint import HEADROOM, Shape, Training
from vibethinker.memory import Memory, Need, Setting
from vibethinker.plan import Plan, Step, StepState, role_of
from vibethinker.requirements import sampled_at_once, samples_by_vllm
from vibethinker.worker import ranks

# What shares a GPU with no other step: it takes all of it, or trains for hours on what memory there is. A signal stage
# does where `execution.stages_share` says so.
ALONE = ("base", "signal")
SAVED_A_SECOND = (1 << 30) / 4.5  # bytes written and sealed, as benchmarks/results/safety.json has it of a shared disk


@dataclass(frozen=True)
class Place:
    """Where a step computes: a device's name, its bytes of memory if known, and how many steps share it."""

    name: str
    memory: int | None
    is_gpu: bool
    shared_by: int = 1

    @property
    def share(self) -> int | None:
        """Bytes for one step."""
        return self.memory // self.shared_by if self.memory else None


@dataclass(frozen=True)
class Forecast:
    """A step's memory as it is known beforehand.

    Attributes:
        parts: bytes by what they are for, at the peak; empty where nothing can be said.
        available: bytes that the step has.
        warning: one sentence, where that isn't enough.
        start: what it starts with in place of its settings, since more has failed before; empty if nothing has.
    """

    parts: Mapping[str, int]
    available: int | None
    warning: str | None = None
    start: str = ""

    def document(self) -> dict[str, Any]:
        """As plan.json has it."""
        return {
            "parts": dict(self.parts),
            "bytes": sum(self.parts.values()) or None,
            "available": self.available,
            "warning": self.warning,
            "start": self.start or None,
        }


def shared_by(config: Config, step: Step) -> int:
    """How many steps share the GPU that this one gets."""
    several = ranks.count(step.kind, {"processes": config.execution.processes}) > 1
    return 1 if several or alone(config, step) else config.execution.steps_per_gpu


def alone(config: Config, step: Step) -> bool:
    """Whether a step has the machine's slots, or a GPU, for itself."""
    role = role_of(step)
    return role in ALONE and not (role == "signal" and config.execution.stages_share)


def place_of(gpu: str | None, steps: int = 1) -> Place:
    """A device of this machine.

    Args:
        gpu: CUDA_VISIBLE_DEVICES of the step, whose first GPU counts; None is the CPU.
        steps: that share it.
    """
    if gpu is None:
        return Place("cpu", hardware.memory(), False)
    card = hardware.card(gpu.split(",")[0])
    return Place(card.name if card else "gpu", card.memory if card else None, True, steps)


def memory_need(
    config: Config, settings: Mapping[str, Any], model: Mapping[str, Any] | None, place: Place
) -> Need | None:
    """The need of a step of these semantic settings.

    Args:
        model: words of the config.json of the model that it reads.
    """
    least = memory.LEAST_SHARE * place.shared_by
    if place.is_gpu and place.share and model and "stage" in settings:
        precision = settings["base_model"]["precision"]
        floor = footprint.vllm_floor(Shape.of(model), settings["stage"]["context"], precision)
        least = max(least, floor / place.share)
    execution = config.execution
    how = {
        "backend": config.base_model.backend,
        "processes": execution.processes,
        "sharding": execution.sharding,
        "device": place.name,
        "mib": place.memory >> 20 if place.memory else None,
        "shared_by": place.shared_by,
    }
    return memory.need_of(settings, model, how, vllm=samples_by_vllm(config, place.is_gpu), least_share=least)


def memory_settings(config: Config, on_gpu: bool) -> dict[str, Any]:
    """The execution settings that memory grows with, as a step gets them."""
    return {
        "sft_micro_tokens": config.spectrum.sft.micro_tokens,
        "signal_micro_tokens": config.signal.micro_tokens,
        "generation_batch": sampled_at_once(config, on_gpu),
        "gradient_checkpointing": config.execution.gradient_checkpointing,
        "vllm": config.execution.vllm.model_dump(),
    }


def forecast(plan: Plan, step: Step, place: Place) -> Forecast:
    """What is known of a step's memory before it runs."""
    config, words = plan.config, plan.config.architecture()
    need = memory_need(config, step.settings, words, place)
    if need is None:
        return Forecast({}, place.share)
    known = Memory(plan.workspace, lambda text: None)
    wanted = memory.setting_of(need, memory_settings(config, place.is_gpu))
    setting = known.start(need, wanted)
    start = memory.said(setting, wanted)
    if not words or not place.is_gpu or place.share is None or step.kind == "data":
        return Forecast({}, place.share, start=start)
    fits, parts = _peak(config, step, need, setting, Shape.of(words), place)
    warning = None
    if not fits and not known.sufficed(need, setting):
        lowered = memory.lower(setting, need)
        while lowered is not None and not _peak(config, step, need, lowered, Shape.of(words), place)[0]:
            lowered = memory.lower(lowered, need)
        mend = f"set {memory.said(lowered, setting)}" if lowered else need.advice
        needed, there = sum(parts.values()) / 1e9, place.share / 1e9
        warning = f"{step.id} needs about {needed:.0f} GB of the {there:.0f} GB that it has of {place.name}: {mend}."
    return Forecast(parts, place.share, warning, start)


def warnings(plan: Plan, states: Mapping[str, StepState]) -> list[str]:
    """One sentence for each step that is to run and won't fit into this machine's GPU, or saves its state slowly."""
    waiting = [step for step in plan.steps if states[step.id].state != "cached"]
    found = together({step.id: slow_to_save(plan.config, step) for step in waiting})
    if not hardware.gpus() or plan.config.execution.device == "cpu":
        return found
    gpu = hardware.gpu(0)
    return found + together(
        {step.id: forecast(plan, step, place_of(gpu, shared_by(plan.config, step))).warning for step in waiting}
    )


def slow_to_save(config: Config, step: Step) -> str | None:
    """A sentence where the state that a training saves when it is asked to stop may take longer than it is given."""
    words = config.architecture()
    if words is None or role_of(step) not in ("specialist", "signal", "distilled"):
        return None
    trained = step.settings.get("objective") or step.settings.get("sft") or {}
    if trained.get("method") != "full":
        return None
    size = Shape.of(words).parameters * (4 + footprint.MOMENT_BYTES[trained["optimizer"]])
    if (seconds := size / SAVED_A_SECOND) <= config.execution.stop_seconds:
        return None
    return (
        f"{step.id} has {size / 1e9:.0f} GB to save when it is asked to stop, {seconds:.0f} s at 4.5 s a GiB "
        f"(execution.stop_seconds is {config.execution.stop_seconds:g}): raise that, and let what stops the run wait."
    )


def together(warnings: Mapping[str, str | None]) -> list[str]:
    """The warnings of steps (step id → sentence), each that differs from others in the step's name only told once."""
    steps: dict[str, list[str]] = {}
    for step_id, warning in warnings.items():
        if warning:
            steps.setdefault(warning.removeprefix(step_id), []).append(step_id)
    return [
        f"{ids[0]}{f' (and {len(ids) - 1} like it)' if len(ids) > 1 else ''}{sentence}"
        for sentence, ids in steps.items()
    ]


def _peak(
    config: Config, step: Step, need: Need, setting: Setting, shape: Shape, place: Place
) -> tuple[bool, dict[str, int]]:
    """Whether a setting fits, and the parts of its peak."""
    assert place.share is not None
    if need.role == "sampling":
        return _sampling(config, need, setting, shape, place.share)
    micro = next(setting[key] for key in memory.MICRO_TOKENS if key in setting)
    share = int(setting["vllm.shared_memory"] * place.share) if "vllm.shared_memory" in setting else 0
    beside = 0 if setting.get("vllm.sleep") else share
    chosen = setting["gradient_checkpointing"]
    base, trained = step.settings["base_model"], step.settings.get("objective") or step.settings.get("sft") or {}
    training = Training(
        shape=shape,
        tokens=max(micro, need.row),
        method=trained.get("method", "full"),
        rank=trained["lora"]["rank"] if trained else 0,
        precision=base["precision"],
        quantization=base["quantization"],
        optimizer=trained.get("optimizer", "adamw"),
        processes=config.execution.processes,
        sharding=config.execution.sharding,
    )
    again = footprint.checkpointing(training, place.share - beside) if chosen is None else chosen
    parts = footprint.training_parts(training, checkpointing=again)
    fits = sum(parts.values()) <= HEADROOM * (place.share - beside)
    peak = parts | ({"vllm": beside} if beside else {})
    if need.role == "signal":
        stays = footprint.between_updates(training)
        engine = {"vllm": share} if share else _rectangle(setting, need, shape, base["precision"])
        floor = footprint.vllm_floor(shape, step.settings["stage"]["context"], base["precision"]) if share else 0
        fits = fits and floor <= share and stays + sum(engine.values()) <= place.share
        if stays + sum(engine.values()) > sum(peak.values()):
            peak = {"weights, optimizer, context": stays, **engine}
    return fits, peak


def _sampling(config: Config, need: Need, setting: Setting, shape: Shape, share: int) -> tuple[bool, dict[str, int]]:
    length = need.row + config.signal.objective.max_prompt_tokens
    precision = config.base_model.precision
    if need.vllm:
        whole = int(setting["vllm.memory"] * share)
        return footprint.vllm_floor(shape, length, precision) <= whole, {"vllm": whole, "context": footprint.CONTEXT}
    weights = footprint.width(precision) * shape.parameters
    parts = {"weights": weights, **_rectangle(setting, need, shape, precision), "context": footprint.CONTEXT}
    return sum(parts.values()) <= HEADROOM * share, parts


def _rectangle(setting: Setting, need: Need, shape: Shape, precision: str) -> dict[str, int]:
    """What transformers decodes in: each sequence's cache as long as the longest."""
    return footprint.decoding_parts(shape, setting["generation_batch"], need.row, precision)
