"""`vibethinker doctor`: what this machine offers a run."""

from __future__ import annotations

import json
import sys

import click

from vibethinker import config as configuration
from vibethinker.commands.options import configuration_options, workspace_option

_MARKS = {"ok": "ok     ", "warning": "warning", "failure": "FAILURE"}


@click.command(epilog="Example: vibethinker doctor --profile qwen3-0.6b")
@configuration_options
@workspace_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array instead of lines.")
def doctor(
    profile: str | None, file: str | None, overrides: tuple[str, ...], workspace: str | None, as_json: bool
) -> None:
    """Look at GPU, versions, plugins, sandbox, disk, Prefect, MLflow, hub, Slack and who holds which GPU; exit 1 if one
    of them fails a run."""
    from vibethinker.doctor import FAILURE, examine

    config = configuration.load(profile, file, overrides)
    findings = []
    for finding in examine(config, configuration.workspace(workspace)):
        findings.append(finding)
        if not as_json:
            mend = f" ({finding.mend})" if finding.mend else ""
            click.echo(f"{_MARKS[finding.state]}  {finding.name:<9} {finding.text}{mend}")
    if as_json:
        click.echo(json.dumps([finding.row() for finding in findings], indent=1))
    sys.exit(any(finding.state == FAILURE for finding in findings))
