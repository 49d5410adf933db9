"""`vibethinker gc`: what of a workspace no kept run needs, and its removal."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from vibethinker import collecting
from vibethinker import config as configuration
from vibethinker.collecting import Found, Keep, Unneeded
from vibethinker.commands.options import workspace_option
from vibethinker.errors import ConfigurationError

SCHEMA = 1
SECONDS = {"h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}
UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


class Age(click.ParamType):  # type: ignore[type-arg]  # generic in newer versions of click alone
    """An age as seconds: 12h, 30d, 4w."""

    name = "AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", str(value))
        if match is None:
            self.fail(f"{value!r} is no age: write hours, days or weeks as 12h, 30d, 4w.", param, ctx)
        return float(match[1]) * SECONDS[match[2]]


@click.command()
@click.option("--keep", default=5, show_default=True, metavar="N", type=click.IntRange(min=0),
              help="How many of the newest runs are kept.")  # fmt: skip
@click.option("--keep-run", "named", multiple=True, metavar="RUN", help="A run that is kept as well; repeatable.")
@click.option("--older-than", type=Age(), help="Remove nothing younger, such as 12h, 30d or 4w.")
@click.option("--apply", is_flag=True, help="Remove it; without, it is only shown.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@workspace_option
def gc(
    keep: int, named: tuple[str, ...], older_than: float | None, apply: bool, as_json: bool, workspace: str | None
) -> None:
    """Show what no kept run needs, and remove it with --apply.

    Kept are the newest runs, those that are alive or named, and every output that their plans name. Outputs, trainer
    checkpoints and folders of other runs go, with what was replaced and what dead processes have left.

    Example: vibethinker gc --keep 3 --apply
    """
    folder = configuration.workspace(workspace)
    if not folder.is_dir():
        raise ConfigurationError(f"There is no workspace {folder}: name another by --workspace.")
    keeping = Keep(keep, named, older_than)
    found = collecting.collect(folder, keeping) if apply else collecting.find(folder, keeping)
    if as_json:
        entries = {name: [_entry(one) for one in getattr(found, name)] for name in ("unneeded", "busy")}
        values = {"schema": SCHEMA, "applied": apply, "bytes": _total(found), "kept": found.kept, **entries}
        click.echo(json.dumps(values, indent=1, sort_keys=True))
        return
    _show(found, apply)


def _show(found: Found, applied: bool) -> None:
    table = Table("what", "which", "why", "size", box=None)
    table.columns[-1].justify = "right"
    for one in found.unneeded:
        table.add_row(one.what, _which(one), one.reason, _size(one.size))
    if found.unneeded:
        Console(width=None if sys.stdout.isatty() else 120).print(table)
    for one in found.busy:
        click.echo(f"Kept: {one.path} is in use.")
    for run, why in found.kept.items():
        click.echo(f"Kept: run {run} ({why}).")
    many = f"{len(found.unneeded)} things of {_size(_total(found))}"
    if not found.unneeded:
        click.echo("There is nothing to remove.")
    else:
        click.echo(f"Removed {many}." if applied else f"{many} can go: remove them by --apply.")


def _entry(one: Unneeded) -> dict[str, Any]:
    return {"what": one.what, "path": str(one.path), "reason": one.reason, "bytes": one.size}


def _which(one: Unneeded) -> str:
    """The thing's name, fingerprints shortened."""
    name = f"{one.path.parent.name}/{one.path.name}" if one.what in ("output", "checkpoints") else one.path.name
    return re.sub(r"([0-9a-f]{12})[0-9a-f]{52}", r"\1", name)


def _total(found: Found) -> int:
    return sum(one.size for one in found.unneeded)


def _size(count: int) -> str:
    for unit, size in UNITS:
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
