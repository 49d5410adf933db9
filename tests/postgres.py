"""A PostgreSQL cluster of a test's own, by a user who isn't root, that listens on loopback and asks for a password."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows.server import free_port

WHERE = ("/usr/lib/postgresql/*/bin/initdb", "/usr/pgsql-*/bin/initdb", "/opt/homebrew/opt/postgresql*/bin/initdb")
USER = "vibethinker"


@dataclass(frozen=True)
class Cluster:
    """Where to connect to, on 127.0.0.1, as USER."""

    port: int
    password: str


def programs() -> Path | None:
    """The folder of the newest PostgreSQL's programs; None where there is none."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    places = sorted((path for pattern in WHERE for path in Path("/").glob(pattern[1:])), key=lambda p: p.parts)
    return places[-1].parent if places else None


@contextmanager
def cluster(*databases: str) -> Iterator[Cluster]:
    """A running cluster with these databases."""
    found = programs()
    assert found, "PostgreSQL isn't installed"
    # Another user must get there, and a socket's path has to be short.
    home = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    made = Cluster(free_port(), f"p@ss:w/rd%-{secrets.token_hex(8)}")  # as no address takes it unquoted
    runs_as = {"user": "nobody"} if os.getuid() == 0 else {}
    (home / "password").write_text(made.password)
    for path in (home, home / "password") if runs_as else ():
        shutil.chown(path, "nobody")
    environ = {**os.environ, "PGPASSWORD": made.password, "PGHOST": "127.0.0.1", "PGPORT": str(made.port)}
    how = {"cwd": home, "env": environ, **runs_as}

    def command(program: str, *arguments: str) -> list[str]:
        return [str(found / program), *arguments]

    initdb = ["-D", f"{home}/data", "-U", USER, "-A", "scram-sha-256", "--pwfile", f"{home}/password", "--no-sync"]
    subprocess.run(command("initdb", *initdb), check=True, stdout=subprocess.DEVNULL, **how)
    options = [f"port={made.port}", "listen_addresses=127.0.0.1", "fsync=off"]  # no machine dies in a test
    serve = command("postgres", "-D", f"{home}/data", "-k", str(home))
    serve += [word for option in options for word in ("-c", option)]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(serve, stdout=log, stderr=log, **how)
    try:
        while subprocess.run(command("pg_isready", "-q"), **how).returncode:
            assert server.poll() is None, (home / "log").read_text()
            time.sleep(0.1)
        for name in databases:
            subprocess.run(command("createdb", "-U", USER, name), check=True, **how)
        yield made
    finally:
        server.send_signal(signal.SIGINT)  # which waits for no client
        server.wait()
        shutil.rmtree(home)
