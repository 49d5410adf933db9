"""Phase 0 as a flow: a teacher's key from a Prefect secret, and the data card where people look."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from tests.flows.conftest import ROOT, Api
from tests.generation.fake_openai import Exchange, FakeOpenAI

pytestmark = pytest.mark.service

KEY = "sk-secret-0123456789abcdef"
CODE = """
import json, sys
from prefect.blocks.system import Secret
from flows.pipeline import data_phase
Secret(value=sys.argv[1]).save("teacher-key", overwrite=True)
data_phase(profile="micro", config=json.loads(sys.argv[2]), workspace=sys.argv[3])
"""


def solve(exchange: Exchange) -> None:
    number = re.search(r"to (\d+)", exchange.prompt)[1]
    exchange.send(exchange.completion(f"Say {exchange.body['seed']}: \\boxed{{{number}}}"))


@pytest.mark.long
def test_the_flow_reads_the_secret_and_shows_the_card(api: Api, tmp_path) -> None:
    from mlflow import MlflowClient

    rows = [{"problem": f"Add w{i} to {i} and find x{i}.", "answer": str(i)} for i in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    workspace = tmp_path / "workspace"
    with FakeOpenAI(solve) as fake:
        server = {"url": fake.url, "key_secret": "teacher-key", "backoff": 0.01}
        config = {
            "domains": ["algebra"],
            "signal": {"stages": []},
            "data": {
                "source": "files",
                "directory": str(tmp_path),
                "train": [{"path": "train.jsonl", "domain": "algebra"}],
                "held_out": 0.2,
                "teacher": {"model": "sage", "engine": "server", "server": server, "samples": 2},
            },
        }
        done = subprocess.run(
            [sys.executable, "-c", CODE, KEY, json.dumps(config), str(workspace)],
            cwd=ROOT,
            env=api.environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert fake.seen and {e.headers["Authorization"] for e in fake.seen} == {f"Bearer {KEY}"}
    assert KEY not in done.stdout + done.stderr
    files = [path for path in workspace.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if KEY.encode() in path.read_bytes()]
    assert (workspace / "teacher" / "replies.sqlite").is_file()
    card = next(a for a in api.filter("artifacts", limit=200) if a["key"] == "data-card")
    assert "algebra" in card["data"] and "sage" in card["data"]
    client = MlflowClient(f"sqlite:///{workspace / 'mlflow.db'}")
    [experiment] = [e for e in client.search_experiments() if e.name == "vibethinker"]
    runs = client.search_runs([experiment.experiment_id])
    [step] = [r for r in runs if r.data.tags.get("vibethinker.step") == "data"]
    assert {"card.html", "card.json"} <= {f.path for f in client.list_artifacts(step.info.run_id)}
