"""The parts of a service: Prefect's server, MLflow's and a worker, as they are kept, started and waited for."""

from __future__ import annotations

import json
import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import click

from flows import processes
from flows.processes import MARK, Process
from vibethinker import telemetry
from vibethinker.artifacts import write_json
from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.tracking.addresses import without_password

SCHEMA = 1
START_SECONDS = 180.0  # for a server or worker, on a machine that is busy
LOOK_SECONDS = 0.2
NAMES = {"prefect": "Prefect's server", "mlflow": "MLflow", "worker": "The worker"}


@dataclass
class Part:
    """One of the three: its address (none for a worker), which `up` gave it unless somebody else runs it, and its
    process, which `down` ends while the address stays."""

    url: str = ""
    process: Process | None = None
    ours: bool = False

    @property
    def alive(self) -> bool:
        """Whether the process that was started runs still."""
        return self.process is not None and self.process.alive


@dataclass
class State:
    """What `up` has started in a workspace."""

    folder: Path
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    prefect: Part = field(default_factory=Part)
    mlflow: Part = field(default_factory=Part)
    worker: Part = field(default_factory=Part)

    @classmethod
    def read(cls, folder: Path) -> State:
        """The state in this folder, or a new one."""
        path = folder / "state.json"
        try:
            values = json.loads(path.read_text())
        except FileNotFoundError:
            return cls(folder)
        except ValueError:
            raise ConfigurationError(f"{path} can't be read: stop what runs by hand, and remove it.") from None
        if values.pop("schema") != SCHEMA:
            raise ConfigurationError(f"{path} is of another version: run that version's `down` first.")
        parts = {}
        for name in NAMES:
            process = values[name]["process"]
            ours = values[name].get("ours", process is not None)
            parts[name] = Part(values[name]["url"], Process(**process) if process else None, ours)
        return cls(folder, **{**values, **parts})

    @property
    def parts(self) -> dict[str, Part]:
        """Name → part."""
        return {name: getattr(self, name) for name in NAMES}

    def stopped(self) -> None:
        """Keep our addresses alone: what `up` has told people to set still means ours when it is run again."""
        for name, part in self.parts.items():
            setattr(self, name, Part(part.url, None, True) if part.ours else Part())
        self.write()

    def write(self) -> None:
        """Keep it; before anything is waited for, so that `down` knows of it."""
        values = asdict(self)
        del values["folder"]
        write_json(self.folder / "state.json", {"schema": SCHEMA, **values})


def environ_of(state: State) -> dict[str, str]:
    """Of everything that is started; what the user has set, stays."""
    return {**telemetry.OFF, "PREFECT_CLI_COLORS": "false", **os.environ, MARK: state.mark}


def is_ours(part: Part, named: str) -> bool:
    """Whether an address that the environment names is one that `up` gave, and nobody else has taken since."""
    same = part.ours and named.rstrip("/") == part.url
    return same and (part.process is not None or _answer(f"{part.url}/health")[0] is not None)


def port_of(part: Part, asked: int | None, default: int, option: str) -> int:
    """Where a server of ours listens, or is to."""
    known = int(part.url.removesuffix("/api").rpartition(":")[2]) if part.ours else None
    if part.process and asked and asked != known:
        raise ConfigurationError(f"This workspace's service uses port {known}: run `down` before you change {option}.")
    port = asked or known or default
    if not part.alive:
        processes.free_port(port, option)
    return port


def refuse_change(part: Part, named: str, variable: str) -> None:
    """Refuse a server of somebody else's while ours runs."""
    if part.alive:
        raise ConfigurationError(
            f"This workspace's service uses its own server at {part.url}, and {variable} names "
            f"{without_password(named)}: run `down` first, or unset it."
        )


def start(state: State, part: Part, command: list[str], environ: dict[str, str], log: str) -> None:
    """Start a part's process."""
    part.ours = True
    part.process = processes.start(command, environ, state.folder / log, state.folder)
    state.write()


def existing(what: str, named: str, variable: str) -> Part:
    """A server of somebody else's, by its address without a password; those that want one answer without it, too.

    Raises:
        InfrastructureError: it doesn't answer.
    """
    address = without_password(named)
    reason, _ = _answer(f"{address.rstrip('/')}/health")
    if reason:
        raise InfrastructureError(
            f"{what}, which {variable} names, doesn't answer ({reason}): start it, or unset {variable} so that `up` "
            "starts one."
        )
    return Part(address)


def until_answers(part: Part, name: str, state: State, begun: bool, *addresses: str) -> str:
    """Wait until our server shows all these pages; its name, if it was `begun` just now, else nothing."""
    until(lambda: all(_answer(address) == (None, True) for address in addresses), part, name, state)
    if not begun:
        return ""
    assert part.process
    click.echo(f"{NAMES[name]} answers (process {part.process.pid}).")
    return name


def until(true: Callable[[], bool], part: Part, name: str, state: State) -> None:
    """Wait for a part.

    Raises:
        InfrastructureError: it ended, or took longer than START_SECONDS.
    """
    limit, log = time.monotonic() + START_SECONDS, state.folder / f"{name}.log"
    while not true():
        if not part.alive:
            raise InfrastructureError(f"{NAMES[name]} ended at its start: {log} has its last words.")
        if time.monotonic() > limit:
            raise InfrastructureError(
                f"{NAMES[name]} runs and isn't ready after {START_SECONDS:.0f} s: see {log}, and run `down` first."
            )
        time.sleep(LOOK_SECONDS)


def _answer(address: str) -> tuple[str | None, bool]:
    """Why a server doesn't answer, or None; and whether it shows the page, which may need a key."""
    try:
        with urllib.request.urlopen(address, timeout=5):
            return None, True
    except urllib.error.HTTPError as error:
        return (None if error.code < 500 else f"status {error.code}"), False
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error)), False
