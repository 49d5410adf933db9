"""What a plan says of time and money: from what was measured here, else a table; steps side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vibethinker import hardware, schedule
from vibethinker.artifacts import Store
from vibethinker.commands.inspect import plan as plan_command
from vibethinker.config import load
from vibethinker.estimates import estimate
from vibethinker.needs import Place
from vibethinker.plan import Plan, Step, build, states
from vibethinker.runs import plan_document
from vibethinker.throughput import NEWEST
from vibethinker.workload import work_of


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    monkeypatch.setattr(hardware, "gpus", lambda: 0)


def plan_of(workspace: Path, *overrides: str) -> Plan:
    return build(load("tiny", overrides=["execution.device=cpu", *overrides], environ={}), workspace)


def made(plan: Plan, step_id: str, seconds: float, number: int = 0, **changes: Any) -> None:
    """An output of this step, as a worker publishes it."""
    step = plan[step_id]
    work = work_of(plan.config, step, plan.config.architecture(), None)
    manifest = {"seconds": seconds, "finished": float(number), "resumed": False, "metrics": {}, "work": work, **changes}
    file = plan.workspace / "artifacts" / step_id / f"{number:064x}" / "manifest.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(manifest))


def told(plan: Plan, step_id: str) -> tuple[float, str]:
    found = estimate(plan)[step_id]
    return found["seconds"], found["source"]


def test_a_step_that_was_measured_here_is_estimated_by_that(tmp_path: Path) -> None:
    first = plan_of(tmp_path)
    assert told(first, "probe-code")[1] == "table"
    made(first, "probe-code", 30.0)
    other = plan_of(tmp_path, "seed=2", "spectrum.probing.samples=32")
    assert told(other, "probe-code") == (60.0, "measured")
    assert told(other, "probe-algebra") == (60.0, "measured")  # of the same kind
    assert told(other, "signal-1")[1] == "table"
    made(first, "probe-algebra", 10.0, 1)
    assert told(other, "probe-code")[0] == 60.0, "the step itself comes before others of its kind"


@pytest.mark.parametrize(
    "override",
    [
        "base_model.embedded.hidden_size=48",
        "execution.slots=1",
        "base_model.precision=bfloat16",
        "execution.threads=1",
    ],
)
def test_what_was_measured_under_other_conditions_does_not_count(tmp_path: Path, override: str) -> None:
    made(plan_of(tmp_path), "probe-code", 30.0)
    assert told(plan_of(tmp_path, override), "probe-code")[1] == "table"


def test_loading_does_not_grow_with_a_training_and_a_training_that_was_interrupted_tells_nothing(
    tmp_path: Path,
) -> None:
    first, longer = plan_of(tmp_path), plan_of(tmp_path, "signal.stages.0.steps=140")
    phases = {"seconds_generation": 30.0, "seconds_training": 20.0}
    made(first, "signal-1", 60.0, metrics=phases)
    assert told(longer, "signal-1") == (110.0, "measured")
    for number in range(1, 9):
        made(first, "signal-1", 9.0, number, resumed=True, metrics=phases)
    assert told(longer, "signal-1") == (110.0, "measured")


def test_an_evaluation_that_went_on_with_what_was_kept_tells_no_speed(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    made(plan, "evaluation-base", 40.0)
    made(plan, "evaluation-base", 0.2, 1, metrics={"kept_completions": 960})
    assert told(plan, "evaluation-base") == (40.0, "measured")


def test_measurements_of_held_out_problems_are_part_of_a_stage(tmp_path: Path) -> None:
    plain = plan_of(tmp_path)
    validated = plan_of(tmp_path, "signal.validation.every=70", "signal.validation.problems=8")
    objective, stage = plain.config.signal.objective, plain.config.signal.stages[0]
    rollouts, held_out = stage.steps * objective.batch_size, 2 * 8 * validated.config.signal.validation.samples
    assert stage.steps == 70
    made(plain, "signal-1", 60.0, metrics={"seconds_generation": 30.0, "seconds_training": 20.0})
    seconds, source = told(validated, "signal-1")
    assert (seconds, source) == (pytest.approx(60 + 30 * held_out / rollouts, rel=0.01), "measured")
    manifest = {"seconds_generation": 40.0, "seconds_validation": 10.0, "seconds_training": 20.0}
    made(validated, "signal-1", 80.0, 1, metrics=manifest)
    (tmp_path / "artifacts" / "signal-1" / f"{0:064x}" / "manifest.json").unlink()
    assert told(plain, "signal-1")[0] == pytest.approx(80 - 50 + 50 / (1 + held_out / rollouts), rel=0.01)


def test_an_evaluation_s_problems_are_counted_where_they_can_be(tmp_path: Path) -> None:
    """AIME 2024 has 30, LiveCodeBench 1,055 of which 100 are taken, the first file 3, the other nobody knows."""
    for name in ("mine", "train"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n" * 3)
    evaluation = "[aime24, {preset: livecodebench-all, limit: 100}, {path: mine.jsonl}, {path: other.csv, limit: 2000}]"
    settings = ("data.source=files", f"data.directory={tmp_path}", "data.train=[{path: train.jsonl}]")
    (tmp_path / "other.csv").write_text("problem,answer\n")
    plan = plan_of(tmp_path / "w", *settings, f"data.evaluation={evaluation}")
    problems, e = 30 + 100 + 3 + 1000, plan.config.evaluation
    assert estimate(plan)["evaluation-base"]["generated_tokens"] == problems * e.samples * e.max_tokens // 2
    limited = plan_of(tmp_path / "w", *settings, f"data.evaluation={evaluation}", "data.evaluation_limit=50")
    assert work_of(limited.config, limited["evaluation-base"], None, None)["generated_tokens"] == (
        (30 + 50 + 3 + 50) * e.samples * e.max_tokens // 2
    )


def test_of_several_measurements_the_median_of_the_newest_counts(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    for number, seconds in enumerate([900.0, 900.0, 900.0, 10.0, 11.0, 12.0, 13.0, 50.0]):
        made(plan, "base", seconds, number)
    assert NEWEST == 5
    assert told(plan, "base") == (12.0, "measured")


def test_steps_without_tokens_are_told_only_where_their_settings_are_the_same(tmp_path: Path) -> None:
    made(plan_of(tmp_path), "data", 4.0)
    assert told(plan_of(tmp_path, "seed=2"), "data") == (4.0, "measured")
    assert told(plan_of(tmp_path, "data.procedural.problems=9000"), "data")[1] == "table"


def test_unreadable_manifests_and_those_of_older_versions_are_passed_over(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    made(plan, "base", 5.0)
    for name, text in (("a", "{"), ("b", json.dumps({"seconds": 1.0, "metrics": {}})), ("c", "[]")):
        (tmp_path / "artifacts" / "base" / name).mkdir()
        (tmp_path / "artifacts" / "base" / name / "manifest.json").write_text(text)
    assert told(plan, "base") == (5.0, "measured")


def test_money_is_for_the_part_of_the_machine_that_a_step_holds(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "execution.price=3.6")
    made(plan, "signal-1", 100.0)
    made(plan, "probe-code", 100.0)
    found = estimate(plan)
    assert (found["signal-1"]["usd"], found["probe-code"]["usd"]) == (0.1, 0.05)


def test_on_a_gpu_starts_and_the_scheduler_of_vllm_count_beside_the_tokens(
    tmp_path: Path,
) -> None:
    """A tiny model's tokens are next to nothing for a GPU; what its stage takes is its start and vLLM's Python."""
    plan = build(load("tiny", overrides=["execution.gpu=H200", "execution.engine=vllm"], environ={}), tmp_path)
    found = estimate(plan)
    for step, start in (("specialist-algebra", 15 + 20), ("probe-algebra", 15 + 30), ("signal-1", 15 + 20 + 30)):
        generating = found[step]["generated_tokens"] / 28e3
        assert found[step]["seconds"] == pytest.approx(start + generating, rel=0.02)
    without = ["execution.gpu=H200", "execution.engine=transformers"]
    plan = build(load("tiny", overrides=without, environ={}), tmp_path)
    assert estimate(plan)["probe-algebra"]["seconds"] == pytest.approx(15, rel=0.1), "no vLLM that would start"


def shaped(workspace: Path, slots: int) -> Plan:
    """Two pairs that train side by side, a stage that needs the machine alone, evaluations, and a report."""
    shape = {
        "base": ("base", []), "a": ("specialist", ["base"]), "b": ("specialist", ["base"]),
        "measure": ("evaluation", ["base"]), "stage": ("signal", ["a", "b"]), "end": ("report", ["stage", "measure"]),
    }  # fmt: skip
    steps = [
        Step(id, "import", {"role": role}, {need: need for need in needs}, id * 8)
        for id, (role, needs) in shape.items()
    ]
    overrides = ["execution.device=cpu", f"execution.slots={slots}"]
    return Plan(load("micro", overrides=overrides, environ={}), tuple(steps), workspace)


@pytest.mark.parametrize(
    ("slots", "seconds", "whole"),
    [
        (2, {"a": 10, "b": 6, "measure": 3}, 2 + 10 + 5 + 1),  # measured beside what trains
        (2, {"a": 10, "b": 6, "measure": 30}, 2 + 36 + 5 + 1),  # the stage needs both slots
        (1, {"a": 10, "b": 6, "measure": 3}, 2 + 19 + 5 + 1),
    ],
)
def test_the_whole_takes_as_long_as_its_steps_side_by_side(
    tmp_path: Path, slots: int, seconds: dict[str, float], whole: float
) -> None:
    of = {"base": 2.0, "stage": 5.0, "end": 1.0, **seconds}
    assert schedule.makespan(shaped(tmp_path, slots), of, list(of), None) == whole
    assert schedule.makespan(shaped(tmp_path, slots), of, ["stage", "end"], None) == 6.0
    assert schedule.makespan(shaped(tmp_path, slots), {**of, "a": None}, list(of), None) is None


def test_a_local_teacher_has_its_own_engine_length_and_the_machine_s_price(tmp_path: Path) -> None:
    model = "Qwen/Qwen3-0.6B"
    settings = [
        "execution.gpu=H200",
        "execution.price=3.6",
        f"data.teacher.model={model}",
        f"base_model.source={model}",
    ]

    def data(*more: str) -> dict[str, Any]:
        return estimate(build(load("qwen3-0.6b", overrides=[*settings, *more], environ={}), tmp_path))["data"]

    quick, slow = data("data.teacher.engine=vllm"), data("data.teacher.engine=transformers")
    assert quick["seconds"] - slow["seconds"] > 30, "vLLM starts"
    assert quick["usd"] == pytest.approx(quick["seconds"] / 1000, rel=0.01)
    assert data("data.teacher.engine=vllm", "data.teacher.model=another/one")["seconds"] is None


def test_what_one_teacher_took_says_nothing_of_another(tmp_path: Path) -> None:
    one, same, other = (
        work_of(plan.config, plan["data"], None, None)["conditions"]
        for plan in (plan_of(tmp_path, f"data.teacher.model={name}") for name in ("a/small", "a/small", "a/large"))
    )
    assert one == same != other


def test_only_what_trains_takes_several_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two GPUs for two steps each, a base takes one, a specialist of two processes both, an evaluation a half."""
    monkeypatch.setattr(hardware, "gpus", lambda: 2)
    settings = ["execution.device=cuda", "execution.processes=2", "execution.steps_per_gpu=2"]
    plan = build(load("tiny", overrides=settings, environ={}), tmp_path)
    place = Place("H100", 80 << 30, True)
    seconds = dict.fromkeys(plan.fingerprints, 10.0)
    evaluations = [step.id for step in plan.steps if step.kind == "evaluation"][:4]
    specialists = [step.id for step in plan.steps if step.kind == "specialist"][:2]
    assert schedule.makespan(plan, seconds, evaluations, place) == 10.0
    assert schedule.makespan(plan, seconds, specialists, place) == 20.0


def test_a_stage_that_may_share_takes_one_slot(tmp_path: Path) -> None:
    plan = shaped(tmp_path, 2)
    settings = ["execution.device=cpu", "execution.slots=2", "execution.stages_share=true"]
    sharing = replace(plan, config=load("micro", overrides=settings, environ={}))
    of = {"base": 2.0, "a": 10.0, "b": 6.0, "measure": 30.0, "stage": 5.0, "end": 1.0}
    assert schedule.makespan(sharing, of, list(of), None) == 2 + 36 + 1, "the stage runs beside the measurement"


def test_the_plan_says_how_long_all_takes_and_where_that_is_from(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    made(plan, "base", 50.0)
    document = plan_document(plan, states(plan, Store(tmp_path)))
    whole, each = document["estimate"], [step["estimate"]["seconds"] for step in document["steps"]]
    assert whole["work_seconds"] == pytest.approx(sum(each), abs=0.1)
    assert sum(each) / 2 < whole["seconds"] < sum(each)
    assert whole["elapsed_seconds"] > whole["seconds"]
    assert (whole["slots"], whole["measured"], whole["steps"]) == (2, 1, len(each))


def test_the_plan_command_tells_it_to_people(tmp_path: Path) -> None:
    for override in ((), ("--set", "execution.price=7.2")):
        command = ["--profile", "tiny", "--workspace", str(tmp_path), "--set", "execution.device=cpu", *override]
        told = CliRunner().invoke(plan_command, command)
        assert told.exit_code == 0, told.output
        [base] = [line for line in told.output.splitlines() if line.strip().startswith("base ")]
        if not override:
            assert base.split()[-1] == "table"
            assert "2 at once; " in told.output and "by the table of usual speeds)" in told.output
            made(plan_of(tmp_path), "base", 50.0)
        else:
            assert base.split()[-4:] == ["50", "s", "measured", "0.10"]
            assert "1 of them as measured here before, others by the table of usual speeds)" in told.output
            assert " USD (estimated" in told.output
