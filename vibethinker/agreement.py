"""What the settings of different rooms owe each other: K ≤ n, whole groups in a batch, contexts that the model has."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import ValidationError

from vibethinker import plugins
from vibethinker.messages import explain
from vibethinker.settings import CODE_DOMAIN, Objective, Stage

if TYPE_CHECKING:
    from vibethinker.config import Config


def disagreements(config: Config) -> Iterable[str]:
    """Sentences about settings that contradict each other."""
    probing, evaluation, sft = config.spectrum.probing, config.evaluation, config.spectrum.sft
    if probing.k > probing.samples:
        yield (
            f"spectrum.probing.k is {probing.k} but spectrum.probing.samples is {probing.samples}: "
            "Pass@K needs K <= n, so raise samples or lower k"
        )
    for k in evaluation.k:
        if not 1 <= k <= evaluation.samples:
            yield (
                f"evaluation.k has {k} but evaluation.samples is {evaluation.samples}: "
                "pass@k needs 1 <= k <= n, so raise samples or lower k"
            )
    measured = {*(config.domains if config.data.source == "procedural" else (f.title for f in config.data.evaluation))}
    for name in sorted(evaluation.sets.keys() - measured - {CODE_DOMAIN}):
        yield (
            f"evaluation.sets has {name!r}, which is no evaluation set; the sets are "
            f"{', '.join(sorted(measured))}, and {CODE_DOMAIN} stands for all sets of programs"
        )
    if len(set(config.domains)) != len(config.domains):
        yield "domains names one twice: list each domain once"
    for domain in config.domains:
        if not domain.replace("-", "").replace("_", "").isalnum() or domain != domain.lower():
            yield f"domains has {domain!r}: use lower-case letters, digits, - and _, since it becomes a folder's name"
    if config.data.source == "procedural":
        for domain in config.domains:
            if domain not in (known := plugins.names(plugins.DOMAINS)):
                yield (
                    f"there are no procedural problems for the domain {domain!r}: use {', '.join(known)}, install the "
                    "plugin that brings it, or set data.source to files"
                )
    elif not config.data.train:
        yield "data.source is files but data.train is empty: list at least one JSONL file under data.train"
    if sft.checkpoints > sft.steps:
        yield f"spectrum.sft.checkpoints is {sft.checkpoints} but there are only {sft.steps} steps: lower it"
    if config.base_model.quantization != "none" and sft.method != "lora":
        yield "base_model.quantization freezes the weights: set spectrum.sft.method to lora, or quantization to none"
    if config.spectrum.hard and sft.method != "full":
        yield "spectrum.hard trains whole weights on: set spectrum.sft.method to full, or leave spectrum.hard unset"
    yield from _process_disagreements(config)
    if config.budget.usd is not None and config.execution.price is None:
        yield "budget.usd needs a price: set execution.price, or budget.hours in its place"
    if config.scaling.ray.workspace and not config.storage.url:
        yield "scaling.ray.workspace is no folder that the run sees: set storage.url, by which outputs come back"
    sets = config.domains if config.data.source == "procedural" else [file.title for file in config.data.evaluation]
    if config.tracking.benchmark not in (None, *sets):
        yield (
            f"tracking.benchmark is {config.tracking.benchmark!r}, which is no evaluation set: use one of "
            f"{', '.join(sets) or 'none, since there is no set'}"
        )
    weights, method = config.spectrum.fusion.weights, config.spectrum.fusion.method
    if method == "slerp" and len(config.domains) != 2:
        yield f"spectrum.fusion.method slerp lies between two models, not {len(config.domains)}: choose another"
    samples = config.spectrum.fusion.search and config.spectrum.fusion.search.samples
    if samples and samples < probing.k:
        yield f"spectrum.fusion.search.samples is {samples} but spectrum.probing.k {probing.k}: Pass@K needs K <= n"
    if weights is not None:
        if set(weights) != set(config.domains):
            yield "spectrum.fusion.weights must name exactly the domains: " + ", ".join(config.domains)
        elif min(weights.values()) < 0 or sum(weights.values()) <= 0:
            yield "spectrum.fusion.weights must be at least 0 and not all 0"
    positions = config.model_positions()
    if positions and sft.max_length > positions:
        yield (
            f"spectrum.sft.max_length {sft.max_length} exceeds the model's {positions} positions: lower it, or set "
            f"base_model.rope_scaling to a factor of at least {_least_factor(config, sft.max_length, positions)}"
        )
    if config.signal.validation.select == "best_val" and not config.signal.validation.every:
        yield (
            "signal.validation.select is best_val but signal.validation.every is 0, so nothing is measured: set the "
            "updates between two measurements"
        )
    if config.distillation and not config.signal.stages:
        yield "distillation learns from the signal stages' models: add a stage to signal.stages, or leave it unset"
    names = [s.name for s in config.signal.stages]
    if len(set(names)) != len(names):
        yield "signal.stages has two stages of one name: give each its own"
    for i, stage in enumerate(config.signal.stages):
        yield from _stage_disagreements(config, stage, f"signal.stages.{i}", positions)


def _process_disagreements(config: Config) -> Iterable[str]:
    processes, batch = config.execution.processes, config.spectrum.sft.batch_size
    if batch % processes:
        yield (
            f"spectrum.sft.batch_size {batch} isn't divisible by execution.processes {processes}: each process takes "
            "an equal share of an update, so choose a multiple"
        )
    if processes > 1 and config.execution.sharding == "fsdp":
        if config.base_model.quantization != "none":
            yield "execution.sharding fsdp can't divide 4-bit weights: use ddp, or set base_model.quantization to none"
        if config.base_model.backend == "unsloth":
            yield "Unsloth's models can't be divided: use execution.sharding ddp, or base_model.backend transformers"


def _least_factor(config: Config, length: int, positions: int) -> int:
    scaling = config.base_model.rope_scaling
    return math.ceil(length * (scaling.factor if scaling else 1) / positions)


def _stage_disagreements(config: Config, stage: Stage, at: str, positions: int | None) -> Iterable[str]:
    try:
        objective = config.objective(stage)
    except ValidationError as error:
        yield f"{at}.overrides: {explain(error, Objective)}"
        return
    if config.base_model.quantization != "none" and objective.method != "lora":
        yield (
            f"{at}: base_model.quantization freezes the weights: set signal.objective.method to lora, or quantization "
            "to none"
        )
    if objective.batch_size % objective.group_size:
        yield (
            f"{at}: batch_size {objective.batch_size} isn't divisible by group_size {objective.group_size}: "
            "an update takes whole groups, so choose a multiple"
        )
    elif objective.batch_size // objective.group_size % config.execution.processes:
        yield (
            f"{at}: batch_size {objective.batch_size} makes {objective.batch_size // objective.group_size} groups of "
            f"{objective.group_size}, which execution.processes {config.execution.processes} doesn't divide: each "
            f"process takes whole groups, so choose a multiple of {objective.group_size * config.execution.processes}"
        )
    elif objective.batch_size // config.execution.processes % objective.updates:
        yield (
            f"{at}: batch_size {objective.batch_size} isn't divisible by updates {objective.updates} on each process: "
            "each optimizer step takes an equal share of the rollouts, so choose a multiple"
        )
    if stage.rollouts and stage.rollouts % objective.batch_size:
        yield (
            f"{at}.rollouts {stage.rollouts} isn't divisible by batch_size {objective.batch_size}: choose a multiple, "
            "so that stages of whole batches can have as many"
        )
    if objective.ratio == "sequence" and objective.mean_over != "rollouts":
        yield (
            f"{at}: ratio sequence weighs whole rollouts, and mean_over {objective.mean_over} their tokens: set "
            "mean_over to rollouts, or ratio to token"
        )
    if objective.overlong > (limit := stage.context - objective.max_prompt_tokens) > 0:
        yield (
            f"{at}: overlong {objective.overlong} exceeds the {limit} tokens that a completion may have: lower it, or "
            "raise the context"
        )
    if positions and stage.context > positions:
        yield (
            f"{at}.context {stage.context} exceeds the model's {positions} positions: lower it, or set "
            f"base_model.rope_scaling to a factor of at least {_least_factor(config, stage.context, positions)}"
        )
    if stage.context <= objective.max_prompt_tokens:
        yield (
            f"{at}.context {stage.context} leaves no room for an answer after max_prompt_tokens "
            f"{objective.max_prompt_tokens}: raise the context or lower signal.objective.max_prompt_tokens"
        )
    if stage.train_data is None:
        domains = config.stage_domains(stage)
        if not domains:
            yield f"{at} has no domain: none of `domains` fits its reward {stage.reward!r}, so name its domains"
        for domain in domains:
            if domain not in config.domains:
                yield f"{at}.domains has {domain!r}, which isn't in domains ({', '.join(config.domains)})"
            elif (domain == CODE_DOMAIN) != (stage.reward == "code"):
                yield f"{at}.domains has {domain!r}, which the reward {stage.reward} can't judge: change one of the two"
