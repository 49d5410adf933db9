"""`vibethinker grade`: verdicts on a file of responses."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from vibethinker import config as configuration
from vibethinker.commands.options import allowed_sandbox, configuration_options


@click.command(epilog="Example: vibethinker grade --kind math responses.jsonl verdicts.jsonl")
@click.option("--kind", required=True, type=click.Choice(["math", "code"]), help="What the responses hold.")
@click.option("--skip-bad", is_flag=True, help="Leave malformed rows out instead of grading nothing.")
@click.option(
    "--allow-unsafe-code",
    is_flag=True,
    help="Where no sandbox works, run the programs under resource limits alone.",
)
@configuration_options
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Verifier processes.  [default: one a core]")
@click.argument("source", metavar="IN.jsonl", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT.jsonl", type=click.Path(path_type=Path))
def grade(
    kind: str, skip_bad: bool, allow_unsafe_code: bool, workers: int | None, source: Path, target: Path,
    profile: str | None, file: str | None, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Grade the responses in IN.jsonl and append id, verdict, extracted and seconds to OUT.jsonl.

    Rows are {id, gold, response} for math, with {prompt} where an answer copied from it mustn't count, and {id,
    response, tests} for code. Ids that OUT.jsonl holds already are passed over, so an interrupted call goes on where it
    stopped.
    """
    from vibethinker import verifiers
    from vibethinker.grading import grade_file

    config = configuration.load(profile, file, overrides)
    code = verifiers.limits(allowed_sandbox(config, allow_unsafe_code))

    with ExitStack() as stack:
        bar: Any = None  # shown once there is something to grade

        def show(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                label = f"grading {source.name}"
                bar = stack.enter_context(click.progressbar(length=total, label=label, file=sys.stderr))
            bar.update(done - bar.pos)

        summary = grade_file(
            kind,
            source,
            target,
            skip_bad=skip_bad,
            code=code,
            math_seconds=config.verification.math_seconds,
            workers=workers or os.cpu_count() or 1,
            progress=show,
        )
    for problem in summary.bad:
        click.echo(f"skipped {problem}", err=True)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(summary.verdicts.items()))
    already = f"; {summary.already} were graded already" if summary.already else ""
    tier = f"; programs ran in the sandbox tier {summary.tier}" if summary.tier else ""
    click.echo(f"{target}: {counts or 'nothing new'}{already}{tier}")
