"""What people get wrong (tests/mistakes.yaml): each mistake ends with the message that is recorded for it, which names
the mend, with its exit code, without a traceback, and with nothing written. And what only looks wrong: it works."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from flows.server import Server
from tests.waiting import until
from vibethinker.cli import main
from vibethinker.errors import VibeThinkerError

TABLE = yaml.safe_load(Path(__file__).with_name("mistakes.yaml").read_text(encoding="utf-8"))
CONFIG = (
    "domains: [algebra]\nsignal: {stages: []}\ndata: {source: files, train: [{path: train.jsonl, domain: algebra}]}\n"
)
SMALL = "spectrum: {sft: {max_length: 100}}\nsignal: {stages: []}\n"  # what the model of 128 positions bears


class Scene:
    """The folder in which a command is called, and what a mistake needs there."""

    def __init__(self, here: Path, request: pytest.FixtureRequest, stack: ExitStack) -> None:
        self.here, self.request, self.stack = here, request, stack
        self.patch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
        self.words = {"HERE": str(here)}  # in commands and variables → what stands for them

    def text(self, text: str) -> str:
        for word, value in self.words.items():
            text = text.replace(word, value)
        return text

    # ---- what is prepared ----

    def files(self) -> None:
        """A configuration of data files."""
        (self.here / "mine.yaml").write_text(CONFIG)

    def model(self) -> None:
        """A whole model, and a configuration that suits it."""
        shutil.copytree(self.request.getfixturevalue("tiny_model_folder"), self.here / "model")
        (self.here / "small.yaml").write_text(SMALL)

    def wider(self) -> None:
        """A model of another shape."""
        from vibethinker.models import save_model

        made = self.request.getfixturevalue("new_tiny_model")(0, intermediate_size=96)
        save_model(made, self.request.getfixturevalue("tiny_tokenizer"), self.here / "wider")

    def cut_weights(self) -> None:
        """The model's weights, of which the end is missing."""
        path = self.here / "model" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])

    def bare_interpreter(self) -> None:
        """A Python without any package."""
        path = self.here / "bare"
        path.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
        path.chmod(0o755)

    def small_disk(self) -> None:
        """A disk of 1 MiB."""
        mount = self.here / "small"
        mount.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
        if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs Linux and more rights than this user has")
        self.stack.callback(subprocess.run, ["umount", str(mount)], check=True)

    def busy_port(self) -> None:
        """A port at which somebody listens."""
        listener = self.stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        self.words["PORT"] = str(listener.getsockname()[1])

    def hub_that_refuses(self) -> None:
        """A hub that takes another token than ours."""
        from tests.exporting.fake_hub import FakeHub

        hub = self.stack.enter_context(FakeHub("hf_" + "aB3dE5fG7h" * 3))
        self.patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        self.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        self.patch.setenv("HF_TOKEN", "hf_" + "zzzzzzzzzz" * 3)
        self.patch.setenv("HF_ENDPOINT", hub.url)

    def teacher_that_refuses(self) -> None:
        """A server that takes another key than ours, and problems that it is to be asked about."""
        from tests.generation.fake_openai import FakeOpenAI, failing

        fake = self.stack.enter_context(FakeOpenAI(failing(401, {"error": {"message": "Incorrect API key"}})))
        teacher = {"model": "teacher", "engine": "server", "server": {"url": fake.url}}
        values = yaml.safe_load(CONFIG)
        values["data"] |= {"teacher": teacher, "held_out": 0.2}
        (self.here / "mine.yaml").write_text(yaml.safe_dump(values))

    def run_folder(self) -> None:
        """A workspace with a run that has said nothing yet."""
        folder = self.here / "workspace" / "runs" / "tiny-1"
        (folder / "logs").mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"number": 1, "started": 1.0, "status": "failed"}))
        (folder / "summary.json").write_text(json.dumps({"schema": 1, "run_id": "tiny-1", "status": "failed"}))
        (folder / "logs" / "fusion.log").write_text("")

    def no_service(self) -> None:
        """An environment without Prefect."""
        missing = ModuleNotFoundError("No module named 'prefect'", name="prefect")
        self.patch.setattr(EntryPoint, "load", Mock(side_effect=missing))

    def no_slack(self) -> None:
        """An environment without prefect-slack."""
        self.patch.setattr("tasks.channels.find_spec", lambda name: None)

    def no_network(self) -> None:
        """A machine that the hub can't be reached from."""
        self.patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    # ---- what isn't a command ----

    def hub_model(self) -> str:
        """What the step `base` says of a model of the hub."""
        from vibethinker.models import run_base

        settings = {"base_model": {"source": "someone/small"}, "seed": 1, "deterministic": True}
        with pytest.raises(VibeThinkerError) as told:
            run_base(self.request.getfixturevalue("new_step")(settings))
        return str(told.value)

    def old_tracking_store(self) -> str:
        """What a run says of a store whose tables an older MLflow made."""
        from vibethinker.tracking.creation import create_store
        from vibethinker.tracking.tracker import RunTracker

        create_store(self.here / "mlflow.db", self.here / "mlartifacts")
        with closing(sqlite3.connect(self.here / "mlflow.db")) as connection, connection:
            connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        warnings: list[str] = []
        tracker = RunTracker.open(None, self.here, "e", "r", "r", {}, {}, self.here / "run", warnings.append)
        until(lambda: warnings)
        self.stack.callback(tracker.close)
        return warnings[0]

    def later_prefect_database(self) -> str:
        """What a run says of a database that a later Prefect has written."""
        (self.here / "prefect").mkdir()
        with closing(sqlite3.connect(self.here / "prefect" / "prefect.db")) as connection, connection:
            connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
            connection.execute("INSERT INTO alembic_version VALUES ('ffffffffffff')")
        server = Server(self.here / "prefect", self.here / "server.log")
        self.stack.callback(server.close)
        with pytest.raises(VibeThinkerError) as told:
            server.wait()
        return str(told.value)


@pytest.fixture
def scene(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """An empty folder to be in, in a process whose environment and signals are afterwards as before."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for name in ("VIBETHINKER_WORKSPACE", "OUTPUT_ROOT", "DATA_DIR", "BASE_MODEL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    with ExitStack() as stack:
        yield Scene(here, request, stack)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(before)


def write(path: Path, content: str | Mapping[str, Any]) -> None:
    """A file as the table describes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = {"text": content}
    if "row" in content:
        rows = range(content["rows"])
        text = "".join(json.dumps(content["row"]).replace("#", str(number)) + "\n" for number in rows)
        content = {"text": text}
    path.write_bytes(content["text"].encode(content.get("encoding", "utf-8")))


def prepare(scene: Scene, entry: Mapping[str, Any]) -> None:
    """All that comes before a command."""
    for name in entry.get("given", ()):
        getattr(scene, name)()
    for name in entry.get("without", ()):
        (scene.here / name).unlink()
    for name, content in entry.get("files", {}).items():
        write(scene.here / name, content)
    os.environ.update({name: scene.text(value) for name, value in entry.get("environ", {}).items()})


def called(scene: Scene, command: str) -> int:
    """The exit code of a command that is run in this process."""
    try:
        main(shlex.split(scene.text(command)))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def told(scene: Scene, error: str) -> str:
    """The last line of what a command said, as the table has it."""
    last = (error.strip().splitlines() or [""])[-1]
    for word, value in sorted(scene.words.items(), key=lambda item: -len(item[1])):
        last = last.replace(value, word)
    return last


def matches(recorded: str, said: str) -> bool:
    """Whether a message is the recorded one, whose `…` stand for anything."""
    return re.fullmatch(".+".join(map(re.escape, recorded.split("…"))), said) is not None


def slug(entry: Mapping[str, Any]) -> str:
    return re.sub(r"\W+", "-", entry.get("mistake", entry.get("what"))).strip("-").lower()


def marks(entry: Mapping[str, Any]) -> list[pytest.MarkDecorator]:
    """Servers and stores that a mistake needs take seconds."""
    return [pytest.mark.service] if entry.get("call") in ("old_tracking_store", "later_prefect_database") else []


@pytest.mark.parametrize("entry", [pytest.param(e, id=slug(e), marks=marks(e)) for e in TABLE["refused"]])
def test_a_mistake_is_told_with_its_mend(scene: Scene, entry: dict, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(scene, entry)
    before = sorted(scene.here.rglob("*"))
    if "call" in entry:
        code, said = None, told(scene, getattr(scene, entry["call"])())
    else:
        code = called(scene, entry["command"])
        said = told(scene, capsys.readouterr().err)
    assert matches(entry["says"], said), said
    assert code in (None, entry.get("exit", 2))
    assert entry["mend"] in entry["says"]
    assert said.endswith((".", "?"))
    assert entry.get("leaves") or "call" in entry or sorted(scene.here.rglob("*")) == before


@pytest.mark.parametrize("entry", TABLE["works"], ids=slug)
def test_what_only_looks_wrong_works(scene: Scene, entry: dict, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(scene, entry)
    code, said = called(scene, entry["command"]), capsys.readouterr()
    assert code == 0, said.err
    assert entry["says"] in said.out


def test_the_table_has_forty_mistakes_each_once() -> None:
    names = [entry["mistake"] for entry in TABLE["refused"]]
    assert len(set(names)) == len(names) >= 40


def test_what_the_data_step_accepts_is_not_refused_before(tmp_path) -> None:
    from vibethinker import preflight
    from vibethinker.config import load
    from vibethinker.data.gathering import protect
    from vibethinker.plan import build

    def lines(name: str, *rows: object) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    good = [{"problem": f"Find w{i}.", "answer": str(i)} for i in range(700)]
    broken = {"problem": r"Find $\frac{1}{2$.", "answer": "1"}
    labelled = [{**row, "subject": "Other"} for row in good[:2]]
    train = [
        {"path": lines("late.jsonl", *[broken] * 5, *good), "domain": "algebra"},  # 0.7 %, all of it at the start
        {"path": lines("empty.jsonl"), "domain": "algebra"},
    ]
    auto = {"columns": {"domain": "subject"}, "labels": {"Other": "auto"}}
    sources = [
        train,
        [{"path": lines("auto.jsonl", *labelled), **auto}],
        [{"path": lines("without.jsonl", *good[:2]), "domain": "auto"}],
    ]
    evaluation = [{"path": lines("held.jsonl", broken, good[0])}]
    for train in sources:
        data = {"source": "files", "directory": str(tmp_path), "train": train, "evaluation": evaluation}
        config = load("micro", partial={"domains": ["algebra"], "signal": {"stages": []}, "data": data}, environ={})
        plan = build(config, tmp_path / "workspace")
        preflight.check(plan)
    paths = plan["data"].outside
    assert len(protect(config.data, config.domains, 1, paths, print).evaluation["held"]) == 2


def test_an_invalid_folder_is_a_failed_check(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(scene, "validate HERE") == 1
    said = capsys.readouterr()
    assert "Invalid at level finite" in said.out and said.err == ""
