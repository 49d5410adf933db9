"""`vibethinker join`: this machine's part in training steps that are spread over several."""

from __future__ import annotations

import click

from vibethinker import config as configuration
from vibethinker.artifacts import check_workspace
from vibethinker.commands.options import workspace_option


@click.command()
@click.option("--node", type=click.IntRange(min=1), required=True, metavar="N",
              help="This machine's number: from 1 to execution.nodes - 1.")  # fmt: skip
@click.option("--patience", type=click.FloatRange(min=0), default=1800.0, show_default=True,
              metavar="SECONDS", help="How long a call that can't be answered is tried; then this fails.")  # fmt: skip
@workspace_option
def join(node: int, patience: float, workspace: str | None) -> None:
    """Run this machine's ranks of the trainings of runs with execution.nodes > 1, until it is interrupted.

    The workspace has to be the runs' own, at the same path. A machine that dies while it waits for this one leaves a
    call that nobody can answer.

    Example: vibethinker join --node 1 --workspace /mnt/team/workspace
    """
    from vibethinker.worker.joining import join as take_part

    folder = configuration.workspace(workspace)
    check_workspace(folder)
    click.echo(f"Node {node} waits for trainings in {folder}.")
    take_part(folder, node, click.echo, patience)
