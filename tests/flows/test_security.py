"""What a run leaves behind has no secret of its environment, and nothing of it listens to other machines."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.flows.conftest import ROOT, Api, Finished
from tests.generation.fake_openai import Exchange, FakeOpenAI
from tests.leaks import PLANTED, Listening, beyond_loopback, leaks

pytestmark = pytest.mark.service

PASSWORD = "planted-password-of-mlflow"
CODE = """
import json, sys
from flows.pipeline import data_phase
data_phase(profile="micro", config=json.loads(sys.argv[1]), workspace=sys.argv[2])
"""


def test_a_finished_run_leaves_no_secret_anywhere(micro: Finished, api: Api) -> None:
    home, run = Path(api.environ["PREFECT_HOME"]), micro.summary["run_id"]
    for folder in (micro.workspace, home):
        assert not list(leaks(folder))
    found = [Path(line.partition(": ")[0]).name for line in leaks(micro.workspace, (run,))]
    assert {"mlflow.db", "summary.json", "manifest.json", "report.html", "plan.json"} <= set(found), "it is looked at"
    assert "prefect.db" in [Path(line.partition(": ")[0]).name for line in leaks(home, (run,))]
    assert not [word for word in PLANTED.values() if word in micro.output + micro.told]


def test_what_runs_listens_on_loopback_alone(micro: Finished) -> None:
    assert "127.0.0.1" in micro.listened, "Prefect's server was seen"
    assert not beyond_loopback(micro.listened)


def tell_all(exchange: Exchange) -> None:
    """Refuse, and repeat what was sent in the answer, as some servers do."""
    exchange.send({"error": {"message": f"no access with {exchange.headers}"}}, status=401)


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[str]]]:
    """A server's host that asks who comes, refuses, and repeats what it was told; and all that it was told."""
    told: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.append(self.headers.get("Authorization", ""))
            body = f'{{"error_code": "PERMISSION_DENIED", "message": "not {told[-1]}"}}'.encode()
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", told
        server.shutdown()


def test_a_failed_run_whose_servers_repeat_its_keys_leaves_none(
    api: Api, tmp_path: Path, refusing: tuple[str, list[str]]
) -> None:
    rows = [{"problem": f"Add w{i} to {i} and find x{i}.", "answer": str(i)} for i in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    workspace = tmp_path / "workspace"
    with FakeOpenAI(tell_all) as fake, Listening() as listening:
        config = {
            "domains": ["algebra"],
            "signal": {"stages": []},
            "execution": {"retries": 0},
            "data": {
                "source": "files",
                "directory": str(tmp_path),
                "train": [{"path": "train.jsonl", "domain": "algebra"}],
                "teacher": {"model": "sage", "engine": "server", "server": {"url": fake.url, "backoff": 0.01}},
            },
        }
        host, told = refusing
        tracking = {"MLFLOW_TRACKING_URI": f"http://site:{PASSWORD}@{host}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        done = subprocess.run(
            [sys.executable, "-c", CODE, json.dumps(config), str(workspace)],
            cwd=ROOT, env={**api.environ, **PLANTED, **tracking}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 1
        sent = {exchange.headers.get("Authorization") for exchange in fake.seen}
    assert f"Bearer {PLANTED['OPENAI_API_KEY']}" in sent
    assert f"Basic {b64encode(f'site:{PASSWORD}'.encode()).decode()}" in told
    words = (*PLANTED.values(), PASSWORD)
    (tmp_path / "printed").write_text(done.stdout + done.stderr)
    assert not list(leaks(tmp_path, words))
    assert not list(leaks(Path(api.environ["PREFECT_HOME"]), words))
    assert list(leaks(tmp_path, ("data.teacher.server",))), "what failed is told"
    assert not listening.telling
    assert not beyond_loopback(listening.addresses)
