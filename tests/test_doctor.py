"""`vibethinker doctor` against servers that answer, fail or aren't there."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from vibethinker import config as configuration
from vibethinker import doctor
from vibethinker.cli import cli

NAMES = ["gpu", "versions", "plugins", "sandbox", "disk", "prefect", "mlflow", "hub", "slack", "leases"]


@pytest.fixture
def server():
    """The address of a server that answers with the status its path names."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(int(self.path.strip("/").split("/")[0]))
            self.end_headers()

        def log_message(self, *_): ...

    with HTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("PREFECT_API_URL", "SLACK_WEBHOOK_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_everything_is_looked_at_and_told_with_its_mend(tmp_path):
    done = CliRunner().invoke(cli, ["doctor", "--json", "--workspace", str(tmp_path)])
    findings = json.loads(done.stdout)
    assert [finding["name"] for finding in findings] == NAMES
    assert all(finding["mend"] for finding in findings if finding["state"] != "ok")
    assert done.exit_code == any(finding["state"] == "failure" for finding in findings)
    lines = CliRunner().invoke(cli, ["doctor", "--workspace", str(tmp_path)]).stdout.splitlines()
    assert [line.split()[1] for line in lines] == NAMES


def test_a_server_that_answers_is_ok_and_others_are_not(server, monkeypatch, tmp_path):
    for path, state in (("200", "ok"), ("500", "failure")):
        monkeypatch.setenv("PREFECT_API_URL", f"{server}/{path}")
        assert doctor.prefect().state == state
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert doctor.prefect().state == "failure"
    monkeypatch.setenv("PREFECT_API_URL", f"{server.replace('//', '//someone:hush@')}/200")
    assert doctor.prefect() == doctor.Finding("prefect", "ok", f"{server}/200 answers")
    for path, state in (("200", "ok"), ("500", "warning")):
        config = configuration.load("tiny", overrides=[f"tracking.uri={server}/{path}"])
        assert doctor.mlflow(config, tmp_path).state == state


@pytest.mark.parametrize("address", ["http://me:secret@127.0.0.1:1", "postgresql://me:secret@127.0.0.1/mlflow"])
def test_no_password_is_told(tmp_path, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    text = doctor.mlflow(configuration.load("tiny", environ={}), tmp_path).text
    assert "127.0.0.1" in text
    assert "secret" not in text


def test_a_damaged_store_and_a_full_or_foreign_folder_are_failures(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_text("no database, though long enough to be read as one" * 30)
    assert doctor.mlflow(configuration.load("tiny"), tmp_path).state == "failure"
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: doctor.shutil._ntuple_diskusage(10**12, 10**12, 10**6))
    assert doctor.disk(tmp_path).state == "failure"


@pytest.mark.slow
def test_without_a_sandbox_a_run_of_programs_fails(tmp_path):
    refused = ["sandbox.tier=rlimits", "sandbox.allow_unsafe=false"]
    assert doctor.sandbox(configuration.load("tiny", overrides=refused)).state == "failure"
    assert doctor.sandbox(configuration.load("tiny", overrides=["sandbox.tier=rlimits"])).state == "warning"


@pytest.mark.parametrize(
    ("address", "state"), [("", "warning"), ("hooks.slack.com/x", "failure"), ("https://hooks.slack.com/x", "ok")]
)
def test_a_webhook_must_be_an_address(monkeypatch, address, state):
    monkeypatch.setenv("SLACK_WEBHOOK_URL", address)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert doctor.slack().state == state


def test_a_folder_that_is_not_there_yet_is_judged_by_its_parent(tmp_path):
    assert doctor.disk(tmp_path / "a" / "b") == doctor.Finding(
        "disk", doctor.disk(tmp_path).state, doctor.disk(Path(tmp_path) / "a" / "b").text, doctor.disk(tmp_path).mend
    )


def test_leases_need_nothing_on_a_cpu_and_a_server_that_is_none_is_told_of(server, monkeypatch):
    config = configuration.load("tiny", environ={})
    assert [(finding.state, finding.mend) for finding in doctor.leases(config)] == [("ok", "")]
    for address in (f"{server}/200", "http://127.0.0.1:1/api", "nonsense"):
        monkeypatch.setenv("PREFECT_API_URL", address)
        [finding] = doctor.leases(config)
        assert finding.state == "warning"
        assert finding.text.startswith("Prefect's server doesn't tell who holds its GPUs (")
