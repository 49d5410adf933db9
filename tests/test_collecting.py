"""What no kept run needs can be told, and goes whole or not at all; what anybody needs stays."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from vibethinker import collecting, config, locks, runs
from vibethinker.artifacts import Store, write_json
from vibethinker.cli import cli
from vibethinker.collecting import Found, Keep
from vibethinker.errors import ConfigurationError, VibeThinkerError
from vibethinker.plan import Plan, Step

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return tmp_path / "workspace"


def publish(workspace: Path, step: str, fingerprint: str) -> Path:
    store = Store(workspace)
    staging = store.staging(step, fingerprint)
    (staging / "file").write_text(fingerprint)
    return store.publish(staging, step, fingerprint, inputs={}, record={"metrics": {}, "seconds": 1.0}).folder


def started(workspace: Path, run_id: str, **outputs: str) -> runs.Run:
    """A run of these steps (id → fingerprint) whose process is this one."""
    steps = tuple(Step(i, "fusion", {}, {}, fingerprint) for i, fingerprint in outputs.items())
    run = runs.Run(Plan(config.load("micro", environ={}), steps, workspace), run_id)
    for step in steps:
        if not run.store.folder(step.id, step.fingerprint).exists():
            publish(workspace, step.id, step.fingerprint)
    folder = workspace / "runs" / run_id
    # The estimates of plan.json need a whole recipe, so the files of `create` that gc reads are written here.
    document = {"schema": 1, "steps": [{"id": s.id, "fingerprint": s.fingerprint} for s in steps]}
    number = 1 + len(runs.folders(workspace))
    write_json(folder / "plan.json", document)
    write_json(folder / "state.json", {"resume": "vibethinker run", "started": time.time(), "number": number})
    (folder / "config.yaml").write_text("{}")
    run._alive = locks.attempt(folder / runs.ALIVE)
    run.save()
    return run


def ended(workspace: Path, run_id: str, **outputs: str) -> Path:
    run = started(workspace, run_id, **outputs)
    run.close()
    return run.folder


def names(found: Found) -> set[str]:
    return {f"{one.what} {one.path.parent.name}/{one.path.name}" for one in found.unneeded if one.what != "lock"}


def test_an_output_that_any_kept_run_s_plan_names_stays(workspace: Path) -> None:
    ended(workspace, "old", data=A, fusion=B)
    ended(workspace, "new", data=A, fusion=C)
    found = collecting.collect(workspace, Keep(newest=1))
    assert names(found) == {"run runs/old", f"output fusion/{B}"}
    assert Store(workspace).find("data", A)[0]
    assert Store(workspace).find("fusion", C)[0]
    assert not Store(workspace).folder("fusion", B).exists()
    assert not (workspace / "runs" / "old").exists()
    assert not list((workspace / "trash").iterdir())
    assert names(collecting.find(workspace, Keep(newest=1))) == set()


def test_finding_changes_nothing(workspace: Path) -> None:
    ended(workspace, "old", fusion=B)
    before = sorted(workspace.rglob("*"))
    assert names(collecting.find(workspace, Keep(newest=0)))
    assert sorted(workspace.rglob("*")) == before


def test_a_run_that_is_alive_or_named_keeps_what_it_needs(workspace: Path) -> None:
    ended(workspace, "named", fusion=A)
    alive = started(workspace, "alive", fusion=B)
    ended(workspace, "other", fusion=C)
    found = collecting.collect(workspace, Keep(newest=0, named=("named",)))
    assert names(found) == {"run runs/other", f"output fusion/{C}"}
    assert found.kept == {"named": "named", "alive": "alive"}
    alive.close()
    found = collecting.collect(workspace, Keep(newest=0))
    assert names(found) == {"run runs/named", "run runs/alive", f"output fusion/{A}", f"output fusion/{B}"}


def test_runs_of_an_experiment_stay_until_it_is_finished(workspace: Path) -> None:
    ended(workspace, "arm", fusion=A)
    ended(workspace, "other", fusion=B)
    result = {"id": "x-1", "status": "interrupted", "runs": [{"run_id": "arm"}]}
    write_json(workspace / "experiments" / "x-1" / "result.json", result)
    found = collecting.find(workspace, Keep(newest=0))
    assert (names(found), found.kept) == (
        {"run runs/other", f"output fusion/{B}"},
        {"arm": "the experiment x-1 isn't finished"},
    )
    write_json(workspace / "experiments" / "x-1" / "result.json", {**result, "status": "completed"})
    assert f"output fusion/{A}" in names(collecting.find(workspace, Keep(newest=0)))
    (workspace / "experiments" / "x-1" / "result.json").write_text("{")
    with pytest.raises(VibeThinkerError, match="x-1"):
        collecting.find(workspace, Keep(newest=0))


def test_an_output_that_a_kept_run_s_configuration_names_stays(workspace: Path) -> None:
    ended(workspace, "old", fusion=A, data=B)
    kept = ended(workspace, "new", fusion=C)
    values = {"base_model": {"source": str(workspace / "artifacts" / "fusion" / A)}}
    (kept / "config.yaml").write_text(yaml.safe_dump(values))
    state = json.loads((kept / "state.json").read_text())
    resume = f"vibethinker run --from data=elsewhere/artifacts/data/{B}"
    write_json(kept / "state.json", {**state, "resume": resume})
    assert names(collecting.find(workspace, Keep(newest=1))) == {"run runs/old"}


def test_nothing_goes_where_a_kept_run_s_needs_cannot_be_told(workspace: Path) -> None:
    ended(workspace, "old", fusion=A)
    kept = ended(workspace, "new", fusion=B)
    (kept / "plan.json").write_text("{")
    assert names(collecting.find(workspace, Keep(newest=1))) == {"run runs/old", f"output fusion/{A}"}
    (kept / "summary.json").write_text("{")
    with pytest.raises(VibeThinkerError, match="What the run new needs can't be told"):
        collecting.collect(workspace, Keep(newest=1))
    assert Store(workspace).find("fusion", A)[0]


def test_an_older_version_s_run_that_may_be_alive_stays(workspace: Path) -> None:
    folder = ended(workspace, "old", fusion=A)
    (folder / runs.ALIVE).unlink()
    assert collecting.find(workspace, Keep(newest=0)).kept
    write_json(folder / "summary.json", {**runs.read_summary(folder), "status": "failed"})
    assert names(collecting.find(workspace, Keep(newest=0))) == {"run runs/old", f"output fusion/{A}"}


def test_a_run_whose_measurements_did_not_arrive_stays(workspace: Path) -> None:
    folder = ended(workspace, "old", fusion=A)
    (folder / "tracking.jsonl").write_text('{"op": "run"}\n')
    write_json(folder / "tracking.json", {"delivered": 0, "run": "", "store": "s"})
    assert names(collecting.find(workspace, Keep(newest=0))) == set()
    write_json(folder / "tracking.json", {"delivered": 14, "run": "", "store": "s"})
    assert names(collecting.find(workspace, Keep(newest=0))) == {"run runs/old", f"output fusion/{A}"}


def test_checkpoints_of_published_and_forgotten_steps_go(workspace: Path) -> None:
    store = Store(workspace)
    ended(workspace, "run", fusion=A)
    plan = workspace / "runs" / "run" / "plan.json"
    steps = [{"id": "fusion", "fingerprint": A}, {"id": "signal-1", "fingerprint": B}]
    write_json(plan, {"steps": steps})
    for step, fingerprint in (("fusion", A), ("signal-1", B), ("signal-1", C)):
        store.resumable(step, fingerprint, {"model": "x"})
    found = collecting.collect(workspace, Keep(newest=1))
    assert names(found) == {f"checkpoints fusion/{A}", f"checkpoints signal-1/{C}"}
    assert store.checkpoints("signal-1", B).exists()


def test_what_somebody_works_on_stays(workspace: Path) -> None:
    store = Store(workspace)
    for step, fingerprint in (("data", A), ("fusion", B)):
        publish(workspace, step, fingerprint)
        store.staging(step, fingerprint)
        store.resumable(step, fingerprint, {"model": "x"})
    with store.lock("data", A):
        found = collecting.collect(workspace, Keep(newest=0))
    assert names(found) == {f"output fusion/{B}", f"checkpoints fusion/{B}", f"staging staging/fusion-{B}"}
    assert {one.path.parent.parent.name for one in found.busy} == {"artifacts", "checkpoints"}
    assert (workspace / "staging" / f"data-{A}").exists()


def test_the_attic_and_what_a_killed_collection_left_go(workspace: Path) -> None:
    publish(workspace, "fusion", A)
    Store(workspace).retire("fusion", A)
    (workspace / "trash" / "half").mkdir(parents=True)
    (workspace / "runs" / "unborn" / "logs").mkdir(parents=True)
    found = collecting.collect(workspace, Keep(newest=5))
    assert sorted(one.what for one in found.unneeded) == ["attic", "run", "trash"]
    assert not [path for place in ("attic", "trash", "runs") for path in (workspace / place).iterdir()]


def test_what_is_younger_stays_and_so_does_what_comes_from_the_future(workspace: Path) -> None:
    ended(workspace, "old", fusion=A)
    ended(workspace, "late", fusion=B)
    for name, seconds in (("old", -7200.0), ("late", 86400.0)):
        state = json.loads((workspace / "runs" / name / "state.json").read_text())
        write_json(workspace / "runs" / name / "state.json", {**state, "started": time.time() + seconds})
    for path in Store(workspace).folder("fusion", A).iterdir():
        os.utime(path, (0, 0))
    found = collecting.find(workspace, Keep(newest=0, younger_than=3600))
    # The folder of the output has just been renamed, which no utime hides.
    assert names(found) == {"run runs/old"}
    assert found.kept == {"late": "young"}


@pytest.mark.slow
def test_locks_of_forgotten_steps_go_and_a_waiting_process_does_not_hold_a_dead_one(workspace: Path) -> None:
    store = Store(workspace)
    path = workspace / "locks" / f"fusion-{A}"
    removed = False

    def remove() -> None:
        nonlocal removed
        removed = True
        path.unlink()  # as its holder may
        holder.close()

    holder = locks.attempt(path)
    assert holder is not None
    with store.lock("fusion", A, waiting=remove):
        assert removed
        assert locks.is_held(path)
    collecting.collect(workspace, Keep(newest=0))
    assert not path.exists()


def test_sweeping_removes_what_dead_processes_wrote(workspace: Path) -> None:
    store = Store(workspace)
    store.staging("data", A)
    store.staging("fusion", B)
    for step, fingerprint in (("data", A), ("fusion", B)):
        (workspace / "staging" / f"{step}-{fingerprint}-ranks" / "1").mkdir(parents=True)
    (workspace / "trash" / "half").mkdir(parents=True)
    with store.lock("data", A):
        goes = {one.path.name for one in collecting.find(workspace, Keep(newest=0)).unneeded if one.what == "staging"}
        assert goes == {f"fusion-{B}", f"fusion-{B}-ranks"}
        collecting.sweep(workspace)
    assert sorted(path.name for path in (workspace / "staging").iterdir()) == [f"data-{A}", f"data-{A}-ranks"]
    assert not list((workspace / "trash").iterdir())


def test_the_newest_run_is_the_one_that_was_started_last_whatever_the_clock_said(workspace: Path) -> None:
    ended(workspace, "first", fusion=A)
    ended(workspace, "second", fusion=B)
    state = json.loads((workspace / "runs" / "first" / "state.json").read_text())
    write_json(workspace / "runs" / "first" / "state.json", {**state, "started": time.time() + 1e8})
    assert runs.latest(workspace).name == "second"
    assert names(collecting.find(workspace, Keep(newest=1))) == {"run runs/first", f"output fusion/{A}"}


def test_the_command_shows_first_and_removes_when_told(workspace: Path) -> None:
    ended(workspace, "old", fusion=A)
    ended(workspace, "new", fusion=B)
    arguments = ["gc", "--workspace", str(workspace), "--keep", "1"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    assert f"fusion/{A[:12]}" in shown.output
    assert "remove them by --apply" in shown.output
    assert Store(workspace).folder("fusion", A).exists()
    told = json.loads(CliRunner().invoke(cli, [*arguments, "--apply", "--json"]).output)
    assert told["applied"]
    assert told["kept"] == {"new": "newest"}
    assert {one["what"] for one in told["unneeded"]} >= {"run", "output"}
    assert told["bytes"] == sum(one["bytes"] for one in told["unneeded"]) > 0
    assert not Store(workspace).folder("fusion", A).exists()
    assert "nothing to remove" in CliRunner().invoke(cli, [*arguments, "--apply"]).output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--keep", "-1"], "-1"), (["--older-than", "soon"], "12h, 30d, 4w"), (["--keep-run", "x"], "no run 'x'")],
)
def test_wrong_usage_is_told(workspace: Path, arguments: list[str], says: str) -> None:
    workspace.mkdir()
    done = CliRunner().invoke(cli, ["gc", "--workspace", str(workspace), *arguments])
    error = done.exception if isinstance(done.exception, ConfigurationError) else None
    assert getattr(error, "exit_code", done.exit_code) == 2
    assert says in (str(error) if error else done.output)
