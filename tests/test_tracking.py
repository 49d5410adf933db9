"""Tracking against real MLflow stores: runs, metrics without doubles, outages, the registry."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from vibethinker import telemetry
from vibethinker.errors import ConfigurationError
from vibethinker.tracking import RunTracker, store_uri
from vibethinker.tracking.datasets import Set
from vibethinker.tracking.delivery import Delivery

pytest.importorskip("mlflow")
pytestmark = pytest.mark.slow

EXPERIMENT = "vibethinker tests"
PARAMS = {
    "seed": 1,
    "signal": {"stages": [{"name": "math", "steps": 60}]},
    "data": {"train": []},
    "note": "x" * 7000,
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose path has a space; its SQLite store is migrated once for all tests."""
    return tmp_path_factory.mktemp("work space")


@pytest.fixture
def client(store: Path):
    from vibethinker.tracking.delivery import load_client

    return load_client(store_uri(None, store))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, in which MLflow must leave nothing, and no store from the environment."""
    folder = tmp_path / "current"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def open_tracker(store: Path, folder: Path, run_id: str, uri: str | None = None, **kw) -> RunTracker:
    return RunTracker.open(
        uri, store, EXPERIMENT, run_id, "tiny run", PARAMS, {"prefect.flow_run_id": "f-1"}, folder, **kw
    )


def ended(tracker: RunTracker, status: str, metrics: dict | None = None) -> bool:
    tracker.finish(status, metrics)
    return tracker.close()


def deliver(folder: Path, uri: str, workspace: Path) -> int:
    """As a later process does; the number of operations sent."""
    return Delivery(folder, uri, workspace, logging.getLogger("later").warning).advance()


def runs(client, kind: str, **tags: str) -> list:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    tags["kind"] = kind
    query = " and ".join(f"tags.`vibethinker.{key}` = '{value}'" for key, value in tags.items())
    return client.search_runs([experiment.experiment_id], query)


def history(client, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in sorted(client.get_metric_history(run_id, key), key=lambda m: m.step)]


@pytest.fixture
def dead_uri() -> str:
    """The address of a loopback port on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_a_run_has_a_parent_and_a_child_per_step(store, client, tmp_path, elsewhere):
    tracker = open_tracker(store, tmp_path / "run", "run-a")
    step = tracker.step("specialist-algebra", "abc123", {"prefect.task_run_id": "t-1"})
    step.metrics(1, {"loss": 2.0, "p_histogram": [3, 1], "note": "text"}, 1000, 1)
    step.metrics(2, {"loss": 1.5, "p_histogram": [2, 2]}, 2000, 2)
    step.finish("FINISHED", {"selected": "step-000050", "pass_at": {"8": {"value": 0.5}}})
    tracker.dataset(Set("train", "training", "d" * 64, ("gsm8k_train.jsonl",)))
    assert ended(tracker, "FINISHED", {"math avg@8": 0.25})

    (parent,) = runs(client, "run", run_id="run-a")
    assert tracker.run_id == parent.info.run_id
    assert parent.info.status == "FINISHED"
    assert parent.info.run_name == "tiny run"
    assert parent.data.tags["prefect.flow_run_id"] == "f-1"
    assert parent.data.params["signal.stages.0.steps"] == "60"
    assert parent.data.params["data.train"] == "[]"
    assert len(parent.data.params["note"]) == 6000
    assert parent.data.metrics == {"final/math avg_at_8": 0.25}
    assert parent.inputs.dataset_inputs[0].dataset.digest == "d" * 36

    (child,) = runs(client, "step", step="specialist-algebra", fingerprint="abc123")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["prefect.task_run_id"] == "t-1"
    assert child.data.tags["selected"] == "step-000050"
    assert child.data.metrics["final/pass_at.8.value"] == 0.5
    assert history(client, child.info.run_id, "loss") == [(1, 2.0), (2, 1.5)]
    assert history(client, child.info.run_id, "p_histogram.0") == [(1, 3.0), (2, 2.0)]
    assert list(elsewhere.iterdir()) == []


def test_a_retried_step_continues_its_run_and_repeats_no_metric(store, client, tmp_path):
    for first, status in ((1, "FAILED"), (3, "FINISHED")):
        tracker = open_tracker(store, tmp_path / "run", "run-b")
        step = tracker.step("signal-1", "ffff")
        for sequence, at in enumerate(range(first, first + 4)):
            step.metrics(at, {"reward": at / 10}, 1000 * first + at, sequence)
        step.finish(status)
        assert ended(tracker, status, {"avg": 0.5})

    (parent,) = runs(client, "run", run_id="run-b")
    (child,) = runs(client, "step", parent=parent.info.run_id)
    assert child.info.status == "FINISHED"
    assert history(client, child.info.run_id, "reward") == [(at, at / 10) for at in range(1, 7)]
    assert history(client, parent.info.run_id, "final/avg") == [(0, 0.5)]


def test_delivering_the_whole_journal_again_doubles_nothing(store, client, tmp_path):
    folder = tmp_path / "run"
    tracker = open_tracker(store, folder, "run-c")
    step = tracker.step("signal-1", "ffff")
    for at in range(2500):
        step.metrics(at, {"reward": 0.5, "entropy": 1.0}, at, at)
    step.finish("FINISHED")
    ended(tracker, "FINISHED")
    (folder / "tracking.json").unlink()  # as if killed after every sending and before every recording

    assert deliver(folder, store_uri(None, store), store) == 2504
    assert deliver(folder, store_uri(None, store), store) == 0
    (parent,) = runs(client, "run", run_id="run-c")
    (child,) = runs(client, "step", parent=parent.info.run_id)
    assert [at for at, _ in history(client, child.info.run_id, "reward")] == list(range(2500))


def test_a_store_that_is_down_costs_one_warning_and_keeps_everything_for_later(store, client, tmp_path, dead_uri):
    folder, warnings = tmp_path / "run", []
    tracker = open_tracker(store, folder, "run-d", dead_uri, warn=warnings.append)
    step = tracker.step("signal-1", "ffff")
    for at in range(50):
        step.metrics(at, {"reward": at}, at, at)
    step.finish("FINISHED")
    assert ended(tracker, "FINISHED") is False
    assert tracker.run_id is None and tracker.url == dead_uri and tracker.page("report.html") is None
    assert len(warnings) == 1 and "tracking.jsonl" in warnings[0]
    lines = [json.loads(line) for line in (folder / "tracking.jsonl").read_text().splitlines()]
    assert [o["op"] for o in lines] == ["run", "step", *["metrics"] * 50, "finish", "finish"]
    with pytest.raises(Exception, match=dead_uri.removeprefix("http://127.0.0.1:")):
        deliver(folder, dead_uri, store)

    assert deliver(folder, store_uri(None, store), store) == 54
    (parent,) = runs(client, "run", run_id="run-d")
    (child,) = runs(client, "step", parent=parent.info.run_id)
    assert history(client, child.info.run_id, "reward") == [(at, float(at)) for at in range(50)]
    assert parent.info.status == "FINISHED"


def test_the_next_run_delivers_what_a_killed_one_left(store, client, tmp_path):
    killed = open_tracker(store, tmp_path / "runs" / "one", "run-l")
    killed.step("base", "0").metrics(1, {"loss": 1.0}, 1, 1)
    ended(killed, "FINISHED")
    with open(tmp_path / "runs" / "one" / "tracking.jsonl", "a") as file:
        file.write(json.dumps({"op": "metrics", "step": "base", "fingerprint": "0", "at": 2, "values": {"loss": 0.5},
                               "time_ms": 2, "sequence": 2}) + "\n")  # fmt: skip
    other = open_tracker(store, tmp_path / "runs" / "two", "run-m")
    assert ended(other, "FINISHED")
    (parent,) = runs(client, "run", run_id="run-l")
    (child,) = runs(client, "step", parent=parent.info.run_id)
    assert history(client, child.info.run_id, "loss") == [(1, 1.0), (2, 0.5)]


# A run of its own process, which appends metrics and is killed: at once, or (by its parent) while it delivers.
KILLED_RUN = """
import os, signal, sys, time
from pathlib import Path
from vibethinker.tracking import RunTracker
store, folder, count, waits = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "waits"
tracker = RunTracker.open(None, store, "vibethinker tests", folder.name, "killed", {"seed": 1}, {}, folder)
step = tracker.step("base", "0")
for at in range(count):
    step.metrics(at, {"loss": at / 8}, at, at)
time.sleep(600 if waits else 0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.long
def test_what_killed_runs_left_arrives_once_and_in_order_though_a_delivery_is_killed_too(store, client, tmp_path):
    client.search_experiments()  # makes the store
    folders = [tmp_path / "runs" / f"{tmp_path.name}-{number}" for number in (1, 2, 3)]
    counts = [5000, 3000, 2000]

    def start(number: int, end: str) -> subprocess.Popen[bytes]:
        words = [str(store), str(folders[number]), str(counts[number]), end]
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        return subprocess.Popen([sys.executable, "-c", KILLED_RUN, *words], env=env)

    def arrived() -> list[list[int]]:
        """The updates of each run's metric, in the order in which the store got them."""
        query = (
            "select metrics.step from metrics join tags parent on parent.run_uuid = metrics.run_uuid and parent.key = "
            "'mlflow.parentRunId' join tags run on run.run_uuid = parent.value and run.key = 'vibethinker.run_id' "
            "where run.value = ? order by metrics.rowid"
        )
        with closing(sqlite3.connect(store / "mlflow.db", timeout=60)) as database:
            return [[at for (at,) in database.execute(query, [folder.name])] for folder in folders]

    for number in (0, 1):
        assert start(number, "at once").wait(60) == -signal.SIGKILL
    assert arrived() == [[], [], []]
    third, limit = start(2, "waits"), time.monotonic() + 120
    while not arrived()[0] and time.monotonic() < limit:
        time.sleep(0.01)
    third.kill()
    third.wait()
    found = arrived()
    assert 0 < sum(map(len, found)) < sum(counts)
    assert ended(open_tracker(store, tmp_path / "runs" / "four", f"{tmp_path.name}-4"), "FINISHED")
    assert arrived() == [list(range(count)) for count in counts]
    for folder in folders:
        assert len(runs(client, "run", run_id=folder.name)) == 1
        assert deliver(folder, store_uri(None, store), store) == 0


def test_what_was_meant_for_another_store_stays_for_that_store(store, client, tmp_path, dead_uri):
    away = open_tracker(store, tmp_path / "runs" / "one", "run-n", dead_uri)
    assert not ended(away, "FINISHED")
    assert ended(open_tracker(store, tmp_path / "runs" / "two", "run-o"), "FINISHED")
    assert runs(client, "run", run_id="run-n") == []


def test_a_store_that_comes_back_gets_what_it_missed_from_the_same_process(store, client, tmp_path):
    uri = store_uri(None, store)
    database, away = store / "mlflow.db", store / "away.db"
    client.search_experiments()  # makes the store before it goes away
    database.rename(away)
    database.mkdir()  # SQLite can't open a folder
    warnings: list[str] = []
    warned = threading.Event()

    def warn(text: str) -> None:
        warnings.append(text)
        warned.set()

    # A spelling of the same address that MLflow has no open connection for.
    tracker = open_tracker(store, tmp_path / "run", "run-e", uri + "?timeout=20", warn=warn)
    tracker.step("base", "0").metrics(1, {"loss": 1.0}, 1, 1)
    assert warned.wait(60)
    database.rmdir()
    away.rename(database)
    assert ended(tracker, "FINISHED")
    (parent,) = runs(client, "run", run_id="run-e")
    assert len(runs(client, "step", parent=parent.info.run_id)) == 1
    assert len(warnings) == 1


def test_parallel_steps_may_report_at_once(store, client, tmp_path):
    tracker = open_tracker(store, tmp_path / "run", "run-f")

    def work(index: int) -> None:
        step = tracker.step(f"specialist-{index}", "0")
        for at in range(200):
            step.metrics(at, {"loss": index + at}, at, at)
        step.finish("FINISHED")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ended(tracker, "FINISHED")
    (parent,) = runs(client, "run", run_id="run-f")
    for index in range(4):
        (child,) = runs(client, "step", parent=parent.info.run_id, step=f"specialist-{index}")
        assert history(client, child.info.run_id, "loss") == [(at, float(index + at)) for at in range(200)]


def test_the_final_model_is_an_artefact_and_registered_once(store, client, tmp_path, elsewhere):
    model = tmp_path / "artifacts" / "signal-2" / "cafe"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    for run in ("run-g", "run-h"):
        tracker = open_tracker(store, tmp_path / run, run)
        tracker.log_model(model, "vibethinker-tiny")
        (tmp_path / "report.html").write_text("<p>report</p>")
        tracker.artifact(tmp_path / "report.html")
        assert ended(tracker, "FINISHED")

    (version,) = client.search_model_versions("name = 'vibethinker-tiny'")
    (parent,) = runs(client, "run", run_id="run-g")
    assert version.run_id == parent.info.run_id
    assert version.tags["vibethinker.artifact"] == "signal-2/cafe"
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {"model", "report.html"}
    assert [a.path for a in client.list_artifacts(parent.info.run_id, "model")] == ["model/config.json"]
    assert (store / "mlartifacts").is_dir() and list(elsewhere.iterdir()) == []


def test_what_mlflow_refuses_is_reported_and_the_rest_still_arrives(store, client, tmp_path):
    warnings: list[str] = []
    tracker = open_tracker(store, tmp_path / "run", "run-i", warn=warnings.append)
    tracker.artifact(tmp_path / "gone.html")
    with open(tmp_path / "run" / "tracking.jsonl", "a") as file:
        file.write("half a li\n")
    tracker.step("base", "0").metrics(1, {"loss": float("nan")}, 1, 1)
    assert ended(tracker, "FINISHED")
    assert len(warnings) == 2 and "gone.html" in warnings[0] and "tracking.jsonl" in warnings[1]

    again = RunTracker.open(
        None, store, EXPERIMENT, "run-i", "r", {"seed": 2}, {}, tmp_path / "run", warn=warnings.append
    )
    assert ended(again, "FAILED")
    assert "seed changed" in warnings[2]
    (parent,) = runs(client, "run", run_id="run-i")
    assert parent.info.status == "FAILED" and parent.data.params["seed"] == "1"
    assert len(runs(client, "step", parent=parent.info.run_id)) == 1


def test_a_killed_run_knows_which_steps_it_had_told_the_beginning_and_the_end_of(tmp_path, dead_uri):
    killed = open_tracker(tmp_path, tmp_path / "run", "run-k", dead_uri, warn=lambda text: None)
    killed.step("base", "0").finish("FINISHED")
    killed.step("fusion", "1")
    killed._journal.close()
    again = open_tracker(tmp_path, tmp_path / "run", "run-k", dead_uri, warn=lambda text: None)
    steps = (("base", "0"), ("fusion", "1"), ("report", "2"))
    assert [(again.begun(*step), again.ended(*step)) for step in steps] == [(True, True), (True, False), (False, False)]
    again.close()


def test_a_line_torn_by_a_crash_hides_no_later_operation(store, client, tmp_path, caplog):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "tracking.jsonl").write_text('{"op": "me')
    with caplog.at_level(logging.WARNING):
        tracker = open_tracker(store, folder, "run-j")
        assert ended(tracker, "FINISHED")
    assert len(runs(client, "run", run_id="run-j")) == 1
    assert "no operation" in caplog.text


def test_the_store_is_the_setting_then_the_environment_then_the_workspace(tmp_path, monkeypatch):
    assert store_uri(None, tmp_path) == f"sqlite:///{tmp_path.resolve()}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://one")
    assert store_uri(None, tmp_path) == "http://one"
    assert store_uri("http://two", tmp_path) == "http://two"


def test_telemetry_is_off_before_mlflow_is_loaded(client):
    assert os.environ.items() >= telemetry.OFF.items()


def test_without_mlflow_the_mend_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="service"):
        open_tracker(tmp_path, tmp_path / "run", "run-k")


def test_a_store_whose_making_was_killed_is_made_anew_and_by_one_process_alone(tmp_path):
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    (workspace / "mlflow.db.new").write_bytes(b"half")  # under the name that counts only when it is whole
    trackers = [open_tracker(workspace, tmp_path / name, f"run-{name}") for name in ("x", "y")]
    assert [ended(tracker, "FINISHED") for tracker in trackers] == [True, True]
    assert not list(workspace.glob("mlflow.db.new*"))
