"""`vibethinker status --watch`: what it says of a run's folder, and in a terminal until the run ends."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vibethinker import live, locks, runs
from vibethinker.artifacts import write_json
from vibethinker.commands import watch
from vibethinker.live import Live
from vibethinker.watching import look

STEPS = {"data": ("data", []), "base": ("base", ["data"]), "specialist-a": ("specialist", ["base"]),
         "specialist-b": ("specialist", ["base"]), "fusion": ("fusion", ["specialist-a", "specialist-b"]),
         "signal-1": ("signal", ["fusion"])}  # fmt: skip


class Played:
    """The folder of a run that a test plays, alive while it is open."""

    def __init__(self, workspace: Path) -> None:
        self.folder = workspace / "runs" / "played"
        self.folder.mkdir(parents=True)
        self.live = Live(self.folder)
        self.alive = locks.attempt(self.folder / runs.ALIVE)
        plan = [
            {"id": i, "kind": k, "depends_on": d, "estimate": {"seconds": 10.0}} for i, (k, d) in STEPS.items()
        ]  # fmt: skip
        write_json(self.folder / "plan.json", {"steps": plan})
        write_json(self.folder / "state.json", {"number": 1, "started": 1000.0, "resume": "the way on"})
        self.summary = {"schema": 1, "run_id": "played", "status": "running", "warnings": [], "models": []}
        self.states: dict[str, dict] = {i: {"state": "waiting", "seconds": None, "metrics": {}} for i in STEPS}
        self.save()

    def save(self, status: str = "running", **states: dict) -> None:
        self.states.update({i.replace("_", "-"): {**self.states[i.replace("_", "-")], **s} for i, s in states.items()})
        steps = [{"id": i, "fingerprint": "f", **s} for i, s in self.states.items()]
        write_json(self.folder / "summary.json", {**self.summary, "status": status, "steps": steps})

    def note(self, **steps: dict) -> None:
        (self.folder / live.LIVE).write_text(json.dumps({i.replace("_", "-"): s for i, s in steps.items()}))

    def close(self) -> None:
        self.live.close()
        if self.alive:
            self.alive.close()


@pytest.fixture
def played(tmp_path) -> Iterator[Played]:
    one = Played(tmp_path)
    yield one
    one.close()


DONE = {"state": "done", "seconds": 20.0}


def test_what_is_left_is_told_from_a_steps_own_speed_and_from_finished_ones(played):
    played.save(
        data=DONE, base=DONE, specialist_a={"state": "running"}, specialist_b={"state": "done", "seconds": 30.0}
    )
    began = {"began": 1040.0, "done": 30, "total": 40, "text": "training", "first": [10, 1050.0, 40]}
    played.note(specialist_a={**began, "metrics": {"reward": 0.25, "memory_gib": 1.0}})
    view = look(played.folder, now=1090.0)
    steps = {step.id: step for step in view.steps}
    assert steps["specialist-a"].left == pytest.approx(20.0)  # 10 updates at 20 in 40 s
    assert steps["specialist-a"].share == 0.75 and steps["specialist-a"].seconds == 50.0
    assert steps["specialist-a"].metrics == {"reward": 0.25} and steps["specialist-a"].text == "30 of 40 training"
    # Then fusion and signal-1 in turn, 10 s each by the plan; nothing can be done beside.
    assert view.left == pytest.approx(20.0 + 10.0 + 10.0)
    assert view.ended == 3 and view.exit_code is None


def test_a_waiting_steps_time_is_corrected_by_finished_ones_of_its_kind(played):
    others = dict.fromkeys(("data", "base", "fusion", "signal_1"), DONE)
    played.save(**others, specialist_a={"state": "done", "seconds": 40.0})
    assert look(played.folder, now=1120.0).left == pytest.approx(40.0)  # not the plan's 10


def test_a_time_that_nobody_knows_is_not_told(played):
    plan = json.loads((played.folder / "plan.json").read_text())
    plan["steps"][-1]["estimate"]["seconds"] = None
    write_json(played.folder / "plan.json", plan)
    assert look(played.folder).left is None


def test_how_a_run_ends_is_its_exit_code(played):
    for status, code in (("running", None), ("suspended", None), ("completed", 0), ("failed", 1), ("interrupted", 1)):
        played.save(status)
        assert look(played.folder).exit_code == code
    played.save("running")
    played.alive.close()
    assert look(played.folder).gone and look(played.folder).exit_code == 1


def test_watching_a_run_that_its_budget_has_paused_ends_and_says_why(played, capsys):
    played.summary["reason"] = "The run was paused before base, since budget.hours is 1 h: raise it."
    played.save("paused", data=DONE)
    assert watch.watch(played.folder) == 1
    assert capsys.readouterr().out.splitlines()[-1] == played.summary["reason"]


@pytest.mark.slow
def test_notes_are_written_while_a_step_runs_and_gone_with_the_run(played):
    notes = played.live
    notes.began("base")
    notes.progress("base", 5, 10, "training")
    notes.progress("base", 6, 10, "loss 1")
    notes.metrics("base", {"loss": 1.5, "p_histogram": [1, 2]})
    limit = time.monotonic() + 10
    while live.read(played.folder).get("base", {}).get("metrics") is None:
        assert time.monotonic() < limit
        time.sleep(0.02)
    noted = live.read(played.folder)["base"]
    assert (noted["done"], noted["first"][0], noted["text"], noted["metrics"]) == (6, 5, "loss 1", {"loss": 1.5})
    notes.progress("base", 1, 3, "another count")
    notes.ended("base")
    while "done" in live.read(played.folder)["base"]:
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert live.read(played.folder) == {"base": {"metrics": {"loss": 1.5}}}
    notes.close()
    notes.began("base")
    time.sleep(2 * live.SECONDS)
    assert not (played.folder / live.LIVE).exists()


def test_a_small_screen_shows_what_runs(played):
    played.save(**dict.fromkeys(("data", "base"), DONE), specialist_a={"state": "running"})
    shown = [getattr(row, "id", row) for row in watch._shown(look(played.folder).steps, 4)]
    assert "specialist-a" in shown and shown[0] == "… 2 steps before" and len(shown) <= 4


COMMAND = (sys.executable, "-m", "vibethinker", "status", "--watch", "--workspace")


def play(played: Played) -> None:
    """Two steps that end, and the run with them."""
    time.sleep(1.5)
    played.save(data={"state": "running"})
    played.note(data={"began": time.time(), "done": 3, "total": 4, "text": "reading", "first": [0, time.time() - 9, 4],
                      "metrics": {"reward": 0.5}})  # fmt: skip
    time.sleep(1.5)
    played.save("failed", data={"state": "failed", "error": "The disk is full.", "seconds": None})


@pytest.mark.slow
def test_a_terminal_shows_the_run_until_it_ends(played):
    screen, theirs = pty.openpty()
    environ = {**os.environ, "COLUMNS": "150", "LINES": "40", "TERM": "xterm"}
    watching = subprocess.Popen([*COMMAND, str(played.folder.parents[1])], stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    playing = threading.Thread(target=play, args=(played,))
    seen = b""
    while True:
        try:
            seen += os.read(screen, 1 << 16)
        except OSError:  # a terminal whose other end is gone
            break
        if not playing.ident and b"played" in seen:
            playing.start()
    playing.join()
    assert watching.wait() == 1
    text = seen.decode()
    for said in ("0 of 6 steps", "3 of 4 reading", "reward 0.5", "━", "The disk is full.", "has ended: failed"):
        assert said in text


@pytest.mark.slow
def test_elsewhere_lines_say_what_changes_and_a_lost_process_ends_it(played):
    played.save(data=DONE, base={"state": "running"})
    watching = subprocess.Popen([*COMMAND, str(played.folder.parents[1])], stdout=subprocess.PIPE, text=True)
    lines = []
    for line in watching.stdout:
        lines.append(line)
        if "base: running" in line:
            played.alive.close()
    assert watching.wait() == 1
    assert "data: done" in lines[0] and "the way on" in lines[-1] and len(lines) == 4
