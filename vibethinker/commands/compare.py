"""`vibethinker compare`: is one model better than another, on the same problems?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from vibethinker.commands.measuring import print_table
from vibethinker.commands.options import workspace_option


@click.command(epilog="Example: vibethinker compare base.json tuned.json --output difference.json")
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option("--k", type=click.IntRange(min=1), help="Compare pass@K too.")
@click.option("--anyway", is_flag=True, help="Compare although the two were measured in other ways.")
@click.option("--output", metavar="FILE", type=click.Path(path_type=Path), help="JSON file for the result.")
@workspace_option
def compare(first: str, second: str, k: int | None, anyway: bool, output: Path | None, workspace: str | None) -> None:
    """Compare B with A on the problems that both were measured on, problem by problem.

    A and B are outputs of `vibethinker evaluate`, folders of published evaluations, or models of runs: `base`,
    `fusion`, `signal-1`, `final` of the workspace's latest run, RUN:MODEL of another. Each difference is B minus A,
    with its 95 % paired bootstrap interval over problems and the p-value of a paired sign-flip test.
    """
    from vibethinker import config
    from vibethinker.artifacts import write_json
    from vibethinker.errors import ConfigurationError, VibeThinkerError
    from vibethinker.evaluation.comparison import comparisons
    from vibethinker.evaluation.measured import common, differences, load

    place = config.workspace(workspace)
    a, b = load(first, place), load(second, place)
    if not common(a, b):
        raise ConfigurationError(
            f"Not comparable: {first} was measured on {', '.join(a.sets) or 'nothing'} and {second} on "
            f"{', '.join(b.sets) or 'nothing'}: evaluate both on the same sets."
        )
    told = differences(a, b)
    if told and not anyway:
        raise VibeThinkerError(
            f"Not comparable: {'; '.join(told)}: evaluate both in the same way, or pass --anyway to compare what "
            "problems they share."
        )
    found = comparisons(a.rows, b.rows, common(a, b), k)
    print_table("set", {_title(one): _row(one) for one in found})
    for text in told:
        click.echo(f"Warning: {text}.", err=True)
    alone = [name for name in (*a.sets, *b.sets) if name not in common(a, b)]
    if alone:
        click.echo(f"Left out, since only one was measured on it: {', '.join(alone)}.", err=True)
    if output is not None:
        write_json(output, {"schema": 1, "a": first, "b": second, "comparable": not told, "reasons": told,
                            "comparisons": found})  # fmt: skip


def _title(one: dict[str, Any]) -> str:
    return f"{one['set'] or 'all'} {one['metric']}"


def _row(one: dict[str, Any]) -> dict[str, str]:
    return {
        "problems": str(one["problems"]),
        "A": f"{one['a']:.3f}",
        "B": f"{one['b']:.3f}",
        "B − A": f"{one['difference']:+.3f} ({one['low']:+.3f} to {one['high']:+.3f})",
        "p": f"{one['p']:.4f}" if one["p"] >= 0.0001 else "< 0.0001",
        "": "significant" if one["significant"] else "",
    }
