"""`vibethinker data`: the data phase on its own."""

from __future__ import annotations

import os
import shutil
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import click

from vibethinker.commands.options import configuration_options, many_values

_EXAMPLES = 10
_columns_option = click.option(
    "--column",
    "columns",
    multiple=True,
    help="Column of the problem; may be repeated, each row's first counts.  [default: problem, question, prompt, text]",
)


@click.group()
def data() -> None:
    """Prepare, decontaminate and describe problems and traces."""


@data.command(epilog="Example: vibethinker data prepare --profile tiny --set seed=2 --output my-data")
@configuration_options
@click.option("--output", required=True, type=click.Path(path_type=Path), help="A new or empty folder.")
def prepare(profile: str | None, file: str | None, overrides: tuple[str, ...], output: Path) -> None:
    """Run the data step alone: disjoint splits, verified traces and card.json in a folder."""
    from vibethinker import config, hardware, plan, verifiers
    from vibethinker.data.prepare import run
    from vibethinker.steps import StepContext

    settings = config.load(profile, file, overrides)
    step = plan.build(settings, config.workspace())["data"]
    partial = _partial_folder(output)
    try:
        context = StepContext(
            step_id=step.id,
            settings=step.settings,
            execution={
                "device": hardware.device(settings),
                "generation_batch": settings.execution.generation_batch,
                "sandbox": verifiers.execution(settings.sandbox),
                "verifier_workers": settings.verification.workers,
                "paths": dict(step.outside),
            },
            inputs={},
            output=partial / "data",
            checkpoints=partial / "checkpoints",
            emit=_Emitter(),
        )
        context.output.mkdir()
        metrics = run(context)
        os.replace(context.output, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _print_counts(metrics, settings.domains)
    click.echo(f"Written to {output}; card.json there counts every removal.")


@data.command(
    cls=many_values("--against"),
    epilog="Example: vibethinker data decontaminate train.jsonl --against test.jsonl --output kept.jsonl",
)
@click.argument("train", type=click.Path(path_type=Path))
@click.option("--against", multiple=True, required=True, metavar="EVAL...", help="Evaluation files (JSONL).")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="File for the rows that stay.")
@click.option("--ngram", default=10, show_default=True, type=click.IntRange(min=2), help="Words an n-gram.")
@_columns_option
@click.option("--no-whitelist", is_flag=True, help="Let stock phrases count as overlap.")
def decontaminate(
    train: Path,
    against: tuple[str, ...],
    output: Path,
    ngram: int,
    columns: tuple[str, ...],
    no_whitelist: bool,
) -> None:
    """Remove the rows of TRAIN (JSONL) that share a word n-gram with an evaluation problem.

    Only the problem's body is compared: sentences that open or close at least half of a file's problems are
    taken for its prompt template. The rows that stay are written unchanged and in order.
    """
    from vibethinker.data.decontamination import STOCK_PHRASES, Decontaminator, find_templates
    from vibethinker.data.sources import TEXT_COLUMNS, read_rows, row_text
    from vibethinker.errors import ConfigurationError

    if output.exists() and output.samefile(train):
        raise ConfigurationError(f"--output {output} is TRAIN itself: name another file.")
    names = columns or TEXT_COLUMNS

    def read(path: Path) -> dict[int, str]:
        return {number: row_text(row, f"{path}:{number}", names) for number, row in read_rows(path)}

    rows = read(train)
    sets = {path: read(Path(path)) for path in against}
    evaluation = [(f"{Path(path).name}:{n}", text) for path, texts in sets.items() for n, text in texts.items()]
    index = Decontaminator(
        [text for _, text in evaluation],
        n=ngram,
        templates=find_templates([list(texts.values()) for texts in (rows, *sets.values())]),
        stock_phrases=() if no_whitelist else STOCK_PHRASES,
    )
    found = {number: index.overlap(text) for number, text in rows.items()}
    removed = {number: overlap for number, overlap in found.items() if overlap}
    _copy_lines(train, rows.keys() - removed.keys(), output)
    click.echo(f"{len(rows)} rows read, {len(removed)} removed, {len(rows) - len(removed)} kept in {output}.")
    if removed:
        click.echo("Most alike (shared n-grams of all n-grams):")
    alike = sorted(removed.items(), key=lambda item: (-item[1].count / item[1].total, item[0]))
    for number, overlap in alike[:_EXAMPLES]:
        where = evaluation[overlap.evaluation][0]
        click.echo(f"  {train.name}:{number} {overlap.count}/{overlap.total} with {where}: “{overlap.shared}”")


@data.command(epilog="Example: vibethinker data stats my-data/sft/algebra.jsonl")
@click.argument("file", type=click.Path(path_type=Path))
@_columns_option
def stats(file: Path, columns: tuple[str, ...]) -> None:
    """Count the rows, problems, domains and lengths of a JSONL file."""
    from vibethinker.data.sources import TEXT_COLUMNS, read_rows, row_text
    from vibethinker.data.splits import fold

    problems: Counter[str] = Counter()
    labels: dict[str, Counter[str]] = {name: Counter() for name in ("domain", "source", "teacher", "licence")}
    lengths: dict[str, list[int]] = {"problem": [], "text": [], "solution": []}
    for number, row in read_rows(file):
        text = row_text(row, f"{file}:{number}", columns or TEXT_COLUMNS)
        problems[fold(text)] += 1
        lengths["problem"].append(len(text.split()))
        for name in ("text", "solution"):
            if isinstance(row.get(name), str) and row[name].strip() != text:
                lengths[name].append(len(row[name].split()))
        for name, counts in labels.items():
            if isinstance(row.get(name), str):
                counts[row[name]] += 1
    click.echo(f"rows      {problems.total()}")
    click.echo(f"problems  {len(problems)} different, {sum(n > 1 for n in problems.values())} of them repeated")
    for name, values in lengths.items():
        if values:
            click.echo(f"{name:9} {_distribution(values)} words")
    for name, counts in labels.items():
        if counts:
            click.echo(f"{name:9} " + ", ".join(f"{value} {n}" for value, n in counts.most_common()))


class _Emitter:
    """Warnings and progress as plain lines on stderr."""

    def progress(self, done: int, total: int, text: str = "") -> None:
        click.echo(f"{done}/{total} {text}", err=True)

    def metrics(self, step: int, values: Any) -> None:
        """The data step measures nothing by optimizer step."""

    def warning(self, text: str) -> None:
        click.echo(f"Warning: {text}", err=True)


def _partial_folder(output: Path) -> Path:
    from vibethinker.errors import ConfigurationError

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"--output {output} isn't empty: name a new folder.")
    partial = output.absolute().parent / f".{output.name}.partial-{os.getpid()}"
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise ConfigurationError(f"--output {output} can't be written ({error.strerror}).") from None
    return partial


def _copy_lines(source: Path, kept: set[int], output: Path) -> None:
    from vibethinker.errors import ConfigurationError

    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    try:
        with source.open("rb") as lines, partial.open("wb") as file:
            for number, line in enumerate(lines, start=1):
                if number in kept:
                    file.write(line if line.endswith(b"\n") else line + b"\n")
        os.replace(partial, output)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ConfigurationError(f"--output {output} can't be written ({error.strerror}).") from None


def _print_counts(metrics: dict[str, Any], domains: tuple[str, ...]) -> None:
    names = ("train", "traces", "probe", "validation", "contaminated")
    width = max(map(len, domains))
    click.echo(" ".join([" " * width, *(f"{name:>12}" for name in names)]))
    for domain in domains:
        click.echo(" ".join([f"{domain:{width}}", *(f"{metrics[f'{name}.{domain}']:>12}" for name in names)]))
    click.echo(f"{metrics['evaluation']} evaluation problems")


def _distribution(values: list[int]) -> str:
    ordered = sorted(values)
    middle, high = statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))]
    return f"median {middle:g}, 95 % below {high + 1}, longest {ordered[-1]}"
