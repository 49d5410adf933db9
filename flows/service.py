"""`vibethinker up` and `down`: Prefect's server, MLflow's and a worker on this machine, which outlive the command.

`<workspace>/service/state.json` says what `up` has started. Run again, `up` starts what has died and nothing else;
`down` stops exactly what is written there, and flow runs of that worker's, and leaves the addresses for the next `up`.
A server that PREFECT_API_URL names, and an MLflow that MLFLOW_TRACKING_URI names, are used instead of ones started
here. Everything listens on loopback only.

MLflow serves the workspace's own store, so that runs made without `up` are there too.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import click

from flows import parts, processes
from flows.parts import NAMES, State
from flows.reached import RETRIES
from flows.server import LEASES, configured_api
from vibethinker import config as configuration
from vibethinker import locks
from vibethinker.artifacts import check_workspace
from vibethinker.commands.options import workspace_option
from vibethinker.runs import program

PREFECT_PORT, MLFLOW_PORT = 4200, 5000
# In the order in which they are stopped; the worker lets its flow runs save.
STOP_SECONDS = {"worker": processes.SAVE_SECONDS + processes.TELL_SECONDS + 15, "mlflow": 15.0, "prefect": 15.0}


@click.command()
@click.option(
    "--prefect-port", type=click.IntRange(1, 65535), help=f"Port of Prefect's server and UI [{PREFECT_PORT}]."
)
@click.option("--mlflow-port", type=click.IntRange(1, 65535), help=f"Port of MLflow [{MLFLOW_PORT}].")
@workspace_option
def up(prefect_port: int | None, mlflow_port: int | None, workspace: str | None) -> None:
    """Start Prefect's server, MLflow and a worker, and deploy everything; run again, it starts what has died.

    Example: vibethinker up --workspace workspace
    """
    folder = configuration.workspace(workspace)
    check_workspace(folder)
    with _alone(folder) as home:
        state = State.read(home)
        starting = [_prefect(state, prefect_port), _mlflow(state, folder, mlflow_port)]
        changed = [told for told in (ready() for ready in starting) if told]
        changed += _registered_and_working(state, folder)
    where = f" --workspace {workspace}" if workspace else ""
    click.echo("" if changed else "Everything runs already; nothing was changed.")
    click.echo(f"Prefect  {state.prefect.url.removesuffix('/api')}\nMLflow   {state.mlflow.url}")
    click.echo(f"\nStart a run:\n  export PREFECT_API_URL={state.prefect.url}")
    click.echo(f"  {program('prefect')} deployment run vibethinker/tiny")
    click.echo(f"Stop all of it:\n  {program('vibethinker')} down{where}")


@click.command()
@workspace_option
def down(workspace: str | None) -> None:
    """Stop what `vibethinker up` started, and nothing else; runs that are under way save what they have.

    Example: vibethinker down --workspace workspace
    """
    folder = configuration.workspace(workspace)
    nothing = f"Nothing runs that `up` started in {folder}."
    if not (folder / "service" / "state.json").exists():
        click.echo(nothing)
        return
    with _alone(folder) as home:
        state = State.read(home)
        if not any(part.process for part in state.parts.values()):
            click.echo(nothing)
            return
        for name, seconds in STOP_SECONDS.items():
            part = state.parts[name]
            if part.alive:
                assert part.process
                if name == "worker" and processes.flow_runs(state.mark, _ours(state)):
                    click.echo(processes.SAVING)  # which it sees to, and takes no more
                ended = processes.stop(part.process, seconds)
                how = "stopped" if ended else f"killed, since it didn't end in {seconds:.0f} s"
                click.echo(f"{NAMES[name]} (process {part.process.pid}) was {how}.")
            elif part.process:
                click.echo(f"{NAMES[name]} had ended already.")
            elif part.url and not part.ours:
                click.echo(f"{NAMES[name]} at {part.url} goes on, since `up` hadn't started it.")
            if name == "worker":
                processes.stop_flow_runs(state.mark, _ours(state), click.echo)  # that have lost their worker
        state.stopped()
    click.echo("All is stopped.")


@contextmanager
def _alone(workspace: Path) -> Iterator[Path]:
    """The service's folder, while no other command changes it."""
    home = workspace / "service"

    @cache  # so that it is said once
    def waiting() -> None:
        click.echo(f"Another `up` or `down` is at work in {home}; waiting for its end.", err=True)

    with locks.held(home / "lock", waiting):
        yield home


def _ours(state: State) -> set[int]:
    return {part.process.pid for part in state.parts.values() if part.process}


# ---- Prefect's server ----


def _prefect(state: State, port: int | None) -> Callable[[], str]:
    """Start the server if it is needed; what is returned waits until it answers, and names it if it was started."""
    part, named = state.prefect, configured_api()
    home = state.folder / "prefect"
    if named and not parts.is_ours(part, named):
        parts.refuse_change(part, named, "PREFECT_API_URL")
        state.prefect = parts.existing("Prefect's server", named, "PREFECT_API_URL")
        return str
    port = parts.port_of(part, port, PREFECT_PORT, "--prefect-port")
    part.url = f"http://127.0.0.1:{port}/api"
    _use_own_server(part.url, home)
    begun = not part.alive
    if begun:
        environ = parts.environ_of(state) | LEASES
        environ |= {"PREFECT_UI_API_URL": part.url, "PREFECT_SERVER_API_HOST": "127.0.0.1"}
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        parts.start(state, part, command, environ, "prefect.log")
    pages = f"{part.url}/health", part.url.removesuffix("api")
    return lambda: parts.until_answers(part, "prefect", state, begun, *pages)


def _use_own_server(url: str, home: Path) -> None:
    """Make this process's client, and what it starts, use the server that `up` starts and none of the user's."""
    for name in ("PREFECT_PROFILES_PATH", "PREFECT_PROFILE", "PREFECT_API_KEY"):
        os.environ.pop(name, None)
    os.environ.update({"PREFECT_API_URL": url, "PREFECT_HOME": str(home)})


# ---- MLflow ----


def _mlflow(state: State, workspace: Path, port: int | None) -> Callable[[], str]:
    """As `_prefect`."""
    from vibethinker.tracking import store_uri
    from vibethinker.tracking.creation import create_store, sqlite_file

    part, named = state.mlflow, os.environ.get("MLFLOW_TRACKING_URI", "")
    if named.startswith(("http:", "https:")) and not parts.is_ours(part, named):
        parts.refuse_change(part, named, "MLFLOW_TRACKING_URI")
        state.mlflow = parts.existing("MLflow", named, "MLFLOW_TRACKING_URI")
        return str
    if named.startswith(("http:", "https:")):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    port = parts.port_of(part, port, MLFLOW_PORT, "--mlflow-port")
    part.url = f"http://127.0.0.1:{port}"
    begun = not part.alive
    if begun:
        uri, files = store_uri(None, workspace), workspace / "mlartifacts"
        if path := sqlite_file(uri):
            os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
            create_store(path, files)
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
            "--backend-store-uri", uri, "--artifacts-destination", files.resolve().as_uri(),
        ]  # fmt: skip
        environ = parts.environ_of(state) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environ.pop("MLFLOW_TRACKING_URI", None)
        parts.start(state, part, command, environ, "mlflow.log")
    return lambda: parts.until_answers(part, "mlflow", state, begun, f"{part.url}/health", part.url)


# ---- what the server has to know, and the worker ----


def _registered_and_working(state: State, workspace: Path) -> list[str]:
    """Tell the server what it has to know, and start the worker if it isn't there; both take seconds, so together."""
    from flows import registration

    made = registration.prepare()
    begun, name = not state.worker.alive, f"{socket.gethostname()}-{state.mark[:6]}"
    before = registration.heard(name) if begun else None
    if begun:
        environ = {
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
            "PREFECT_CLIENT_MAX_RETRIES": str(RETRIES),
            **parts.environ_of(state),
            configuration.WORKSPACE_VARIABLES[0]: str(workspace),
        }
        if state.mlflow.ours:  # somebody else's is in the environment, with its password
            environ["MLFLOW_TRACKING_URI"] = state.mlflow.url
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", registration.POOL, "--name", name]
        parts.start(state, state.worker, command, environ, "worker.log")
    made += registration.deploy(parts.environ_of(state))
    if made:
        click.echo(f"Registered: {', '.join(made)}.")
    parts.until(lambda: registration.heard(name) not in (None, before), state.worker, "worker", state)
    if begun:
        assert state.worker.process
        click.echo(f"The worker runs (process {state.worker.process.pid}).")
    return [*made, *(["worker"] if begun else [])]
