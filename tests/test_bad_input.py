"""What people get wrong (tests/mistakes.yaml): each mistake ends with the message that is recorded for it, which names
the mend, with its exit code, without a traceback, and with nothing written. And what only looks wrong: it works."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.scenes import Scene
from vibethinker.cli import main

pytestmark = pytest.mark.slow

TABLE = yaml.safe_load(Path(__file__).with_name("mistakes.yaml").read_text(encoding="utf-8"))


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
    assert said.endswith((".", "?)"))
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
