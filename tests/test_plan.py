"""Fingerprints: known beforehand, stable, and changed by exactly what a step depends on."""

from __future__ import annotations

import json
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from vibethinker.artifacts import Artifact, Store
from vibethinker.config import load
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.estimates import estimate
from vibethinker.plan import Plan, StepState, build, reuse_warnings, states
from vibethinker.runs import Run, plan_document


def plan_of(workspace: Path, *overrides: str, profile: str = "micro", replaced: dict[str, str] | None = None) -> Plan:
    return build(load(profile, overrides=overrides, environ={}), workspace, replaced)


def changed(workspace: Path, *overrides: str) -> set[str]:
    before, after = plan_of(workspace), plan_of(workspace, *overrides)
    return {s.id for s in before.steps if s.fingerprint != after[s.id].fingerprint}


def test_steps_are_named_as_the_contracts_say(tmp_path: Path) -> None:
    assert [s.id for s in plan_of(tmp_path).steps] == [
        "data", "base",
        "specialist-algebra", "specialist-statistics", "specialist-code",
        "probe-algebra", "probe-statistics", "probe-code",
        "fusion", "signal-1", "signal-2",
        "evaluation-base",
        "evaluation-specialist-algebra", "evaluation-specialist-statistics", "evaluation-specialist-code",
        "evaluation-fusion", "evaluation-signal-1", "evaluation-signal-2", "report",
    ]  # fmt: skip


def test_a_step_comes_after_what_it_reads(tmp_path: Path) -> None:
    seen: set[str] = set()
    for step in plan_of(tmp_path, "spectrum.mode=trajectory").steps:
        assert set(step.depends_on) <= seen
        seen.add(step.id)


def test_fingerprints_depend_neither_on_the_workspace_nor_on_execution(tmp_path: Path) -> None:
    assert changed(tmp_path, "spectrum.sft.micro_tokens=800", "execution.slots=1", "signal.micro_tokens=800") == set()
    here, there = plan_of(tmp_path), plan_of(tmp_path / "other")
    assert [s.fingerprint for s in here.steps] == [s.fingerprint for s in there.steps]


def test_whoever_lets_a_diverged_training_go_back_goes_on_with_what_it_had_saved(tmp_path: Path) -> None:
    assert changed(tmp_path, "execution.divergence.rollbacks=2", "execution.divergence.rollback_rate=0.1") == set()


def test_a_reused_output_that_was_rolled_back_is_told() -> None:
    made = {"metrics": {"rollbacks": 2, "rollback_rate": 0.25}, "versions": {}}
    found = {"signal-1": StepState("cached", Artifact(Path("x"), made)), "base": StepState("to_run")}
    [text] = reuse_warnings(found)
    assert "signal-1 diverged" in text
    assert "0.25 of its learning rate" in text


def test_a_changed_second_stage_changes_it_and_what_follows(tmp_path: Path) -> None:
    assert changed(tmp_path, "signal.stages.1.overrides={learning_rate: 1.0e-5}") == {
        "signal-2",
        "evaluation-signal-2",
        "report",
    }


def test_a_setting_that_came_later_is_named_only_where_it_differs(tmp_path: Path) -> None:
    assert changed(tmp_path, "signal.objective.updates=1", "signal.objective.ratio=token") == set()
    assert "signal-1" in changed(tmp_path, "signal.objective.updates=2")
    assert "updates" not in plan_of(tmp_path)["signal-1"].settings["objective"]


@pytest.mark.parametrize("change", ["{learning_rate: 1.0e-5}", "{lambda: 0}"])
def test_a_run_forked_at_a_stage_reuses_all_that_comes_before(tmp_path: Path, change: str) -> None:
    stage = "signal.stages=[{name: a, context: 96, steps: 2}, {name: b, context: 96, steps: 2%s}, "
    stage += "{name: c, context: 96, steps: 2}]"
    before, after = plan_of(tmp_path, stage % ""), plan_of(tmp_path, stage % f", overrides: {change}")
    differ = {s.id for s in before.steps if s.fingerprint != after[s.id].fingerprint}
    assert differ == {"signal-2", "signal-3", "evaluation-signal-2", "evaluation-signal-3", "report"}


def test_a_seed_of_the_stages_leaves_all_that_comes_before(tmp_path: Path) -> None:
    stages = {"signal-1", "signal-2", "evaluation-signal-1", "evaluation-signal-2", "report"}
    assert changed(tmp_path, "signal.seed=2") == stages
    assert changed(tmp_path, "signal.seed=1") == set(), "the seed that they have anyway"
    of_spectrum = changed(tmp_path, "spectrum.seed=2")
    assert of_spectrum > {"specialist-algebra", "probe-code", "fusion", "evaluation-fusion"} | stages
    assert not of_spectrum & {"data", "base", "evaluation-base"}


@pytest.mark.parametrize(
    ("seeds", "of_spectrum", "of_signal"), [(["spectrum.seed=2"], 2, 2), (["spectrum.seed=2", "signal.seed=3"], 2, 3)]
)
def test_what_a_seed_draws_anew_is_measured_by_that_seed_too(
    tmp_path: Path, seeds: list[str], of_spectrum: int, of_signal: int
) -> None:
    more = ["spectrum.fusion.method=dare", "spectrum.hard.samples=4", "distillation.samples=2"]
    plan = plan_of(tmp_path, *seeds, *more)
    found = {step.id: step.settings["seed"] for step in plan.steps if "seed" in step.settings}
    first = {"data", "base", "evaluation-base"}
    late = {id for id in found if "signal" in id or "distilled" in id}
    assert {"solutions-signal-1", "distilled", "evaluation-distilled"} <= late
    assert {"fusion", "hard-code", "solutions-code", "evaluation-fusion"} <= found.keys() - first - late
    assert found == {id: 1 if id in first else of_signal if id in late else of_spectrum for id in found}


def test_a_changed_probe_leaves_data_base_and_specialists(tmp_path: Path) -> None:
    found = changed(tmp_path, "spectrum.probing.k=1")
    assert {"probe-algebra", "fusion", "signal-1", "evaluation-specialist-algebra"} <= found
    assert not found & {"data", "base", "specialist-algebra", "evaluation-base"}


def test_the_seed_changes_everything(tmp_path: Path) -> None:
    assert changed(tmp_path, "seed=2") == {s.id for s in plan_of(tmp_path).steps}


def test_one_trajectory_serves_every_domain(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "spectrum.mode=trajectory")
    assert plan.ids("specialist") == ["specialist-mixture"]
    assert {plan[f"probe-{d}"].inputs["specialist"] for d in plan.config.domains} == {"specialist-mixture"}


def test_a_replaced_step_needs_nothing_that_led_to_it(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    plan = plan_of(tmp_path, replaced={"fusion": str(tmp_path / "mine")})
    assert [s.id for s in plan.steps] == [
        "data", "fusion", "signal-1", "signal-2",
        "evaluation-fusion", "evaluation-signal-1", "evaluation-signal-2", "report",
    ]  # fmt: skip
    first = plan["fusion"].fingerprint
    (tmp_path / "mine" / "config.json").write_text("{ }")
    assert plan_of(tmp_path, replaced={"fusion": str(tmp_path / "mine")})["fusion"].fingerprint != first


def test_a_step_that_is_not_there_can_not_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such step"):
        plan_of(tmp_path, replaced={"fushion": str(tmp_path)})


def test_an_outside_file_counts_by_its_content_not_its_place(tmp_path: Path) -> None:
    def fingerprint(folder: str, text: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "train.jsonl").write_text(text)
        files = "data.train=[{path: train.jsonl, domain: algebra}]"
        return plan_of(tmp_path, "data.source=files", files, f"data.directory={tmp_path / folder}")["data"].fingerprint

    assert fingerprint("a", "{}\n") == fingerprint("b", "{}\n") != fingerprint("a", "{} \n")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        plan_of(tmp_path, "data.source=files", "data.train=[{path: absent.jsonl, domain: algebra}]")


def test_limits_that_only_end_the_data_step_change_nothing(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/v1"
    teacher = f"data.teacher={{model: sage, engine: server, server: {{url: '{url}'}}, budget: {{%s}}}}"

    def step(*overrides: str, budget: str = "") -> tuple[str, dict]:
        made = plan_of(tmp_path, teacher % budget, *overrides)["data"]
        return made.fingerprint, made.settings["data"]

    first, _ = step()
    raised, settings = step("data.bad_rows=0.1", budget="tokens: 5, usd: 3, input_price: 1")
    assert raised == first
    assert (settings["bad_rows"], settings["teacher"]["budget"]["tokens"]) == (0.1, 5), "the step is told all the same"
    some, more = (step(budget=f"then: use, tokens: {n}")[0] for n in (5, 6))
    assert len({first, some, more}) == 3, "what goes on without all replies comes to something else"


def test_a_local_model_of_the_data_step_counts_by_its_content(tmp_path: Path) -> None:
    file, folder = tmp_path / "teacher.gguf", tmp_path / "model"
    folder.mkdir()
    overrides = (f"data.teacher.model={file}", f"data.tokenizer={folder}", f"data.diversity.embedding={folder}")
    found = set()
    for weights, shape in (("one", "a"), ("other", "a"), ("other", "b")):
        file.write_text(weights)
        (folder / "config.json").write_text(shape)
        found.add(plan_of(tmp_path, *overrides)["data"].fingerprint)
    assert len(found) == 3
    assert plan_of(tmp_path, *overrides)["data"].outside == {str(file): str(file), str(folder): str(folder)}


@pytest.mark.parametrize("setting", ["tokenizer", "diversity.embedding"])
def test_a_model_that_the_data_step_can_not_look_up_is_refused(tmp_path: Path, setting: str) -> None:
    (tmp_path / "model.gguf").write_text("")
    for name in ("Qwen/Qwen3-0.6B", tmp_path / "absent", tmp_path / "model.gguf"):
        with pytest.raises(ConfigurationError, match=rf"data\.{setting} .* is no folder here: name a model's folder"):
            plan_of(tmp_path, f"data.{setting}={name}")


def test_a_teacher_is_looked_for_only_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan_of(tmp_path, "data.teacher.model=some/teacher")["data"].outside == {}
    with pytest.raises(ConfigurationError, match=r"data\.teacher\.model '\./absent': there is no such file or folder"):
        plan_of(tmp_path, "data.teacher.model=./absent")
    (tmp_path / "sage").mkdir()
    assert plan_of(tmp_path, "data.teacher.model=sage")["data"].outside == {"sage": str(tmp_path / "sage")}
    server = ("data.teacher.engine=server", "data.teacher.server={url: 'http://127.0.0.1:1/v1'}")
    for name in ("sage", "./absent"):
        assert plan_of(tmp_path, f"data.teacher.model={name}", *server)["data"].outside == {}


@pytest.mark.parametrize("profile", ["tiny", "qwen3-0.6b", "vibethinker-1.5b", "vibethinker-3b"])
def test_every_profile_has_a_plan_with_estimates(tmp_path: Path, profile: str) -> None:
    plan = plan_of(tmp_path, "execution.gpu=H100", "execution.price=2", profile=profile)
    document = plan_document(plan, states(plan, Store(tmp_path)))
    assert json.loads(json.dumps(document)) == document
    for step in document["steps"]:
        assert step["state"] == "to_run"
        estimate = step["estimate"]
        if step["kind"] in ("specialist", "signal"):
            assert estimate["trained_tokens"] > 0
            assert estimate["seconds"] > 0
            assert estimate["gpu_memory_bytes"] > 0


def test_processes_share_the_time_of_a_training_step_and_not_its_cost(tmp_path: Path) -> None:
    given = ("execution.gpu=H100", "execution.price=2")
    one, two = (
        estimate(plan_of(tmp_path, *given, f"execution.processes={processes}", profile="vibethinker-1.5b"))
        for processes in (1, 2)
    )
    assert two["signal-1"]["seconds"] == pytest.approx(one["signal-1"]["seconds"] / 2, rel=0.01)
    assert two["probe-algebra"]["seconds"] == one["probe-algebra"]["seconds"]
    for id, found in two.items():  # all but the starts, which each process has
        assert found["usd"] == pytest.approx(one[id]["usd"], rel=0.01)


def test_the_paper_s_cost_is_met_within_a_factor_of_two(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "execution.gpu=H100", profile="vibethinker-1.5b")
    steps = plan_document(plan, states(plan, Store(tmp_path)))["steps"]
    hours = (
        sum(s["estimate"]["seconds"] for s in steps if s["kind"] in ("base", "specialist", "probe", "signal")) / 3600
    )
    assert 3900 / 2 < hours < 3900 * 2  # [1.5B] names about 3,900 H800-hours


def test_the_resume_command_restores_settings_of_the_environment_and_replaced_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model_folder: Path
) -> None:
    settings = load("micro", overrides=["seed=7", "signal.stages.0.steps=9"], environ={"NUM_GENERATIONS": "8"})
    plan = build(settings, tmp_path, {"fusion": str(tiny_model_folder)})
    run = Run(plan)
    run.create(states(plan, run.store))
    monkeypatch.setenv("SIGNAL_STEPS", "500")
    words = shlex.split(run.resume_command)
    assert Path(words[0]).name == "vibethinker"
    assert words[1:3] == ["run", "--config"]
    overrides = [word for before, word in pairwise(words) if before == "--set"]
    again = load(file=words[3], overrides=overrides)
    assert again == settings
    assert (again.signal.objective.group_size, again.signal.stages[0].steps) == (8, 9)
    assert words[-4:] == ["--from", f"fusion={tiny_model_folder}", "--workspace", str(tmp_path)]


def test_fusion_is_named_by_what_its_method_reads(tmp_path: Path) -> None:
    """And linear fusion as it was before there were other methods."""
    linear = plan_of(tmp_path)["fusion"]
    assert linear.settings == {
        "fusion": {"method": "linear", "weights": None}, "domains": ["algebra", "statistics", "code"],
    } and "data" not in linear.inputs  # fmt: skip
    assert changed(tmp_path, "spectrum.fusion.density=0.5", "spectrum.fusion.t=0.1") == set()
    ties, scaled = (
        plan_of(tmp_path, "spectrum.fusion.method=ties", f"spectrum.fusion.scale={x}")["fusion"] for x in (1, 2)
    )
    assert ties.fingerprint != scaled.fingerprint and "seed" not in ties.settings
    assert plan_of(tmp_path, "spectrum.fusion.method=dare", "seed=4")["fusion"].settings["seed"] == 4


@pytest.mark.parametrize("asked", ["search={trials: 3}", "fallback=best_specialist"])
def test_a_fusion_that_generates_reads_problems_and_is_estimated(tmp_path: Path, asked: str) -> None:
    plan = plan_of(tmp_path, f"spectrum.fusion.{asked}")
    step = plan["fusion"]
    assert step.inputs["data"] == "data" and step.settings["probing"]["k"] == 2
    # Models times problems, domains, samples and half of the tokens; three models are searched or alone.
    assert estimate(plan)["fusion"]["generated_tokens"] == (3 * 4 + 2 * 4) * 3 * 4 * 16


def test_a_teacher_is_estimated_by_what_it_is_asked_for(tmp_path: Path) -> None:
    overrides = [
        "domains=[algebra]",
        "signal.stages=[]",
        "data.max_problems=100",
        "data.teacher.model=sage",
        "data.teacher.engine=server",
        "data.teacher.server={url: 'http://127.0.0.1:1/v1'}",
        "data.teacher.budget={output_price: 2.0}",
        "data.teacher.samples=5",
        "data.teacher.max_tokens=1000",
    ]
    found = estimate(build(load("tiny", overrides=overrides, environ={}), tmp_path))["data"]
    assert (found["generated_tokens"], found["usd"], found["seconds"]) == (250_000, 0.5, None)


def test_a_second_stage_comes_between_specialist_and_probe(tmp_path: Path) -> None:
    plain, plan = plan_of(tmp_path), plan_of(tmp_path, "spectrum.hard.samples=4")
    assert plan["specialist-code"].fingerprint == plain["specialist-code"].fingerprint
    assert plan["solutions-code"].inputs == {"model": "specialist-code", "data": "data"}
    second = {"base": "base", "data": "data", "specialist": "specialist-code", "solutions": "solutions-code"}
    assert plan["hard-code"].inputs == second
    assert plan["probe-code"].inputs["specialist"] == "hard-code"
    assert plan["fusion"].inputs["specialist-code"] == "hard-code"
    assert plan["evaluation-specialist-code"].inputs["model"] == "hard-code"
    assert {s.id for s in plan.steps} - {s.id for s in plain.steps} == {
        f"{step}-{domain}" for step in ("solutions", "hard") for domain in plan.config.domains
    }
    again = plan_of(tmp_path, "spectrum.hard.samples=4", "spectrum.hard.epochs=3")
    assert again["solutions-code"].fingerprint == plan["solutions-code"].fingerprint
    assert again["hard-code"].fingerprint != plan["hard-code"].fingerprint
    with pytest.raises(ConfigurationError, match=r"set spectrum\.sft\.method to full"):
        plan_of(tmp_path, "spectrum.hard.samples=4", "spectrum.sft.method=lora")


def test_a_second_stage_of_one_trajectory_serves_every_domain(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "spectrum.mode=trajectory", "spectrum.hard.samples=4")
    assert {plan[f"probe-{d}"].inputs["specialist"] for d in plan.config.domains} == {"hard-mixture"}
    assert plan["solutions-mixture"].settings["domains"] == list(plan.config.domains)


def test_distillation_follows_the_stages_and_ends_the_recipe(tmp_path: Path) -> None:
    plain, plan = plan_of(tmp_path), plan_of(tmp_path, "distillation.samples=4")
    assert plan.final_model == "distilled"
    assert plan["solutions-signal-2"].inputs == {"model": "signal-2", "data": "data"}
    assert plan["solutions-signal-2"].settings["domains"] == ["code"]
    solved = {id: id for id in ("solutions-signal-1", "solutions-signal-2")}
    assert plan["selection"].inputs == {"student": "fusion", **solved}
    assert plan["distilled"].inputs == {"student": "fusion", "traces": "selection"}
    assert plan["evaluation-distilled"].inputs == {"model": "distilled", "data": "data"}
    assert plan["report"].settings["models"][-1]["id"] == "distilled"
    for step in plain.steps:
        assert step.id == "report" or plan[step.id].fingerprint == step.fingerprint
    assert plan_of(tmp_path, "distillation.student=base")["selection"].inputs["student"] == "base"
    with pytest.raises(ConfigurationError, match="add a stage"):
        plan_of(tmp_path, "distillation.samples=4", "signal.stages=[]")
