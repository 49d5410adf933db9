"""`vibethinker status --watch`: a run's steps in a terminal, anew as they change, until the run ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vibethinker.reporting.text import duration
from vibethinker.watching import ENDED, RunView, StepView, look

EVERY = 0.5  # seconds between two looks
LINE_SECONDS = 15.0  # at most one plain line of a step's progress in this time
_STYLES = {"running": "bold cyan", "done": "green", "cached": "dim", "failed": "bold red", "waiting": "dim",
           "skipped": "dim"}  # fmt: skip
_ROWS = 7  # of the screen that aren't steps


def watch(folder: Path) -> int:
    """Show the run of a folder until it ends, as a table in a terminal and elsewhere as lines; returns what the run's
    end means as an exit code."""
    return _lines(folder) if not sys.stdout.isatty() else _table(folder)


def _table(folder: Path) -> int:
    console = Console()
    view = look(folder)
    with Live(render(view, console.height), console=console, auto_refresh=False) as shown:
        while view.exit_code is None:
            time.sleep(EVERY)
            view = look(folder)
            shown.update(render(view, console.height), refresh=True)
    _say_end(view)
    return view.exit_code


def _lines(folder: Path) -> int:
    known: dict[str, str] = {}
    told: dict[str, float] = {}
    while True:
        view = look(folder)
        for step in view.steps:
            changed = known.get(step.id, "waiting") != step.state
            due = step.share is not None and time.monotonic() - told.get(step.id, 0.0) >= LINE_SECONDS
            if changed or due:
                known[step.id], told[step.id] = step.state, time.monotonic()
                parts = [step.state, step.text, _metrics(step)]
                click.echo(f"{time.strftime('%H:%M:%S')} {step.id}: {', '.join(part for part in parts if part)}")
        if view.exit_code is not None:
            _say_end(view)
            return view.exit_code
        sys.stdout.flush()
        time.sleep(EVERY)


def _say_end(view: RunView) -> None:
    if view.gone:
        click.echo(f"The run {view.id} has no process any more. Go on by:\n  {view.resume}")
    elif view.reason:
        click.echo(view.reason)
    else:
        click.echo(f"The run {view.id} has ended: {view.status}.")


def render(view: RunView, height: int) -> RenderableType:
    """The run as it is now, in at most `height` lines where that is possible."""
    left = f" · about {duration(view.left)} left" if view.left and view.left >= 1 and view.exit_code is None else ""
    head = Text.assemble((view.id, "bold"), f" · {view.status} · {view.ended} of {len(view.steps)} steps · ",
                         f"{duration(view.seconds)}{left}")  # fmt: skip
    table = Table("step", "state", "progress", "time", "left", "measured", "at", box=None, pad_edge=False)
    for row in _shown(view.steps, height - _ROWS):
        if isinstance(row, str):
            table.add_row(Text(row, style="dim"))
            continue
        bar = ProgressBar(total=1.0, completed=row.share, width=16) if row.share is not None else ""
        table.add_row(
            row.id,
            Text(row.state, style=_STYLES.get(row.state, "")),
            bar,
            "" if row.seconds is None else duration(row.seconds),
            "" if row.left is None else duration(row.left),
            Text(_metrics(row), no_wrap=True, overflow="ellipsis"),
            Text(row.text, no_wrap=True, overflow="ellipsis"),
        )
    parts: list[RenderableType] = [head, "", table]
    if view.warnings:
        more = f" (and {len(view.warnings) - 1} more)" if len(view.warnings) > 1 else ""
        parts += ["", Text(f"warning: {view.warnings[-1]}{more}", style="yellow", no_wrap=True, overflow="ellipsis")]
    return Group(*parts)


def _shown(steps: Sequence[StepView], room: int) -> Iterator[StepView | str]:
    """All steps or, where there isn't room for them, those that run and the next to them, the others counted."""
    if len(steps) <= room:
        yield from steps
        return
    running = [i for i, step in enumerate(steps) if step.state in ("running", "failed")]
    ended = sum(step.state in ENDED for step in steps)
    middle = running[0] if running else min(ended, len(steps) - 1)
    keep = max(1, room - 2)
    first = max(0, min(middle - keep // 3, len(steps) - keep))
    if first:
        yield f"… {first} steps before"
    yield from steps[first : first + keep]
    if after := len(steps) - first - keep:
        yield f"… {after} steps after"


def _metrics(step: StepView) -> str:
    return ", ".join(f"{title} {_number(value)}" for title, value in step.metrics.items())


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
