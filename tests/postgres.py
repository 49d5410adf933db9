"""A PostgreSQL cluster of a test's own: by a user who isn't root, on a Unix socket alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WHERE = ("/usr/lib/postgresql/*/bin/initdb", "/usr/pgsql-*/bin/initdb", "/opt/homebrew/opt/postgresql*/bin/initdb")


def programs() -> Path | None:
    """The folder of the newest PostgreSQL's programs; None where there is none."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    places = sorted((path for pattern in WHERE for path in Path("/").glob(pattern[1:])), key=lambda p: p.parts)
    return places[-1].parent if places else None


@contextmanager
def cluster(*databases: str) -> Iterator[Path]:
    """A running cluster with these databases; its socket's folder is the host to connect to, as user `site`."""
    home, found = Path(tempfile.mkdtemp(prefix="pg-")), programs()
    assert found, "PostgreSQL isn't installed"
    user = {"user": "nobody"} if os.getuid() == 0 else {}
    if user:
        shutil.chown(home, "nobody")

    def command(program: str, *arguments: str) -> list[str]:
        return [str(found / program), *arguments]

    quiet = {"cwd": home, "check": True, "stdout": subprocess.DEVNULL, **user}
    initdb = command("initdb", "-D", f"{home}/data", "-U", "site", "-A", "trust", "-E", "UTF8", "--no-sync")
    subprocess.run(initdb, **quiet)
    serve = command("postgres", "-D", f"{home}/data", "-k", str(home), "-c", "listen_addresses=")
    with (home / "log").open("w") as log:
        server = subprocess.Popen(serve, cwd=home, stdout=log, stderr=log, **user)
    try:
        ready = command("pg_isready", "-q", "-h", str(home), "-U", "site", "-d", "postgres")
        while subprocess.run(ready).returncode:
            assert server.poll() is None, (home / "log").read_text()
            time.sleep(0.1)
        for name in databases:
            subprocess.run(command("createdb", "-h", str(home), "-U", "site", name), **quiet)
        yield home
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(home)
