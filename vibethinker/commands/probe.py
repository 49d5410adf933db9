"""`vibethinker probe`: which of several checkpoints has the widest spectrum of solutions."""

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
from vibethinker.errors import ConfigurationError


@click.command(
    epilog="Example: vibethinker probe checkpoints/step-* --data probe.jsonl --samples 32 --k 8 --output probe.json"
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--data", "data", required=True, metavar="FILE", type=click.Path(path_type=Path),
              help="JSONL file of problems that no checkpoint was trained on.")  # fmt: skip
@click.option("--samples", default=32, show_default=True, type=click.IntRange(min=1), help="Completions a problem, n.")
@click.option("--k", default=8, show_default=True, type=click.IntRange(min=1), help="K of the Pass@K that chooses.")
@measuring_options
def probe(
    models: tuple[Path, ...], data: Path, samples: int, k: int, max_tokens: int | None, limit: int | None,
    base: Path | None, allow_unsafe_code: bool, output: Path | None,
    profile: str | None, file: str | None, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Measure the unbiased Pass@K of each MODEL, in the order of training, and name the best.

    The result reads the same as a run's probe.json, but for lengths and speed, and the second measurement of the
    chosen checkpoint, which takes other problems: use `evaluate` for it. Prompts, temperature, nucleus and seed are the
    configuration's.
    """
    from vibethinker.execution import generation_settings

    before_imports()
    config, longest = load_config(profile, file, overrides, max_tokens)
    settings = config.spectrum.probing.model_copy(update={"samples": samples, "k": k, "max_tokens": longest})
    if len(set(models)) < len(models):
        raise ConfigurationError("One MODEL is named twice: name each checkpoint once.")
    check_before(models, base, output)
    execution = generation_settings(config)

    from vibethinker import probing
    from vibethinker.artifacts import write_json
    from vibethinker.evaluation.benchmarks import read_file
    from vibethinker.evaluation.measuring import derived_seed, longest_sequence, measure

    probing.check_k(settings)
    problems = read_file(data)[:limit]
    candidates: list[dict[str, Any]] = []
    with ExitStack() as stack:
        verifier = stack.enter_context(grader(config, problems, allow_unsafe_code))
        progress = stack.enter_context(shown_progress())
        from vibethinker.generation.opening import Engines

        engines = stack.enter_context(
            Engines(execution, lambda t: longest_sequence(t, problems, config.prompts, longest))
        )
        for model in models:
            engine = engines.at(model, base)

            def report(done: int, total: int, doing: str, name: str = model.name) -> None:
                progress(done, total, f"{name}: {doing}")

            outcomes = measure(
                engine, engine.tokenizer, verifier, problems, settings, config.prompts,
                derived_seed(config.seed, "probe"), report,
            )  # fmt: skip
            tokens = {"mean_tokens": sum(outcome.mean_tokens for outcome in outcomes) / len(outcomes)}
            candidates.append(probing.candidate(str(model), outcomes, settings) | tokens | engine.meter.take())
    selected = probing.choose(candidates, k)
    print_table(
        "checkpoint",
        {c["checkpoint"]: {f"pass@{n}": interval(s) for n, s in c["pass_at"].items()} | told(c) for c in candidates},
    )
    click.echo(f"Highest Pass@{k}: {selected}")
    if left_out := sum(found["left_out"] for found in candidates):
        click.echo(f"Warning: the verifier failed on {left_out} samples, which are left out.", err=True)
    if output is not None:
        write_json(output, {"schema": 1, "data": str(data), "k": k, "selected": selected, "candidates": candidates})
