"""A second machine, here a second workspace, goes on from what the first has put into the shared store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.flows.conftest import Api, Finished, vibethinker
from tests.stores import SECRET, s3
from vibethinker import validation

pytestmark = pytest.mark.service


@pytest.mark.long
def test_a_second_workspace_reuses_everything(api: Api, micro: Finished, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(micro.workspace / "artifacts", first / "artifacts")
    arguments = ("run", "--profile", "micro", "--set", "storage.url={url}", "--workspace")
    with s3("runs") as bucket:
        environ = {**api.environ, **bucket.environ}
        words = [word.format(url=bucket.url) for word in arguments]
        told = vibethinker(*words, str(first), environ=environ)
        assert told.returncode == 0, told.stderr
        done = vibethinker(*words, str(second), environ=environ)
        assert done.returncode == 0, done.stderr
    [folder] = (second / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert {s["state"] for s in summary["steps"]} == {"cached"}
    assert summary["warnings"] == micro.summary["warnings"]
    for step in micro.plan["steps"]:
        here, there = (w / "artifacts" / step["id"] / step["fingerprint"] for w in (micro.workspace, second))
        assert validation.check(there, "digest") is None
        assert (here / "manifest.json").read_bytes() == (there / "manifest.json").read_bytes()
    runs = api.task_runs(api.flow_run(summary["run_id"])["id"])
    assert {run["state_name"] for run in runs.values()} == {"Cached"}
    for file in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert SECRET.encode() not in file.read_bytes(), file
