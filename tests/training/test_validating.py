"""Held-out problems measured while a stage trains, and the best of its updates as its output."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.training import stopping
from tests.training.conftest import a_problem
from tests.training.stopping import OBJECTIVE, Fragile, Killed, ask, die, files, restarted
from vibethinker import preemption
from vibethinker.config import load
from vibethinker.data.schema import Problem, read_records, write_records
from vibethinker.errors import ConfigurationError, DataError, PreemptedError
from vibethinker.models import load_state
from vibethinker.plan import build
from vibethinker.steps import StepContext
from vibethinker.training.signal import run
from vibethinker.training.validating import Validating

pytestmark = pytest.mark.slow

STAGE = stopping.STAGE | {"steps": 4}
HELD_OUT = [(a, b) for a in (1, 2) for b in range(1, 5)]  # products, which the model has been taught


@pytest.fixture(scope="module")
def data(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of all training tests, with a validation split of which two problems are training problems too."""
    folder = tmp_path_factory.mktemp("validated data")
    (folder / "rl").symlink_to(data_folder / "rl")
    (folder / "validation").mkdir()
    problems = [replace(a_problem(a, b, "geometry"), domain="algebra") for a, b in HELD_OUT]
    problems += [a_problem(1, 2, "algebra"), a_problem(3, 4, "algebra")]
    write_records(folder / "validation" / "algebra.parquet", Problem, problems)
    return folder


@pytest.fixture
def stage(new_step: Callable[..., StepContext], taught_folder: Path, data: Path) -> Callable[..., StepContext]:
    """A function settings of validation (None: off), of the objective → a fresh context of a stage of 4 updates that
    saves after each."""

    def new(validation: dict | None, **objective) -> StepContext:
        preemption.install()
        settings = {
            "seed": 1, "deterministic": True, "domains": ["algebra"], "prompts": {}, "verification": {},
            "base_model": {}, "stage": STAGE, "objective": OBJECTIVE | objective,
        }  # fmt: skip
        if validation is not None:
            settings["validation"] = {"every": 2, "samples": 2, "problems": 6} | validation
        return new_step(settings, {"model": taught_folder, "data": data}, checkpoints={"seconds": 0, "keep": 9})

    return new


@pytest.fixture(autouse=True)
def listening(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_asked", "_done"):
        monkeypatch.setattr(preemption, name, False)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """A function update → share of right samples, which then take the place of those measured."""
    tell = Validating._tell

    def take(values: dict[int, float]) -> None:
        def tells(self, update, outcomes, graded) -> None:
            tell(self, update, outcomes, graded)
            self.values[update] = values[update]

        monkeypatch.setattr(Validating, "_tell", tells)

    return take


def measured(context: StepContext) -> dict[int, float]:
    rows = [json.loads(line) for line in (context.output / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["validation/avg@2"] for row in rows if "validation/avg@2" in row}


def weights(context: StepContext) -> bytes:
    return (context.output / "model.safetensors").read_bytes()


def test_it_is_told_and_changes_no_weight(stage) -> None:
    plain, validated = stage(None), stage({})
    run(plain)
    found = run(validated)
    assert weights(plain) == weights(validated)
    values = measured(validated)
    assert list(values) == [0, 2, 4]
    assert len(set(values.values())) > 1
    assert {
        update: row["validation/avg@2"] for update, row in validated.emit.rows if "validation/avg@2" in row
    } == values
    assert any("validation: sampling" in text for _, _, text in validated.emit.positions)
    assert any("2 of 10 validation problems are training problems too" in text for text in validated.emit.warnings)
    assert found["selected_update"] == 4
    assert (found["validation/start"], found["validation/last"]) == (values[0], values[4])
    assert found["seconds_validation"] > 0
    selected = json.loads((validated.output / "signal.json").read_text())["selected"]
    assert selected == {"select": "last", "update": 4, "values": {str(u): v for u, v in values.items()}}
    # Nothing else is left, and nothing of it where it is off.
    assert set(files(plain.output)) == set(files(validated.output))
    assert "selected" not in (plain.output / "signal.json").read_text()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_best_update_is_what_is_published(stage, given, method: str) -> None:
    """Of four updates the second, by values that are given here; it has the weights of a stage that ends there."""
    given({0: 0.9, 2: 0.5, 4: 0.3})
    options = {"method": method, "lora": {"rank": 4}}
    best = stage({"select": "best_val"}, **options)
    assert run(best)["selected_update"] == 2
    short = stage(None, **options)
    short.settings["stage"] = STAGE | {"steps": 2}
    run(short)
    assert weights(best) == weights(short)
    assert not (best.output / "validated").exists()


@pytest.mark.parametrize(
    "how", ["killed while it measures the end", "asked while it measures", "asked while it samples afterwards"]
)
def test_a_stage_that_is_stopped_goes_on_to_the_same_bytes(stage, how: str) -> None:
    whole, context = stage({"select": "best_val"}), stage({"select": "best_val"})
    found = run(whole)
    killed = how.startswith("killed")
    then, update = (die, 4) if killed else (ask, 2)
    emit: Fragile = Fragile(update, then, sampling=True)
    if how != "asked while it samples afterwards":
        words = "validation: grading"

        def progress(done: int, total: int, text: str = "") -> None:
            if done == update and words in text:
                then()

        emit.progress = progress  # type: ignore[method-assign]
    with pytest.raises(Killed if killed else PreemptedError):
        run(replace(context, emit=emit))
    context = restarted(context)
    again = run(context)
    assert files(context.output) == files(whole.output)
    assert list(measured(context)) == [0, 2, 4]
    assert again["selected_update"] == found["selected_update"]


def test_a_stage_whose_best_update_lies_before_the_stop_still_has_it(stage, given) -> None:
    given({0: 0.0, 2: 0.8, 4: 0.5})
    whole, context = stage({"select": "best_val"}), stage({"select": "best_val"})
    assert run(whole)["selected_update"] == 2
    with pytest.raises(Killed):
        run(replace(context, emit=Fragile(3, die)))
    context = restarted(context)
    run(context)
    assert files(context.output) == files(whole.output)


def test_without_a_held_out_problem_it_says_so(stage, tmp_path: Path, data: Path) -> None:
    context = stage({})
    (tmp_path / "data" / "validation").mkdir(parents=True)
    (tmp_path / "data" / "rl").symlink_to(data / "rl")
    trained = read_records(data / "rl" / "algebra.parquet", Problem)
    write_records(tmp_path / "data" / "validation" / "algebra.parquet", Problem, trained)
    context.inputs["data"] = tmp_path / "data"
    with pytest.raises(DataError, match="no held-out problem"):
        run(context)


def test_a_file_of_the_stage_s_own_goes_before_the_split(stage, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"problem": "8+8?", "answer": 16}\n')
    context = stage({})
    context.settings["stage"] = STAGE | {"validation_data": "mine.jsonl", "steps": 2}
    context.execution["paths"]["mine.jsonl"] = str(file)
    found = run(context)
    assert found["validation/last"] in (0.0, 0.5, 1.0)
    assert load_state(context.output)


def test_only_a_stage_that_is_measured_has_another_fingerprint(tmp_path: Path) -> None:
    def fingerprint(*settings: str) -> str:
        return build(load("micro", overrides=settings, environ={}), tmp_path)["signal-1"].fingerprint

    off = fingerprint()
    assert fingerprint("signal.validation.samples=9") == off
    on = fingerprint("signal.validation.every=1")
    assert on != off
    assert fingerprint("signal.validation.every=1", "signal.validation.select=best_val") not in (on, off)
    with pytest.raises(ConfigurationError, match=r"signal\.validation\.every is 0"):
        load("micro", overrides=["signal.validation.select=best_val"], environ={})
