"""`vibethinker run`: the pipeline as a Prefect flow, on the server that PREFECT_API_URL names or on one of its own.

Order matters for speed: the server and the worker's imports take 10 to 15 s each, so both are started before Prefect
is imported here. When everything is published already, neither starts.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import time
import tomllib
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

import click

from flows.processes import SAME_SECONDS
from flows.server import check_approvals
from vibethinker import preflight, runs
from vibethinker.artifacts import Store, check_workspace
from vibethinker.commands.inspect import show_plan
from vibethinker.commands.options import Planned, plan_options, planned
from vibethinker.errors import BudgetError, ConfigurationError, InfrastructureError, VibeThinkerError
from vibethinker.plan import StepState, states
from vibethinker.redaction import passwords, redact

FULL = 1 << 20  # bytes free, below which a failure of the server's is the disk's
RETRIES = 8  # of a request to Prefect, the wait before each doubled, about 8 minutes in all


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
    _stop_at_signals()
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


def _stop_at_signals() -> None:
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
    from flows.server import Server, deliver, environment
    from tasks import session
    from tasks.leases import create_limits

    workspace = asked.plan.workspace
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", str(RETRIES))
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the display tells the same
    logging.raiseExceptions = False  # else each line of log that a server doesn't take is told on the terminal
    with ExitStack() as stack:
        server, address, home = None, configured_api(), workspace / "prefect"
        if not address:
            server = Server(home, home / "server.log")
            stack.callback(server.close)
            os.environ.update(environment(home) | {"PREFECT_API_URL": server.url})
        if tier:
            click.echo(f"Programs run in the sandbox tier {tier}.", err=True)
        shown = stack.enter_context(display(asked.plan))
        current = stack.enter_context(session.opened(asked.plan, shown, asked.refresh, tier))
        resume = current.run.resume_command
        if current.run.goes_on:
            click.echo(f"The run {current.run.id} goes on.", err=True)
        try:
            from flows.pipeline import pipeline

            if server:
                server.wait()
                server.give_way(session.GIVE_WAY)
                stack.enter_context(create_limits(asked.config, home))
            try:
                summary = pipeline(profile=asked.config.profile, workspace=str(workspace))
            finally:
                if server:
                    deliver()
        except BudgetError as error:
            click.echo(f"The run {current.run.id} is paused. With a larger budget, go on by:\n  {resume}", err=True)
            raise error
        except VibeThinkerError as error:
            click.echo(f"The run {current.run.id} failed. When the cause is mended, go on by:\n  {resume}", err=True)
            raise error
        except Exception as error:
            if reason := _of_the_disk(error, workspace):
                raise InfrastructureError(
                    f"The workspace {workspace} can't be written ({reason}): mend that, and go on by:\n  {resume}"
                ) from error
            if not _of_the_server(error):
                raise
            reason = f"{type(error).__name__}: {str(error) or 'no message'}".splitlines()[0]
            where = f"at {address}" if address else "of the run's own"
            mend = "see that it runs and answers" if address else f"its last words are in {home / 'server.log'}"
            raise InfrastructureError(
                f"Prefect's server {where} failed the run ({reason}): {mend}, and go on by:\n  {resume}"
            ) from error
        except KeyboardInterrupt:
            click.echo(f"The run {current.run.id} was interrupted. Go on by:\n  {resume}", err=True)
            raise
        return summary


def _of_the_disk(error: Exception, workspace: Path) -> str | None:
    """Why the workspace can't be written, if that is the cause; a server whose disk is full fails without a reason."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        return error.strerror
    full = shutil.disk_usage(workspace).free < FULL
    return os.strerror(errno.ENOSPC) if full and _of_the_server(error) else None


def _of_the_server(error: Exception) -> bool:
    """Whether the server or the way to it is the cause; an unreachable one is a RuntimeError of Prefect's client."""
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    of_client = isinstance(error, (PrefectHTTPStatusError, httpx.HTTPError))
    return of_client or str(error).startswith("Failed to reach API")


def configured_api() -> str | None:
    """The API address that the environment or Prefect's active profile names, without importing Prefect."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH", home / "profiles.toml")).expanduser()
    try:
        profiles = tomllib.loads(path.read_text())
    except (OSError, ValueError):
        return None
    name = os.environ.get("PREFECT_PROFILE", profiles.get("active", ""))
    return profiles.get("profiles", {}).get(name, {}).get("PREFECT_API_URL")
