"""What `probe`, `evaluate` and `fuse` share: options, checks before anything heavy, progress, tables, JSON."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vibethinker import config as configuration
from vibethinker import validation
from vibethinker.commands.options import allowed_sandbox, configuration_options
from vibethinker.config import Config
from vibethinker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vibethinker.data.schema import Problem
    from vibethinker.verification import Verifier

Function = TypeVar("Function", bound=Callable[..., Any])
LINE_SECONDS = 10.0
MAX_TOKENS = 1024


def measuring_options(function: Function) -> Function:
    """--max-tokens, --limit, --base, --allow-unsafe-code, --output, and the configuration's."""
    for option in (
        click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="JSON file for the result."),
        click.option("--allow-unsafe-code", is_flag=True,
                     help="Run the programs of code problems under resource limits alone, which is no sandbox."),
        click.option("--base", metavar="DIR", type=click.Path(path_type=Path), help="The model of adapters."),
        click.option("--limit", metavar="N", type=click.IntRange(min=1), help="Take only the first N problems."),
        click.option("--max-tokens", metavar="N", type=click.IntRange(min=1),
                     help=f"Longest completion [{MAX_TOKENS}, or the configuration's]."),
    ):  # fmt: skip
        function = option(function)
    return configuration_options(function)


def load_config(
    profile: str | None, file: str | None, overrides: tuple[str, ...], max_tokens: int | None
) -> tuple[Config, int]:
    """The configuration, and the longest completion for this call in tokens.

    The default profile is for a tiny model, so its length counts only where the configuration was asked for.
    """
    config = configuration.load(profile, file, overrides)
    asked = profile is not None or file is not None or bool(overrides)
    return config, max_tokens or (config.evaluation.max_tokens if asked else MAX_TOKENS)


def check_before(models: Sequence[Path], base: Path | None, output: Path | None) -> None:
    """Refuse incomplete or damaged model folders and an output that can't be written.

    Raises:
        ConfigurationError: one of them.
    """
    from vibethinker.models.files import check_model_folder, is_adapter

    for folder in (*models, *([base] if base else [])):
        check_model_folder(folder)
        validation.refuse_damaged(folder)
        if is_adapter(folder) and base is None:
            raise ConfigurationError(f"{folder} holds an adapter: name the model it was trained on with --base.")
    if output is not None:
        parent = next(p for p in output.absolute().parents if p.exists())
        if output.is_dir() or not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise ConfigurationError(f"--output {output} can't be written: name a file in a folder of yours.")


def kept_folder(output: Path | None) -> Path | None:
    """Where completions are kept: in the workspace where there is one, else beside the output, else nowhere."""
    from vibethinker.execution import COMPLETIONS

    workspace = configuration.workspace()
    if workspace.is_dir():
        return workspace / COMPLETIONS
    return None if output is None else output.with_name(f"{output.stem}.completions")


@contextmanager
def grader(config: Config, problems: Sequence[Problem], allow_unsafe_code: bool) -> Iterator[Verifier]:
    """The verifier for these problems.

    Raises:
        ConfigurationError: some are code, and no sandbox works here.
    """
    from vibethinker import hardware, verifiers
    from vibethinker.verification import Verifier

    sandbox = allowed_sandbox(config, allow_unsafe_code)
    with Verifier(hardware.cores(), config.verification.math_seconds, verifiers.limits(sandbox)) as verifier:
        if any(problem.tests is not None for problem in problems):
            click.echo(f"Programs run in the sandbox tier {verifier.try_sandbox()}.", err=True)
        yield verifier


def before_imports() -> None:
    """Keep the libraries' bars and notes off the screen; call it before they are imported.

    Waiting OpenMP threads sleep instead of spinning: on a busy machine small models are ten times as fast then.
    """
    os.environ.update(TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")


@contextmanager
def shown_progress() -> Iterator[Callable[[int, int, str], None]]:
    """A function (done, total, what) that shows a bar in a terminal and now and then a line elsewhere, on stderr."""
    if not sys.stderr.isatty():
        last = time.monotonic()

        def line(done: int, total: int, text: str) -> None:
            nonlocal last
            if time.monotonic() - last >= LINE_SECONDS:
                last = time.monotonic()
                click.echo(f"{text}: {done} of {total}", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("loading", total=None)
        yield lambda done, total, text: bars.update(task, description=text, completed=done, total=total)


def print_table(title: str, rows: Mapping[str, Mapping[str, str]]) -> None:
    """One line a row; the columns of all rows in order of appearance."""
    from rich.console import Console
    from rich.table import Table

    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    table = Table(title, *columns, box=None)
    for name, row in rows.items():
        table.add_row(name, *(row.get(column, "") for column in columns))
    Console(width=None if sys.stdout.isatty() else 160, soft_wrap=not sys.stdout.isatty()).print(table)


def interval(score: Mapping[str, float]) -> str:
    """A value with its interval, for people."""
    digits = 3 if abs(score["value"]) < 10 else 1
    return f"{score['value']:.{digits}f} ({score['low']:.{digits}f} to {score['high']:.{digits}f})"


def told(speed: Mapping[str, Any]) -> dict[str, str]:
    """What an engine's meter says, as columns of a table."""
    columns = {"tokens_per_second": ("tokens/s", ",.0f"), "gpu_memory_gib": ("GPU GiB", ".1f")}
    return {title: format(speed[name], digits) for name, (title, digits) in columns.items() if name in speed}
