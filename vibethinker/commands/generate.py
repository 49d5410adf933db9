"""`vibethinker generate`: a quick look at what a model answers."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from vibethinker.commands.measuring import (
    MAX_TOKENS,
    before_imports,
    check_before,
    grader,
    load_config,
    shown_progress,
)
from vibethinker.commands.options import configuration_options
from vibethinker.errors import ConfigurationError
from vibethinker.messages import printable

SHOWN = 5  # problems of a benchmark


@click.command(epilog='Example: vibethinker generate my-model --prompt "What is 17 · 23?" --gold 391')
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompt", "asked", multiple=True, metavar="TEXT", help="A problem; repeatable.")
@click.option("--gold", help="The answer to a single --prompt, which gives a verdict.")
@click.option("--file", "asking", metavar="FILE", type=click.Path(path_type=Path),
              help="A text file that is one problem, or a file of problems as for `evaluate`.")  # fmt: skip
@click.option("--benchmark", metavar="NAME", help=f"The first {SHOWN} problems of a benchmark, or --limit of them.")
@click.option("--samples", default=1, show_default=True, type=click.IntRange(min=1), help="Answers to each.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 takes the likeliest token [the configuration's].")
@click.option("--max-tokens", metavar="N", type=click.IntRange(min=1),
              help=f"Longest answer [{MAX_TOKENS}, or the configuration's].")  # fmt: skip
@click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Take only the first N problems.")
@click.option("--base", metavar="DIR", type=click.Path(path_type=Path), help="The model of an adapter.")
@click.option("--allow-unsafe-code", is_flag=True,
              help="Run the programs of code problems under resource limits alone, which is no sandbox.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object an answer.")
@configuration_options
def generate(
    model: Path, asked: tuple[str, ...], gold: str | None, asking: Path | None, benchmark: str | None, samples: int,
    temperature: float | None, max_tokens: int | None, limit: int | None, base: Path | None, allow_unsafe_code: bool,
    as_json: bool, profile: str | None, file: str | None, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Print MODEL's answers to problems, each with its verdict where the right one is known.

    Control characters of an answer are shown as escapes, so that none reaches the terminal.
    """
    from vibethinker.execution import generation_settings

    before_imports()
    if sum(map(bool, (asked, asking, benchmark))) != 1:
        raise ConfigurationError("Name one of --prompt, --file and --benchmark: what is to be answered.")
    if gold is not None and len(asked) != 1:
        raise ConfigurationError("--gold is the answer to one --prompt: name exactly one.")
    config, longest = load_config(profile, file, overrides, max_tokens)
    check_before([model], base, None)
    execution = generation_settings(config)

    from vibethinker.evaluation.benchmarks import load_sets
    from vibethinker.evaluation.measuring import derived_seed, longest_sequence, measure

    if asked or (asking and asking.suffix in (".txt", ".md")):
        texts = asked or (_text(asking),)
        problems = [_problem(text, gold if len(texts) == 1 else None) for text in texts][:limit]
    else:
        [some] = load_sets([str(asking or benchmark)], config, limit or (SHOWN if benchmark else None)).values()
        problems = some.problems
    settings = config.evaluation.model_copy(
        update={"samples": samples, "k": (1,), "max_tokens": longest}
        | ({} if temperature is None else {"temperature": temperature})
    )
    with ExitStack() as stack:
        verifier = stack.enter_context(grader(config, problems, allow_unsafe_code))
        progress = stack.enter_context(shown_progress())
        from vibethinker.generation.opening import Engines

        engines = stack.enter_context(
            Engines(execution, lambda t: longest_sequence(t, problems, config.prompts, longest))
        )
        engine = engines.at(model, base)
        outcomes = measure(
            engine, engine.tokenizer, verifier, problems, settings, config.prompts,
            derived_seed(config.seed, "generate"), progress,
        )  # fmt: skip
    for outcome in outcomes:
        for sample, (completion, verdict) in enumerate(zip(outcome.completions, outcome.verdicts, strict=True)):
            graded = outcome.problem.tests is not None or bool(outcome.problem.answer)
            said = verdict.verdict if graded else None
            if as_json:
                row = {"id": outcome.problem.id, "problem": outcome.problem.problem, "sample": sample,
                       "text": completion.text, "gold": outcome.problem.answer or None, "verdict": said,
                       "extracted": verdict.extracted, "tokens": completion.tokens,
                       "truncated": completion.truncated}  # fmt: skip
                click.echo(json.dumps(row))
            else:
                _show(outcome.problem, sample, completion, verdict, said)


def _text(path: Path | None) -> str:
    assert path is not None
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--file {path} can't be read ({error}): name a text file in UTF-8.") from None


def _problem(text: str, gold: str | None) -> Any:
    from vibethinker.data.schema import Problem

    if not text.strip():
        raise ConfigurationError("A problem is empty: give the model something to answer.")
    made = Problem(id="prompt", domain="math", problem=text.strip(), source="prompt", licence="", answer="")
    return made if gold is None else replace(made, answer=gold)


def _show(problem: Any, sample: int, completion: Any, verdict: Any, said: str | None) -> None:
    if sample == 0:
        click.echo(click.style(printable(f"── {problem.id}: {problem.problem}"), bold=True))
    click.echo(printable(completion.text))
    parts = [f"{completion.tokens} tokens", *(["cut off at the length limit"] if completion.truncated else [])]
    if said is not None:
        parts.insert(0, said)
        if problem.tests is None:
            parts.insert(1, f"answered {printable(verdict.extracted or 'nothing')}, gold {printable(problem.answer)}")
    click.echo(click.style(f"   {'; '.join(parts)}", dim=True))
