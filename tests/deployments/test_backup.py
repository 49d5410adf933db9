"""What docs/operating.md says of backups is done, command by command: what was there before is there again."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from flows.server import Server
from tests import postgres
from tests.docs.blocks import ROOT, blocks
from tests.flows.serving import Service, started

pytestmark = [pytest.mark.service, pytest.mark.long, pytest.mark.timeout(1800)]


@pytest.fixture
def page(request: pytest.FixtureRequest) -> list[str]:
    """The page's blocks that say that this test runs them, in their order."""
    found = blocks(ROOT / "docs" / "operating.md")
    return [block.text for block in found if block.said.endswith(f"::{request.node.name}")]


def execute(text: str, folder: Path, environ: Mapping[str, str]) -> None:
    paths = [
        str(Path(sys.executable).parent),
        *([str(postgres.programs())] if postgres.programs() else []),
        os.environ["PATH"],
    ]
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail\n{text}"], cwd=folder, env={**environ, "PATH": ":".join(paths)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def note(prefect: str, name: str) -> None:
    httpx.post(f"{prefect}/variables/", json={"name": name, "value": name}, timeout=30).raise_for_status()


def noted(prefect: str) -> list[str]:
    rows = httpx.post(f"{prefect}/variables/filter", json={}, timeout=30).raise_for_status().json()
    return [row["name"] for row in rows]


def experiments(service: Service) -> set[str]:
    url = f"{service.state['mlflow']['url']}/api/2.0/mlflow/experiments/search"
    rows = httpx.post(url, json={"max_results": 100}, timeout=30).raise_for_status().json()["experiments"]
    return {row["name"] for row in rows}


@pytest.mark.skipif(shutil.which("sqlite3") is None, reason="sqlite3 isn't installed")
def test_a_service_on_sqlite_is_restored_from_its_backup(page: list[str], tmp_path: Path) -> None:
    stopped, running, restored, upgraded = page
    with started(tmp_path) as (service, _):
        prefect = service.state["prefect"]["url"]
        create = f"{service.state['mlflow']['url']}/api/2.0/mlflow/experiments/create"
        note(prefect, "before")
        httpx.post(create, json={"name": "before"}, timeout=30).raise_for_status()
        execute(stopped, tmp_path, service.environ)
        note(prefect, "after")
        httpx.post(create, json={"name": "after"}, timeout=30).raise_for_status()
        execute(running, tmp_path, service.environ)
        with closing(sqlite3.connect(tmp_path / "prefect-backup.db")) as copy:
            # The service notes what it has deployed in a variable of its own.
            assert {name for (name,) in copy.execute("select name from variable")} >= {"before", "after"}
        execute(restored, tmp_path, service.environ)
        assert "before" in noted(prefect)
        assert "after" not in noted(prefect)
        assert "before" in experiments(service)
        assert "after" not in experiments(service)
        execute(upgraded, tmp_path, service.environ)


@contextmanager
def serving(address: str, folder: Path) -> Iterator[str]:
    """The address of Prefect's server on this database."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", address)
        server = Server(folder, folder / "server.log")
        try:
            server.wait()
            yield server.url
        finally:
            server.close()


@pytest.mark.skipif(postgres.programs() is None, reason="PostgreSQL isn't installed")
def test_databases_on_postgresql_are_restored_from_their_dumps(page: list[str], tmp_path: Path) -> None:
    import mlflow

    dumped, restored = page
    with postgres.cluster("prefect", "mlflow") as made:
        who = f"{postgres.USER}:{quote(made.password, safe='')}@127.0.0.1:{made.port}"
        environ = {
            **os.environ, "PGHOST": "127.0.0.1", "PGPORT": str(made.port), "PGUSER": postgres.USER,
            "PGPASSWORD": made.password,
        }  # fmt: skip
        store = f"postgresql+psycopg://{who}/mlflow"
        with serving(f"postgresql+asyncpg://{who}/prefect", tmp_path / "home") as prefect:
            note(prefect, "before")
        mlflow.MlflowClient(store).create_experiment("before", artifact_location=tmp_path.as_uri())
        execute(dumped, tmp_path, environ)
        execute("dropdb --force prefect\ndropdb --force mlflow", tmp_path, environ)
        execute(restored, tmp_path, environ)
        with serving(f"postgresql+asyncpg://{who}/prefect", tmp_path / "home") as prefect:
            assert noted(prefect) == ["before"]
        assert mlflow.MlflowClient(store).get_experiment_by_name("before")
