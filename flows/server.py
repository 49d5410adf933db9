"""A Prefect server of the run's own, for when no PREFECT_API_URL is set.

It is started at once as its own process, so that its 10 to 15 s overlap with the worker's imports, keeps its database
in the workspace, listens on loopback only, and ends when the process that started it does: it watches its stdin. Where
it dies under a run, another one takes its place, on the same port and database; Prefect's client asks again meanwhile.
Prefect's own ephemeral server would outlive a SIGKILL of the flow process and keeps its database in the home folder.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

from vibethinker import locks, telemetry
from vibethinker.config import Config
from vibethinker.errors import ConfigurationError, InfrastructureError

START_SECONDS = 120.0
REPLACE_SECONDS, REPLACEMENTS = 2.0, 5  # wait before a dead one is replaced, and how often that is done
DELIVERY_SECONDS = 10.0
UNKNOWN_REVISION = "Can't locate revision identified by"  # alembic of a database that it doesn't know
# Where a server that outlives runs keeps leases: on its disk, in its home.
LEASES = {"PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem"}


class Server:
    """The server process; `url` is its API."""

    def __init__(self, home: Path, log: Path) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}/api"
        self._log, self._home = log, home
        self._environ = {**os.environ, **environment(home), "PREFECT_API_BLOCKS_REGISTER_ON_START": "false"}
        home.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        self._niceness, self._answered = 0, False
        self._closing, self._changing = threading.Event(), threading.Lock()
        self._process = self._start()
        threading.Thread(target=self._replace, name="prefect-server", daemon=True).start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "flows.server", str(self._port)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=self._environ,
                start_new_session=True,
            )

    def _replace(self) -> None:
        """Start it again when it dies after it has once answered; one that never does is told of by `wait`."""
        for _ in range(REPLACEMENTS):
            self._process.wait()
            if self._closing.wait(REPLACE_SECONDS) or not self._answered:
                return
            with self._changing:
                if self._closing.is_set():
                    return
                self._process = self._start()
                self.give_way(self._niceness)

    def wait(self) -> None:
        """Return once it answers.

        Raises:
            InfrastructureError: it ended, or took longer than START_SECONDS.
        """
        limit = time.monotonic() + START_SECONDS
        while time.monotonic() < limit and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    self._answered = True
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        if UNKNOWN_REVISION in self._log.read_text(errors="replace"):
            raise InfrastructureError(
                f"Prefect's server didn't start, since a later version of it has written its database in {self._home}: "
                "install that version, or move the database away."
            )
        raise InfrastructureError(f"Prefect's server didn't start: {self._log} has its last words.")

    def give_way(self, niceness: int) -> None:
        """Lower the priority of the server and all its threads."""
        self._niceness = niceness
        os.setpriority(os.PRIO_PGRP, self._process.pid, niceness)

    def close(self) -> None:
        """Stop it."""
        with self._changing:
            self._closing.set()
        assert self._process.stdin
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def deliver() -> None:
    """Send this process's states and logs that Prefect still holds back, before the server is closed."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    EventsWorker.drain_all(timeout=DELIVERY_SECONDS, at_exit=False)
    APILogWorker.drain_all(timeout=DELIVERY_SECONDS, at_exit=False)


def environment(home: Path) -> dict[str, str]:
    """Prefect's settings for a run on its own server; nothing calls home."""
    return telemetry.OFF | {
        "PREFECT_HOME": str(home),
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
        "PREFECT_CLI_COLORS": "false",
    }


def is_temporary(workspace: Path) -> bool:
    """Whether this process uses a server of its own run in this workspace, at which nobody can look later."""
    return os.environ.get("PREFECT_HOME") == str(workspace / "prefect")


def check_approvals(config: Config, address: str | None) -> None:
    """Refuse to ask for approvals on a server that ends with its run, since nobody could answer there.

    Raises:
        ConfigurationError: the configuration wants them, and no server is configured.
    """
    wanted = [name for name in ("signal", "promotion") if getattr(config.approvals, name)]
    if wanted and not address:
        raise ConfigurationError(
            f"approvals.{wanted[0]} needs a Prefect server that people can open, and this run would have one of its "
            "own: start one by `vibethinker up` and name it by PREFECT_API_URL, or leave the setting off."
        )


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


def lasting(home: Path) -> dict[str, str]:
    """Prefect's settings for a server that outlives runs. It keeps leases on disk, since one that forgets them when it
    is started again leaves their slots taken for good. A run's own server forgets them on purpose: `create_limits`
    frees what they held, and a lease that ended later would free the next run's."""
    return environment(home) | LEASES


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _serve(port: int) -> None:
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    class OneAtATime(uvicorn.Server):
        """Servers of one workspace share a database, and two that create its tables at once both fail."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            with locks.held(Path(os.environ["PREFECT_HOME"]) / "starting.lock"):
                await super().startup(sockets)

    app = create_app(ephemeral=True)
    OneAtATime(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error")).run()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
