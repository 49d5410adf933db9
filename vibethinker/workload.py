"""How much work a step is, and under which conditions: the units in which speed is measured, and a plan estimated.

Tokens follow from the settings alone: traces and completions are assumed to fill half of their limit. What a step of
the same kind took under the same conditions (machine, model, engine, share of the machine) therefore tells what
another one will, in proportion. Left out: rollouts by which a stage's problems are filtered for their difficulty, and
those that fill up an update. The worker keeps both in a step's manifest (`work`). Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from typing import Any

from vibethinker import environment, hardware
from vibethinker.config import Config
from vibethinker.data import registry
from vibethinker.data.settings import DataFile
from vibethinker.data.sources import resolve
from vibethinker.footprint import Shape
from vibethinker.fusion.measuring import measurements
from vibethinker.gpus import known
from vibethinker.needs import Place, alone, shared_by
from vibethinker.plan import Step, role_of
from vibethinker.requirements import samples_by_vllm
from vibethinker.settings import Objective
from vibethinker.worker import ranks

FILL = 0.5
DEFAULT_PROBLEMS = 1000  # assumed of a source of which nobody knows how many it has


def work_of(config: Config, step: Step, model: Mapping[str, Any] | None, place: Place | None) -> dict[str, Any]:
    """`trained_tokens`, `generated_tokens`, and `conditions`, which have to be equal where speeds are compared.

    Args:
        model: words of the config.json of the recipe's model, if known.
        place: the GPU; None is the CPU.
    """
    trained, generated = tokens(config, step)
    conditions = _conditions(config, step, model, place)
    if not trained + generated:  # what takes its time can't be told in tokens
        told = {name: value for name, value in step.settings.items() if name != "seed"}
        conditions["settings"] = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    return {"trained_tokens": trained, "generated_tokens": generated, "conditions": conditions}


def tokens(config: Config, step: Step) -> tuple[int, int]:
    """Tokens trained on, and tokens generated."""
    s = step.settings
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
    if step.kind == "fusion" and "probing" in s:
        probing, data, search = config.spectrum.probing, config.data, config.spectrum.fusion.search
        counts = measurements(config.spectrum.fusion, len(config.domains))
        problems = (counts["probe"] * data.probe + counts["validation"] * data.validation) * len(config.domains)
        samples = (search and search.samples) or probing.samples
        return 0, int(problems * samples * probing.max_tokens * FILL)
    if step.kind == "signal":
        objective = Objective.model_validate(s["objective"])
        completion = (s["stage"]["context"] - objective.max_prompt_tokens) * FILL
        rollouts = s["stage"]["steps"] * objective.batch_size
        if (most := s["stage"].get("rollouts")) is not None:  # known even where there are refills
            rollouts = min(most, rollouts * (1 + objective.refill))
        measured = _held_out(config, s) * completion
        return int(rollouts * (completion + objective.max_prompt_tokens * FILL)), int(rollouts * completion + measured)
    if step.kind == "data" and config.data.teacher.model is not None:
        teacher = config.data.teacher
        problems = len(config.domains) * (config.data.max_problems or DEFAULT_PROBLEMS)
        return 0, int(problems * teacher.samples * teacher.max_tokens * FILL)
    if step.kind == "evaluation":
        evaluation = config.evaluation
        return 0, int(_evaluated(config, s["sets"]) * evaluation.samples * evaluation.max_tokens * FILL)
    return 0, 0


def _evaluated(config: Config, sets: Sequence[str] | None) -> int:
    """Problems that a model is evaluated on."""
    data = config.data
    if data.source == "procedural":
        return len(sets or config.domains) * data.procedural.evaluation
    return sum(min(_rows(file, data.directory), data.evaluation_limit or sys.maxsize) for file in data.evaluation)


def _rows(file: DataFile, directory: str) -> int:
    """Problems of a source: what its benchmark is known to have, else the lines of a JSONL file, else a guess."""
    count = registry.problems(file.preset)
    if count is None and file.path is not None and file.path.endswith(".jsonl"):
        with suppress(OSError), resolve(file.path, directory).open("rb") as lines:
            count = sum(1 for _ in lines)
    count = DEFAULT_PROBLEMS if count is None else count
    return min(count, file.limit or count)


def _held_out(config: Config, settings: Mapping[str, Any]) -> int:
    """Completions of the held-out problems that a signal stage is measured on while it trains."""
    if "validation" not in settings:
        return 0
    validation, steps = settings["validation"], settings["stage"]["steps"]
    times = len({0, *range(validation["every"], steps, validation["every"]), steps})
    problems = validation["problems"]
    if settings["stage"]["validation_data"] is None:
        problems = min(problems, len(settings["domains"]) * config.data.validation)
    return times * problems * validation["samples"]


def context(config: Config, step: Step) -> float:
    """Tokens of a sequence while it is sampled, on average."""
    if step.kind == "signal":
        return step.settings["stage"]["context"] * FILL
    longest = {
        "data": config.data.teacher.max_tokens,
        "probe": config.spectrum.probing.max_tokens,
        "fusion": config.spectrum.probing.max_tokens,
    }.get(step.kind, config.evaluation.max_tokens)
    return longest * FILL


def share(config: Config, step: Step, place: Place | None) -> float:
    """What part of the machine's GPUs or, without one, of its CPU a step holds: GPUs, or slots of all slots. Money and
    time are counted by it; a step beside the GPUs holds nothing."""
    if place is None:
        return 1.0 if alone(config, step) else 1 / hardware.slots(config)
    if not computes(step):
        return 0.0
    return ranks.count(step.kind, {"processes": config.execution.processes}) / shared_by(config, step)


def computes(step: Step) -> bool:
    """Whether a step has work for a GPU; weights are fused without completions, copied and reported on the CPU."""
    if step.kind == "data":
        data = step.settings["data"]
        return data["diversity"]["embedding"] is not None or (
            data["teacher"]["model"] is not None and data["teacher"]["engine"] != "server"
        )
    if step.kind == "base":
        return step.settings["base_model"]["source"] == "embedded"
    if role_of(step) == "fusion":
        return "probing" in step.settings
    return step.kind != "import" and role_of(step) != "report"


def _conditions(config: Config, step: Step, model: Mapping[str, Any] | None, place: Place | None) -> dict[str, Any]:
    semantic = step.settings
    training = semantic.get("sft") or semantic.get("objective") or {}
    on_gpu = place is not None
    found: dict[str, Any] = {
        "kind": role_of(step),
        "machine": known(place.name) or place.name if place else f"{environment.processor()}, {hardware.cores()} cores",
        "share": round(share(config, step, place), 6),
    }
    if step.kind == "data" and (teacher := config.data.teacher).model is not None:
        found["teacher"] = [teacher.model, teacher.engine]
    if step.kind not in ("data", "report"):
        found |= {
            "model": list(astuple(Shape.of(model))) if model else None,
            "precision": [config.base_model.precision, config.base_model.quantization],
        }
    if step.kind in ("specialist", "distilled", "signal"):
        found |= {"method": training.get("method"), "backend": config.base_model.backend}
    if place is None and config.execution.threads:
        found["threads"] = config.execution.threads
    if step.kind in ("probe", "solutions", "fusion", "signal", "evaluation"):
        found["engine"] = "vllm" if samples_by_vllm(config, on_gpu) else "transformers"
    return found
