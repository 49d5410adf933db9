"""What MLflow gets beside measurements: which model is its name's champion; data sets, tables and samples of the
machine, by a server on loopback."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.waiting import until
from vibethinker import telemetry
from vibethinker.tracking import RunTracker
from vibethinker.tracking.datasets import Set
from vibethinker.tracking.delivery import Delivery, load_client
from vibethinker.tracking.registry import CANDIDATE, CHAMPION

pytest.importorskip("mlflow")
pytestmark = [pytest.mark.slow, pytest.mark.service]

EXPERIMENT = "vibethinker tests"
SETS = {"algebra": "1" * 16, "code": "2" * 16}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that keeps runs and files in a folder of its own."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'store.db'}", "--artifacts-destination", str(folder / "files"),
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **telemetry.OFF})
    url = f"http://127.0.0.1:{port}"

    try:
        until(lambda: httpx.get(f"{url}/health", timeout=2).is_success, 240, process, folder / "log")
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a store without a server."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def opened(store: str, tmp_path: Path) -> Callable[..., RunTracker]:
    """A function run id → its tracker, on the store or on what the environment names."""

    def new(run_id: str, uri: str | None = store, **options: Any) -> RunTracker:
        folder = tmp_path / "runs" / run_id
        tags = {"vibethinker.fingerprint.signal-1": "f" * 64}
        return RunTracker.open(uri, tmp_path, EXPERIMENT, run_id, run_id, {"seed": 1}, tags, folder, **options)

    return new


def ended(tracker: RunTracker) -> Any:
    tracker.finish("FINISHED")
    assert tracker.close()
    return tracker.run_id


def outcomes(folder: Path, share: float, seed: int, problems: int = 100) -> Path:
    """Outcomes of a model that is right with this probability, and of one set twice as many problems."""
    draw = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "outcomes.jsonl").open("w") as file:
        for name, count in (("algebra", problems), ("code", 2 * problems)):
            for number in range(count):
                right = sum(draw.random() < share for _ in range(8))
                row = {"set": name, "id": f"{number}", "correct": right, "samples": 8, "verdicts": ["x"] * 8}
                file.write(json.dumps(row) + "\n")
    return folder / "outcomes.jsonl"


@pytest.fixture
def offered(opened: Callable[..., RunTracker], store: str, tmp_path: Path) -> Callable[..., Any]:
    """A function name of the registered model, fingerprint, share of right samples → the MLflow run that offers such a
    model."""
    count = 0

    def one(
        name: str, fingerprint: str, share: float | None, sets: dict[str, str] = SETS, uri: Any = store, **options: Any
    ) -> Any:
        nonlocal count
        count += 1
        model = tmp_path / "artifacts" / "signal-2" / fingerprint
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text("{}")
        found = None if share is None else outcomes(tmp_path / f"evaluation-{count}", share, count)
        tracker = opened(f"{name}-{count}", uri)
        tracker.log_model(model, name, found, sets if found else {}, tags={"fingerprint": fingerprint}, **options)
        return ended(tracker)

    return one


@pytest.fixture
def client(opened: Callable[..., RunTracker], store: str) -> Any:
    """Of the store, which is made by the first run."""
    ended(opened("first"))
    return load_client(store)


def held(client: Any, name: str) -> dict[str, str]:
    """Alias → fingerprint of the version that has it."""
    aliases = client.get_registered_model(name).aliases
    versions = {v.version: v.tags["vibethinker.fingerprint"] for v in client.search_model_versions(f"name='{name}'")}
    return {alias: versions[version] for alias, version in aliases.items()}


def said(client: Any, name: str, fingerprint: str) -> tuple[str, str]:
    """What was decided on the newest version of that model, and why."""
    [version] = [
        v for v in client.search_model_versions(f"name='{name}'") if v.tags["vibethinker.fingerprint"] == fingerprint
    ]
    assert version.description == version.tags["vibethinker.why"]
    return version.tags["vibethinker.promotion"], version.description


def test_the_champion_is_replaced_by_a_better_model_alone_and_why_is_recorded(client: Any, offered: Any) -> None:
    name = "m-better"
    offered(name, "none", None)
    assert held(client, name) == {CANDIDATE: "none"}
    assert said(client, name, "none") == ("kept", "It can't be champion: it wasn't measured.")
    offered(name, "first", 0.5)
    assert held(client, name) == {CANDIDATE: "first", CHAMPION: "first"}
    run = offered(name, "same", 0.505)
    assert held(client, name) == {CANDIDATE: "same", CHAMPION: "first"}
    promotion, why = said(client, name, "same")
    assert promotion == "kept"
    assert (
        why.startswith("It doesn't replace version 2: avg@8 ")
        and "300 problems" in why
        and why.endswith("no significant difference.")
    )
    assert client.get_run(run).data.tags["vibethinker.promotion"] == why
    offered(name, "worse", 0.3)
    assert "significantly worse" in said(client, name, "worse")[1]
    offered(name, "better", 0.6)
    assert held(client, name) == {CANDIDATE: "better", CHAMPION: "better"}
    promotion, why = said(client, name, "better")
    assert promotion == "promoted"
    assert "replaces version 2: avg@8 +" in why and "on algebra, code, 300 problems, paired" in why


def test_only_what_was_measured_alike_is_compared(client: Any, offered: Any) -> None:
    name = "m-alike"
    offered(name, "first", 0.3)
    offered(name, "other", 0.9, {"algebra": "other problems", "code": "other problems"})
    assert "weren't measured on an evaluation set with the same problems alike" in said(client, name, "other")[1]
    offered(name, "half", 0.9, {"algebra": SETS["algebra"], "code": "other problems"})
    assert "on algebra, 100 problems" in said(client, name, "half")[1]
    offered(name, "code alone", 0.99, benchmark="code")
    assert "weren't measured on the benchmark code" in said(client, name, "code alone")[1]
    assert held(client, name) == {CANDIDATE: "code alone", CHAMPION: "half"}


def test_a_decision_that_is_delivered_again_or_late_changes_nothing(
    client: Any, offered: Any, store: str, tmp_path: Path
) -> None:
    name = "m-again"
    for fingerprint, share in (("first", 0.3), ("second", 0.6)):
        offered(name, fingerprint, share)
    before = {v.version: (v.tags, v.aliases) for v in client.search_model_versions(f"name='{name}'")}
    for folder in sorted((tmp_path / "runs").iterdir()):
        (folder / "tracking.json").unlink()
        assert Delivery(folder, store, tmp_path, print).advance() > 0
    after = {v.version: (v.tags, v.aliases) for v in client.search_model_versions(f"name='{name}'")}
    assert len(after) == 2
    assert held(client, name) == {CANDIDATE: "second", CHAMPION: "second"}
    assert before == after
    # Killed between writing the decision down and moving the alias.
    client.set_registered_model_alias(name, CHAMPION, "1")
    [newest] = [folder for folder in (tmp_path / "runs").iterdir() if folder.name.endswith("-2")]
    (newest / "tracking.json").unlink()
    Delivery(newest, store, tmp_path, print).advance()
    assert held(client, name)[CHAMPION] == "second"


@pytest.mark.long
def test_a_server_that_the_environment_names_gets_all_of_it_once(
    opened: Any, offered: Any, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    client = load_client(server)
    generations = tmp_path / "generations.jsonl"
    sample = {"text": "<script>\\boxed{1}", "extracted": "1", "tokens": 3, "truncated": False}
    rows = [
        {"set": "algebra", "id": "a", "problem": "1?", "gold": "1",
         "samples": [{**sample, "verdict": verdict} for verdict in verdicts]}
        for verdicts in (["correct"] * 2, ["wrong"] * 2, ["wrong", "correct"], ["timeout", "wrong"])
    ]  # fmt: skip
    generations.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tracker = opened("contents", None, system_seconds=0.05)
    step = tracker.step("signal-1", "f" * 64, {}, {"objective": {"lambda": 1.0}})
    step.dataset(Set("rl/algebra", "training", "d" * 64, (str(generations),)))
    step.table(generations, "generations.json")
    time.sleep(0.3)
    step.finish("FINISHED")
    tracker.dataset(Set("rl", "training", "e" * 64, (str(generations),)))
    parent = ended(tracker)
    (tmp_path / "runs" / "contents" / "tracking.json").unlink()
    assert Delivery(tmp_path / "runs" / "contents", server, tmp_path, print).advance() > 0

    [experiment] = [e.experiment_id for e in client.search_experiments() if e.name == EXPERIMENT]
    [child] = client.search_runs([experiment], f"tags.`vibethinker.fingerprint` = '{'f' * 64}'")
    assert child.data.tags["mlflow.parentRunId"] == parent
    assert child.data.params["objective.lambda"] == "1.0"
    query = f"tags.`vibethinker.fingerprint.signal-1` = '{'f' * 64}' and tags.`vibethinker.run_id` = 'contents'"
    assert [run.info.run_id for run in client.search_runs([experiment], query)] == [parent]
    [found] = child.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("rl/algebra", "d" * 36)
    assert {tag.key: tag.value for tag in found.tags} == {"mlflow.data.context": "training", "sha256": "d" * 64}
    assert len(client.get_run(parent).inputs.dataset_inputs) == 1
    table = json.loads(
        Path(client.download_artifacts(child.info.run_id, "generations.json", str(tmp_path))).read_text()
    )
    sorts = [("good", "correct"), ("bad", "wrong"), ("disputed", "correct"), ("disputed", "wrong"),
             ("disputed", "timeout"), ("disputed", "wrong")]  # fmt: skip
    sort, verdict = (table["columns"].index(name) for name in ("sort", "verdict"))
    assert [(row[sort], row[verdict]) for row in table["data"]] == sorts
    history = client.get_metric_history(parent, "system/cpu_utilization_percentage")
    assert len(history) == len({m.step for m in history}) >= 2
    memory = client.get_metric_history(parent, "system/system_memory_usage_percentage")
    assert all(0 < m.value < 100 for m in memory)

    for fingerprint, share in (("first", 0.3), ("second", 0.6)):
        offered("m-remote", fingerprint, share, uri=None)
    assert held(client, "m-remote") == {CANDIDATE: "second", CHAMPION: "second"}
    assert "replaces version 1: avg@8 +" in said(client, "m-remote", "second")[1]
