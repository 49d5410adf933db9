"""`vibethinker evaluate`: scores of one model with intervals."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from vibethinker.commands.measuring import (
    before_imports,
    check_before,
    grader,
    interval,
    load_config,
    measuring_options,
    print_table,
    shown_progress,
    told,
)
from vibethinker.commands.options import many_values


@click.command(
    cls=many_values("--benchmark"),
    epilog="Example: vibethinker evaluate my-model --benchmark gsm8k_test.jsonl --samples 8 --output scores.json",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--benchmark", "benchmarks", multiple=True, required=True, metavar="NAME|FILE...",
              help="JSONL files of problems, or names of the configuration's evaluation sets.")  # fmt: skip
@click.option("--samples", default=8, show_default=True, type=click.IntRange(min=1), help="Completions a problem.")
@measuring_options
def evaluate(
    model: Path, benchmarks: tuple[str, ...], samples: int, max_tokens: int | None, limit: int | None,
    base: Path | None, allow_unsafe_code: bool, output: Path | None,
    profile: str | None, file: str | None, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Measure MODEL on problems: avg, pass and cons at the number of samples, truncation, mean length.

    Prompts, temperature, nucleus and seed are the configuration's.
    """
    from vibethinker.execution import generation_settings

    before_imports()
    config, longest = load_config(profile, file, overrides, max_tokens)
    check_before([model], base, output)
    settings = config.evaluation.model_copy(update={"samples": samples, "k": (samples,), "max_tokens": longest})
    execution = generation_settings(config)

    from vibethinker.artifacts import write_json
    from vibethinker.evaluation.benchmarks import load_sets
    from vibethinker.evaluation.measuring import derived_seed, longest_sequence, measure, scores

    sets = load_sets(benchmarks, config, limit)
    problems = [problem for some in sets.values() for problem in some]
    found: dict[str, Any] = {}
    speeds: dict[str, dict[str, float]] = {}
    rows: list[dict[str, Any]] = []
    left_out = 0
    with ExitStack() as stack:
        verifier = stack.enter_context(grader(config, problems, allow_unsafe_code))
        progress = stack.enter_context(shown_progress())
        from vibethinker.generation.opening import Engines

        engines = stack.enter_context(
            Engines(execution, lambda t: longest_sequence(t, problems, config.prompts, longest))
        )
        engine = engines.at(model, base)
        for name, some in sets.items():
            outcomes = measure(
                engine, engine.tokenizer, verifier, some, settings, config.prompts,
                derived_seed(config.seed, "evaluation", name),
                lambda done, total, doing, name=name: progress(done, total, f"{name}: {doing}"),
            )  # fmt: skip
            speeds[name] = engine.meter.take()
            found[name] = scores(outcomes, settings, verifier)
            rows += [{"set": name, **outcome.row()} for outcome in outcomes]
            left_out += sum(outcome.left_out for outcome in outcomes)
    print_table(
        "set",
        {
            n: {"problems": str(len(sets[n])), **{m: interval(v) for m, v in s.items()}, **told(speeds[n])}
            for n, s in found.items()
        },
    )
    if left_out:
        click.echo(f"Warning: the verifier failed on {left_out} samples, which are left out.", err=True)
    if output is not None:
        write_json(
            output,
            {"schema": 1, "model": str(model), "settings": settings.semantic(), "scores": found, "outcomes": rows},
        )
