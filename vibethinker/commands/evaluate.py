"""`vibethinker evaluate`: scores of one model with intervals, and what voting makes of its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vibethinker.commands.measuring import (
    before_imports,
    check_before,
    grader,
    interval,
    kept_folder,
    load_config,
    measuring_options,
    print_table,
    shown_progress,
    told,
)
from vibethinker.commands.options import many_values
from vibethinker.errors import ConfigurationError

if TYPE_CHECKING:
    from vibethinker.evaluation.benchmarks import ProblemSet
    from vibethinker.settings import Evaluation

SAMPLES, VOTERS = 8, 32


@click.command(
    cls=many_values("--benchmark", "--against-train"),
    epilog="Example: vibethinker evaluate my-model --benchmark aime24 mine.jsonl --samples 8 --output scores.json",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--benchmark", "benchmarks", multiple=True, required=True, metavar="NAME|FILE...",
              help="Benchmarks by name (docs/evaluation.md), NAME=FILE for a local copy of one, names of the "
                   "configuration's evaluation sets, or files of problems.")  # fmt: skip
@click.option("--columns", metavar="ROLE=NAME,...", help="Columns of the files, such as problem=prompt,answer=gold.")
@click.option("--samples", type=click.IntRange(min=1),
              help=f"Completions a problem [the benchmark's, else {SAMPLES}; {VOTERS} with --vote].")  # fmt: skip
@click.option("--k", "ks", metavar="K,...", help="K of the reported pass@K [the number of samples].")
@click.option("--temperature", type=click.FloatRange(min=0), help="[the benchmark's, else the configuration's]")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True),
              help="[the benchmark's, else the configuration's]")  # fmt: skip
@click.option("--vote", type=click.Choice(["majority", "clr"]),
              help="Vote on answers at test time: by majority, or by claim-level reliability beside it.")  # fmt: skip
@click.option("--against-train", "training", multiple=True, metavar="FILE...", type=click.Path(path_type=Path),
              help="Training data that the benchmarks are compared with [the data of a run's model].")  # fmt: skip
@click.option("--rescore", is_flag=True, help="Score what was sampled before; load no weights and sample nothing.")
@measuring_options
def evaluate(
    model: Path, benchmarks: tuple[str, ...], columns: str | None, samples: int | None, ks: str | None,
    temperature: float | None, top_p: float | None, vote: str | None, training: tuple[Path, ...], rescore: bool,
    max_tokens: int | None, limit: int | None, base: Path | None, allow_unsafe_code: bool, output: Path | None,
    profile: str | None, file: str | None, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Measure MODEL on problems: avg, pass and cons at the number of samples, truncation, mean length.

    A benchmark by name is sampled as its protocol says, whatever the configuration; options go first. Prompts and seed
    are the configuration's. Completions are kept in the workspace, if there is one, else beside --output: the same
    command goes on where it was interrupted, and scores again without sampling.
    """
    from vibethinker.execution import generation_settings

    before_imports()
    config, longest = load_config(profile, file, overrides, max_tokens)
    check_before([model], base, output)
    execution = generation_settings(config)
    kept = kept_folder(output)
    if rescore and kept is None:
        raise ConfigurationError("--rescore needs kept completions: name the --output of the command that sampled.")

    from vibethinker.artifacts import write_json
    from vibethinker.evaluation import contamination
    from vibethinker.evaluation.benchmarks import load_sets
    from vibethinker.evaluation.measured import SCHEMA
    from vibethinker.evaluation.measuring import (
        derived_seed,
        faults,
        labelled,
        longest_sequence,
        measure,
        scores,
        tables,
        votes,
    )

    sets = load_sets(benchmarks, config, limit, _columns(columns))
    given = {"samples": samples or (VOTERS if vote else None), "temperature": temperature, "top_p": top_p,
             "max_tokens": max_tokens}  # fmt: skip
    chosen = {
        name: _settings(some, config.evaluation.of(name, any(p.tests is not None for p in some.problems)), given,
                        longest, ks)
        for name, some in sets.items()
    }  # fmt: skip
    problems = [problem for some in sets.values() for problem in some.problems]
    trained = list(training) or [folder for folder in [contamination.trained_on(model)] if folder is not None]
    shared = contamination.overlaps(
        {name: some.texts for name, some in sets.items()}, trained, config.data.decontamination
    ) if trained else {}  # fmt: skip
    document: dict[str, Any] = {
        "schema": SCHEMA, "model": str(model), "seed": config.seed, "prompts": config.prompts.semantic(), "sets": {},
        "scores": {}, "tables": {}, "votes": {}, "contamination": shared, "outcomes": [],
    }  # fmt: skip
    speeds: dict[str, dict[str, float]] = {}
    warnings: list[str] = []
    if not training and (files := contamination.stage_files(model)):
        warnings.append(
            f"The model was trained on {', '.join(files)} too, which benchmarks are not compared with: name them by "
            "--against-train."
        )
    with ExitStack() as stack:
        verifier = stack.enter_context(grader(config, problems, allow_unsafe_code))
        progress = stack.enter_context(shown_progress())
        from vibethinker.generation.kept import sampler
        from vibethinker.generation.opening import Engines

        def room(tokenizer: Any) -> int | None:
            """None, the model's positions, where prompts are made of completions."""
            return None if vote == "clr" else max(
                longest_sequence(tokenizer, some.problems, config.prompts, chosen[name].max_tokens)
                for name, some in sets.items()
            )  # fmt: skip

        engines = stack.enter_context(Engines(execution, room))
        engine = stack.enter_context(sampler(engines, model, base, execution, kept, rescore))
        for name, some in sets.items():

            def report(done: int, total: int, doing: str, name: str = name) -> None:
                progress(done, total, f"{name}: {doing}")

            settings, seed = chosen[name], derived_seed(config.seed, "evaluation", name)
            outcomes = measure(
                engine, engine.tokenizer, verifier, some.problems, settings, config.prompts, seed, report
            )
            voted = votes(outcomes, settings, verifier, report)
            document["scores"][name] = scores(outcomes, settings, voted)
            document["tables"][name] = tables(outcomes, settings, voted)
            document["outcomes"] += [labelled(name, outcome, voted) for outcome in outcomes]
            tokens = sum(completion.tokens for outcome in outcomes for completion in outcome.completions)
            document["sets"][name] = {
                "digest": some.digest, "problems": len(some.problems), "source": some.source,
                "settings": settings.semantic(), "tokens": tokens,
            }  # fmt: skip
            if vote:
                document["votes"][name] = _vote(
                    vote, engine, verifier, outcomes, settings, config.prompts, seed, tokens, report
                )
                if not document["votes"][name]:
                    warnings.append(f"{name}: there is no vote on programs, whose answers can't be compared.")
            speeds[name] = engine.speed()
            warnings += [f"{name}: {fault}" for fault in faults(outcomes)]
        document["engine"] = engine.engine
    _show(document, speeds)
    if engine.found:
        click.echo(
            f"{engine.found} of {engine.found + engine.sampled} completions were kept in {kept} before.", err=True
        )
    for text in warnings:
        click.echo(f"Warning: {text}", err=True)
    if output is not None:
        write_json(output, document)


def _columns(text: str | None) -> dict[str, str] | None:
    if text is None:
        return None
    found = dict(part.strip().partition("=")[::2] for part in text.split(","))
    if not all(found.keys()) or not all(found.values()):
        raise ConfigurationError(f"--columns takes ROLE=NAME,... such as problem=prompt,answer=gold, not {text!r}.")
    return found


def _settings(
    some: ProblemSet, configured: Evaluation, given: Mapping[str, Any], longest: int, ks: str | None
) -> Evaluation:
    """How a set is sampled: as the command says, else its benchmark's protocol, else the configuration."""
    protocol = some.protocol or {"samples": SAMPLES, "max_tokens": longest}
    values = {**protocol, **{name: value for name, value in given.items() if value is not None}}
    samples = int(values["samples"])
    try:
        k = tuple(int(one) for one in ks.split(",")) if ks else (samples,)
    except ValueError:
        raise ConfigurationError(f"--k takes whole numbers with commas such as 1,8, not {ks!r}.") from None
    if not all(1 <= one <= samples for one in k):
        raise ConfigurationError(
            f"--k has {max(k)} and {min(k)} for {samples} samples: pass@K needs 1 <= K <= samples."
        )
    return configured.model_copy(update={**values, "samples": samples, "k": k})


def _vote(
    how: str, engine: Any, verifier: Any, outcomes: Sequence[Any], settings: Evaluation, prompts: Any, seed: int,
    tokens: int, report: Any,
) -> dict[str, Any]:  # fmt: skip
    """The scores of voting over a set's mathematical problems, and their cost in tokens; empty where there are none."""
    from vibethinker.evaluation.measuring import score, votes
    from vibethinker.evaluation.reliability import choose, reliability

    some = [outcome for outcome in outcomes if outcome.problem.tests is None]
    if not any(outcome.samples for outcome in some):
        return {}
    n = settings.samples
    cost: dict[str, Any] = {"samples": {"requests": n * len(outcomes), "completion_tokens": tokens}}
    if how == "majority":
        cast = votes(some, settings, verifier)
        return {f"majority@{n}": score(list(cast.values()), n), "cost": cost, "relative_cost": 1.0}
    found = reliability(engine, engine.tokenizer, some, settings, prompts, seed, report)
    majority, claims = choose(some, found, verifier, n)
    cost |= {"claims": found.claims.row(), "judgements": found.judgements.row()}
    spent = sum(one["completion_tokens"] for one in cost.values())
    return {
        f"majority@{n}": majority, f"clr@{n}": claims, "cost": cost, "relative_cost": spent / tokens if tokens else 1.0,
    }  # fmt: skip


def _show(document: Mapping[str, Any], speeds: Mapping[str, Mapping[str, float]]) -> None:
    """The tables of a measurement, for people."""
    scores, sets = document["scores"], document["sets"]
    print_table(
        "set",
        {
            name: {
                "problems": str(sets[name]["problems"]), **{m: interval(v) for m, v in found.items()},
                "tokens": f"{sets[name]['tokens']:,}", **told(speeds[name]),
            }
            for name, found in scores.items()
        },
    )  # fmt: skip
    for kind in ("domain", "level"):
        rows = {
            f"{name} {label}": {
                "problems": str(next(iter(found.values()))["problems"]),
                **{metric: interval(value) for metric, value in found.items()},
            }
            for name, parts in document["tables"].items()
            for label, found in parts.get(kind, {}).items()
        }
        if rows:
            click.echo()
            print_table(kind, rows)
    voted = {name: found for name, found in document["votes"].items() if found}
    if voted:
        click.echo()
        print_table(
            "vote",
            {
                name: {
                    **{m: interval(v) for m, v in found.items() if isinstance(v, dict) and "value" in v},
                    "tokens": f"{sum(c['completion_tokens'] for c in found['cost'].values()):,}",
                    "of samples": f"{found['relative_cost']:.2f}",
                }
                for name, found in voted.items()
            },
        )
    if document["contamination"]:
        from vibethinker.evaluation.contamination import sentence

        for name, found in document["contamination"].items():
            click.echo(f"Training data: {sentence(name, found)}")
