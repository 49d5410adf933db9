"""`vibethinker fuse --search`: weights by Pass@K on problems of the caller's, told on others."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vibethinker.commands.measuring import grader, interval, load_config, print_table, shown_progress
from vibethinker.errors import ConfigurationError
from vibethinker.settings import Fusion

if TYPE_CHECKING:
    from vibethinker.data.schema import Problem


def searched_weights(
    models: Sequence[Path], base: Path | None, output: Path, settings: Fusion, seed: int, *, data: Path | None,
    held_out: Path | None, report: Path | None, samples: int | None, k: int | None, trials: int | None,
    max_tokens: int | None, allow_unsafe_code: bool, profile: str | None, file: str | None, overrides: tuple[str, ...],
) -> list[float]:  # fmt: skip
    """The weights that solve most of `data`; what they solve of `held_out` is printed, and all of it in `report`.

    Raises:
        ConfigurationError: a file is missing, or the models don't go together.
    """
    from vibethinker.execution import generation_settings
    from vibethinker.fusion import merging

    if data is None or held_out is None:
        raise ConfigurationError("--search needs --data with problems to search on and --held-out with others.")
    config, longest = load_config(profile, file, overrides, max_tokens)
    probing = config.spectrum.probing.model_copy(update={"max_tokens": longest})
    probing = probing.model_copy(
        update={name: value for name, value in (("samples", samples), ("k", k)) if value is not None}
    )
    merging.check(models, None, base, settings)
    execution = generation_settings(config)

    from vibethinker.artifacts import write_json
    from vibethinker.data.folding import fold
    from vibethinker.evaluation.benchmarks import read_file
    from vibethinker.fusion.measuring import Bench, engines, measurements
    from vibethinker.fusion.methods import make
    from vibethinker.fusion.search import look
    from vibethinker.probing import check_k

    check_k(probing)
    splits = {"probe": _by_domain(read_file(data)), "validation": _by_domain(read_file(held_out))}
    problems = [problem for split in splits.values() for some in split.values() for problem in some]
    searched = {key for some in splits["probe"].values() for p in some for key in (p.id, fold(p.problem))}
    for problem in (p for some in splits["validation"].values() for p in some):
        if not searched.isdisjoint((problem.id, fold(problem.problem))):
            raise ConfigurationError(f"--held-out has the problem {problem.id} of --data: its problems must be others.")
    labels = [str(number) for number in range(1, len(models) + 1)]
    with ExitStack() as stack:
        verifier = stack.enter_context(grader(config, problems, allow_unsafe_code))
        progress = stack.enter_context(shown_progress())
        opened = stack.enter_context(engines(execution, splits, config.prompts, probing))
        bench = Bench(
            opened, verifier, splits, probing, config.prompts, config.seed, measurements(settings, len(models)),
            progress, lambda text: click.echo(f"Warning: {text}", err=True),
        )  # fmt: skip
        beside = stack.enter_context(merging.scratch(output))
        ready = stack.enter_context(merging.whole(models, base or models[0], beside))
        typed = merging.type_of(models, base or models[0])

        def fuse(weights: Sequence[float], folder: Path) -> None:
            method = make(settings, weights, labels, seed)
            merging.merge(ready, folder, method, base or models[0], lambda done, of: None, typed=typed)

        weights, found = look(settings, bench, fuse, len(models), seed, beside)
    told = found["held_out"]
    rows = {title: {f"held-out pass@{bench.k}": interval(told[name])} for title, name in (
        ("found", "found"), ("uniform", "uniform"), ("found - uniform", "gain"))}  # fmt: skip
    print_table("weights", rows)
    if report is not None:
        write_json(report, {"schema": 1, "method": settings.method, "models": [str(m) for m in models], **found})
    return weights


def _by_domain(problems: Sequence[Problem]) -> dict[str, list[Problem]]:
    found: dict[str, list[Problem]] = {}
    for problem in problems:
        found.setdefault(problem.domain, []).append(problem)
    return found
