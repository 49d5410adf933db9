"""The step `solutions`: what a model makes of the training problems, graded.

Two others read it: a second stage of supervised training, which wants to know what the first one's model rarely solves
[3B], and self-distillation, which learns from what the signal stages' models solve.

Output: outcomes.jsonl (one row a problem, as an evaluation has it) and sft/<domain>.parquet, the right solutions as
traces whose teacher is the model. The same text for the same problem is one trace. A truncated one is none, since it
has no end to learn.
"""

from __future__ import annotations

from collections.abc import Sequence

from vibethinker import verifiers
from vibethinker.data.schema import Problem, Trace, read_records, write_records
from vibethinker.errors import DataError
from vibethinker.evaluation.measuring import Outcome, derived_seed, faults, longest_sequence, measure, write_rows
from vibethinker.probing import checkpoints
from vibethinker.settings import Evaluation, Prompts
from vibethinker.steps import Metrics, StepContext


def run(context: StepContext) -> Metrics:
    """Sample `settings["evaluation"]` completions of each training problem of `settings["domains"]` from
    `inputs["model"]`, a specialist at its last checkpoint.

    Raises:
        ConfigurationError: the model's folder is incomplete.
        DataError: there are no training problems.
    """
    from vibethinker.generation.opening import Engines
    from vibethinker.models import set_threads

    settings = Evaluation.model_validate(context.settings["evaluation"])
    prompts = Prompts.model_validate(context.settings["prompts"])
    domains, model = context.settings["domains"], context.inputs["model"]
    problems = [p for d in domains for p in read_records(context.inputs["data"] / "rl" / f"{d}.parquet", Problem)]
    if not problems:
        raise DataError(f"There are no training problems of {', '.join(domains)} to solve: give some.")
    set_threads(context.execution["threads"])
    context.emit.progress(0, len(problems) * settings.samples, "loading")
    with (
        verifiers.of_step(context) as grader,
        Engines(context.execution, lambda t: longest_sequence(t, problems, prompts, settings.max_tokens)) as engines,
    ):
        engine = engines.at(checkpoints(model)[-1] if (model / "checkpoints").is_dir() else model)
        seed = derived_seed(context.settings["seed"], "solutions", *domains)
        outcomes = measure(engine, engine.tokenizer, grader, problems, settings, prompts, seed, context.emit.progress)
        context.emit.metrics(1, engine.meter.take())
    for fault in faults(outcomes):
        context.emit.warning(fault)
    write_rows(context.output / "outcomes.jsonl", (outcome.row() for outcome in outcomes))
    found = traces(outcomes, context.settings["model"], settings)
    (context.output / "sft").mkdir()
    for domain in domains:
        own = [trace for trace in found if trace.domain == domain]
        write_records(context.output / "sft" / f"{domain}.parquet", Trace, own)
    graded = sum(outcome.samples for outcome in outcomes)
    right = sum(outcome.correct for outcome in outcomes)
    return {"problems": len(problems), "traces": len(found), "accuracy": right / max(1, graded)}


def traces(outcomes: Sequence[Outcome], teacher: str, settings: Evaluation) -> list[Trace]:
    """The right solutions, each once, in the order of the problems."""
    sampling = settings.model_dump(include={"temperature", "top_p", "max_tokens"})
    found: dict[tuple[str, str], Trace] = {}
    for outcome in outcomes:
        problem = outcome.problem
        for completion, verdict in zip(outcome.completions, outcome.verdicts, strict=True):
            if verdict.counts and not completion.truncated:
                found.setdefault(
                    (problem.id, completion.text),
                    Trace(
                        problem.id, problem.domain, problem.problem, completion.text, teacher, verdict.verdict,
                        verdict.extracted, sampling,
                    ),
                )  # fmt: skip
    return list(found.values())
