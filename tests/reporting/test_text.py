"""What a run prints at its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from vibethinker.reporting import text

RESUME = "vibethinker run --profile tiny"


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def workspace(tmp_path: Path, summary) -> Path:
    return made(tmp_path, summary["run_id"], None)


def made(workspace: Path, run_id: str, uri: str | None) -> Path:
    folder = workspace / "runs" / run_id
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"tracking": {"uri": uri}}))
    (folder / "state.json").write_text(json.dumps({"resume": RESUME, "started": 0.0}))
    return workspace


def test_it_is_short_and_says_what_was_achieved_and_where(summary, workspace):
    lines = text.summarise(summary, workspace).splitlines()
    assert len(lines) <= 40
    assert all(len(line) <= 100 for line in lines if str(workspace) not in line)
    shown = "\n".join(lines)
    assert "math avg@8" in shown and "code pass@8" in shown
    assert "fusion → signal-2" in shown and "base → fusion" in shown
    assert f"runs/{summary['run_id']}/report.html" in shown
    assert f"--backend-store-uri sqlite:///{workspace}/mlflow.db" in shown
    assert lines[-1] == f"  resume  {RESUME}"


def test_the_table_has_the_scores_of_the_report(summary, workspace):
    shown = text.summarise(summary, workspace)
    score = summary["steps"][-1]["metrics"]["scores"]["signal-2"]["math"]["avg@8"]
    assert f"{score['value'] * 100:.1f} [{score['low'] * 100:.1f}, {score['high'] * 100:.1f}]" in shown


def test_long_warnings_are_cut_and_many_are_counted(summary, workspace):
    summary = {**summary, "warnings": ["word " * 400] * 9}
    lines = text.summarise(summary, workspace).splitlines()
    assert len(lines) <= 40 and "  and 6 more warnings in the report" in lines


def test_a_failed_run_names_the_step_the_cause_and_the_way_on(workspace, summary):
    steps = [
        {"id": "data", "fingerprint": "ab", "state": "done", "seconds": 61.0, "metrics": {}},
        {"id": "base", "fingerprint": "cd", "state": "failed", "seconds": None, "metrics": {}, "error": "Disk full."},
        {"id": "report", "fingerprint": "ef", "state": "skipped", "seconds": None, "metrics": {}},
    ]
    failed = {**summary, "status": "failed", "steps": steps, "models": [], "comparisons": [], "warnings": []}
    shown = text.summarise(failed, workspace)
    assert "failed, 3 steps: 1 made, 1 failed, 1 not reached; 1 min 1 s of work" in shown
    assert "base: Disk full." in shown and RESUME in shown and "model" not in shown


def test_a_server_is_named_without_its_password(summary, tmp_path):
    workspace = made(tmp_path, summary["run_id"], "https://user:secret@mlflow.example/team")
    shown = text.summarise(summary, workspace)
    assert "https://mlflow.example/team" in shown and "secret" not in shown


def test_the_markdown_has_a_table_and_the_places_that_it_is_given(summary):
    places = [("MLflow", "http://127.0.0.1:5000/#/page"), ("Report", "/there/report.html")]
    shown = text.markdown({**summary, "warnings": ["a | <b> *c*"]}, places)
    assert "[MLflow](http://127.0.0.1:5000/#/page) · Report: `/there/report.html`" in shown
    assert "| model | math avg@8 | math pass@8 | code avg@8 | code pass@8 |" in shown
    assert "Signal: solved more often" in shown and r"a \| \<b\> \*c\*" in shown
    assert "/runs/" not in shown


def test_the_markdown_of_a_failed_run_says_why(summary):
    steps = [{**summary["steps"][0], "state": "failed", "error": "Disk full."}]
    shown = text.markdown({**summary, "status": "failed", "steps": steps, "models": [], "comparisons": []})
    assert "**data** failed: Disk full." in shown and "| model" not in shown
