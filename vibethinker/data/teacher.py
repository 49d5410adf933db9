"""A teacher model's solutions for problems that came without one. [1.5B, 3B]

Each problem is asked `data.solutions` times, with the prompts of the run. The answers are drafts like those
of files: they become traces only if their final answer verifies against the problem's own gold, which is
kept, since a teacher's answer is never gold.

Left out: other engines and servers, several temperatures and prompt styles, labels by majority vote,
resuming.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vibethinker.data.prompts import prompt_ids
from vibethinker.data.schema import Problem
from vibethinker.data.traces import Draft
from vibethinker.errors import ConfigurationError
from vibethinker.generation.transformers_engine import TransformersEngine
from vibethinker.models import load_model, load_tokenizer, run_base
from vibethinker.settings import DataSettings, Prompts
from vibethinker.steps import StepContext


def ask(problems: Sequence[Problem], data: DataSettings, context: StepContext) -> list[Draft]:
    """Sample `data.solutions` solutions of each problem; truncated and repeated ones are left out.

    The model is looked up in `context.execution["paths"]`; what isn't there is a hub id.

    Raises:
        ConfigurationError: there is no such model, or its folder is incomplete.
    """
    if not problems:
        return []
    name, seed = str(data.teacher.model), context.settings["seed"]
    prompts = Prompts.model_validate(context.settings["prompts"])
    folder = _model_folder(name, context)
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, device=context.execution["device"])
    sampling = {"temperature": data.teacher.temperature, "top_p": 1.0, "max_tokens": data.teacher.max_tokens}
    completions = TransformersEngine(model, tokenizer, context.execution["generation_batch"]).generate(
        [prompt_ids(tokenizer, problem, prompts) for problem in problems],
        samples=data.solutions,
        seed=seed,
        progress=lambda done, total: context.emit.progress(done, total, "asking the teacher"),
        **sampling,
    )
    shutil.rmtree(folder)
    return [
        Draft(problem, text, Path(name).name, {**sampling, "seed": seed})
        for problem, samples in zip(problems, completions, strict=True)
        for text in dict.fromkeys(sample.text for sample in samples if not sample.truncated)
    ]


def _model_folder(name: str, context: StepContext) -> Path:
    """The teacher as a complete model folder, made the way the recipe's base is."""
    if name == "embedded":
        raise ConfigurationError("data.teacher.model can't be `embedded`: name a folder, a .gguf file or a hub id.")
    folder = context.checkpoints / "teacher"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        run_base(replace(context, settings={"base_model": {"source": name}}, inputs={}, output=folder))
    except ConfigurationError as error:  # it speaks of base_model.source
        raise ConfigurationError(f"The teacher, data.teacher.model, can't be used: {error}") from None
    return folder
