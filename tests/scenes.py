"""What a mistake of tests/mistakes.yaml needs in the folder in which it is made, and the few that aren't a command."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from flows.server import Server
from tests.waiting import until
from vibethinker.errors import VibeThinkerError

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
        run = Mock(load=Mock(side_effect=missing))
        run.name = "run"
        self.patch.setattr("vibethinker.cli._added", lambda: [run])

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
