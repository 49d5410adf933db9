"""`vibethinker run` and `experiment`: Prefect flows, on the server that PREFECT_API_URL names or on one of its own.

Order matters for speed: the server and the worker's imports take 10 to 15 s each, so both are started before Prefect
is imported here. When everything is published already, neither starts.
"""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import click

from flows.processes import SAME_SECONDS
from flows.server import check_approvals, configured_api
from vibethinker import config as configuration
from vibethinker import preflight, runs
from vibethinker.artifacts import Store, check_workspace
from vibethinker.commands.inspect import show_experiment, show_plan
from vibethinker.commands.options import Planned, plan_options, planned, workspace_option
from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.plan import StepState, states
from vibethinker.redaction import passwords, redact


@click.command()
@plan_options
@click.option("--dry-run", is_flag=True, help="Show the plan and execute nothing.")
def run(dry_run: bool, **options: Any) -> None:
    """Run the whole recipe; run again, it resumes.

    Example: vibethinker run --profile tiny --set signal.stages.0.steps=100
    """
    asked = planned(**options)
    if dry_run:
        show_plan(asked)
        return
    stop_at_signals()
    preflight.check(asked.plan)
    found = states(asked.plan, Store(asked.plan.workspace), asked.refresh)
    published = all(s.state == "cached" for s in found.values())
    tier = preflight.try_sandbox(asked.config) if asked.config.runs_code() and not published else None
    check_workspace(asked.plan.workspace)
    # A run that died after its last step still has to be told of as finished, in Prefect and MLflow.
    finished = published and not runs.unfinished(asked.plan.workspace, asked.plan.fingerprints)
    if finished:
        _deliver_left_over(asked)
        _share(asked)
    else:
        check_approvals(asked.config, configured_api())
    summary = _reuse(asked, found) if finished else _execute(asked, tier)
    from vibethinker.reporting import text

    click.echo(text.summarise(summary, asked.plan.workspace))


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@workspace_option
@click.option("--set", "overrides", multiple=True, metavar="A.B=V", help="Override what the arms share; repeatable.")
@click.option("--dry-run", is_flag=True, help="Show what arms share, what is there and what is to run.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: print one JSON object instead of a table.")
def experiment(
    file: Path, workspace: str | None, overrides: tuple[str, ...], dry_run: bool, as_json: bool
) -> None:  # fmt: skip
    """Compare arms of the recipe with a control over several seeds; run again, it resumes.

    Example: vibethinker experiment docs/studies/mgpo.yaml --dry-run
    """
    from vibethinker.experiments import design, planning, report, study

    folder = configuration.workspace(workspace)
    values = design.overridden(design.read(file), overrides)
    made = design.make(values, folder)
    if dry_run:
        show_experiment(planning.document(made), as_json=as_json)
        return
    stop_at_signals()
    check_workspace(folder)
    resume = shlex.join([runs.program("vibethinker"), "experiment", str(made.folder / "experiment.yaml"),
                         "--workspace", str(folder)])  # fmt: skip
    if not study.ended(made):
        from flows.reached import reached

        with (
            reached(made.cells[0].config, folder) as server,
            server.telling(f"The experiment {made.id}", lambda: resume),
        ):
            from flows.experiment import experiment as flow

            server.wait()
            flow(design=values, workspace=str(folder))
    click.echo(report.summarise(study.read_result(made.folder), made.folder))


def stop_at_signals() -> None:
    """SIGINT and SIGTERM let the steps save what they have; a second SIGINT ends everything at once: the worker, its
    steps and the server end with this process. What runs this one may send one signal twice."""
    first: float | None = None

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            raise KeyboardInterrupt
        if number == signal.SIGINT and time.monotonic() - first > SAME_SECONDS:
            os.write(2, b"\nStopped at once; the same command goes on from what was saved.\n")
            os._exit(130)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _deliver_left_over(asked: Planned) -> None:
    """Send MLflow what it was not told of this workspace's runs, as it was away then."""
    from vibethinker.tracking import deliver_left_over, store_uri

    def warn(text: str) -> None:
        click.echo(f"Warning: {text}", err=True)

    workspace = asked.plan.workspace
    uri = store_uri(asked.config.tracking.uri, workspace)
    try:
        deliver_left_over(workspace / "runs", uri, workspace, warn)
    except Exception as error:  # of MLflow's client, anything
        reason = redact(" ".join(str(error).split()), passwords(uri))[:200]
        warn(f"measurements still wait for MLflow, which can't be written ({type(error).__name__}: {reason}).")


def _share(asked: Planned) -> None:
    """Put what an earlier run could not, or made without a shared store, into the store that is configured."""
    if asked.config.storage.url is None:
        return
    from vibethinker.remote import Remote

    remote, store, fingerprints = Remote(asked.config.storage.url), Store(asked.plan.workspace), asked.plan.fingerprints
    for step in asked.plan.steps:
        if artifact := store.read(step.id, step.fingerprint):
            inputs = {role: (i, fingerprints[i]) for role, i in step.inputs.items()}
            if reason := remote.share(artifact, inputs):
                click.echo(f"The output of {step.id} is not in {remote.url}: {reason}.", err=True)


def _reuse(asked: Planned, found: dict[str, StepState]) -> dict[str, Any]:
    """Everything is published: tell it from the manifests, in the folder of the run that made it if it is there."""
    try:
        summary = runs.read_summary(runs.latest(asked.plan.workspace, asked.plan.fingerprints))
        if summary["status"] == "completed":
            return summary
    except ConfigurationError:
        pass
    from vibethinker.exporting.card import write_run_card
    from vibethinker.reporting import html

    with runs.starting(asked.plan.workspace):
        made = runs.Run.begin(asked.plan, fresh=True)
        if any(made.store.read(s.id, s.fingerprint) is None for s in asked.plan.steps):
            raise InfrastructureError("Outputs were collected while the run looked at them: run the command again.")
        made.create(found)
    for step_id, state in found.items():
        made.update(step_id, "cached", state.artifact)
    summary = made.finish("completed")
    values = asked.config.model_dump(mode="json", by_alias=True)
    (made.folder / "report.html").write_text(html.render(made.report(), summary, values), encoding="utf-8")
    write_run_card(made)
    return summary


def _execute(asked: Planned, tier: str | None) -> dict[str, Any]:
    from flows.display import display
    from flows.reached import reached
    from tasks import session

    workspace = asked.plan.workspace
    with reached(asked.config, workspace) as server, display(asked.plan) as shown:
        if tier:
            click.echo(f"Programs run in the sandbox tier {tier}.", err=True)
        with session.opened(asked.plan, shown, asked.refresh, tier) as current:
            if current.run.goes_on:
                click.echo(f"The run {current.run.id} goes on.", err=True)
            with server.telling(f"The run {current.run.id}", lambda: current.run.resume_command):
                from flows.pipeline import pipeline

                server.wait()
                return pipeline(profile=asked.config.profile, workspace=str(workspace))
