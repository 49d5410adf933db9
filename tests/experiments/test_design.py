"""What an experiment's file says: its runs, what they share, and what it may not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vibethinker.errors import ConfigurationError
from vibethinker.experiments import planning, statistics
from vibethinker.experiments.design import Experiment, make, overridden, read

BASIC: dict[str, Any] = {
    "name": "basic",
    "profile": "micro",
    "arms": {"grpo": {"signal.objective.lambda": 0}, "mgpo": {"signal": {"objective": {"lambda": 2}}}},
    "control": "grpo",
    "seeds": [1, 2, 3],
    "comparisons": [{"metric": "avg"}],
}
SHARED = {"data", "base", "specialist-code", "probe-code", "fusion", "evaluation-base", "evaluation-fusion"}


def made(tmp_path: Path, **changed: Any) -> Experiment:
    return make({**BASIC, **changed}, tmp_path)


def test_arms_and_seeds_make_runs_that_share_all_before_the_stages(tmp_path: Path):
    found = made(tmp_path)
    assert [(cell.seed, cell.arm) for cell in found.cells] == [(s, a) for s in (1, 2, 3) for a in ("grpo", "mgpo")]
    assert [cell.config.signal.objective.lambda_ for cell in found.of_seed(2)] == [0, 2]
    assert {(c.config.seed, c.config.signal.seed) for c in found.cells} == {(1, 1), (1, 2), (1, 3)}
    document = planning.document(found)
    users = {(one["step"], one["runs"]) for one in document["outputs"]}
    assert {step for step, runs in users if runs == 6} >= SHARED
    assert {step for step, runs in users if runs == 1} == {
        "signal-1", "signal-2", "evaluation-signal-1", "evaluation-signal-2", "report",
    }  # fmt: skip
    assert all(one["state"] == "to_run" for one in document["outputs"])
    [of_mgpo] = [g for g in planning.groups(document["outputs"]) if (g["step"], g["arms"]) == ("signal-1", ["mgpo"])]
    assert (of_mgpo["outputs"], of_mgpo["cached"], of_mgpo["runs"]) == (3, 0, 3)
    assert of_mgpo["tokens"] == 3 * next(
        o["estimate"]["tokens"] for o in document["outputs"] if o["step"] == "signal-1"
    )


@pytest.mark.parametrize(("reseed", "still"), [("spectrum", {"data", "base"}), ("everything", set())])
def test_other_seeds_draw_more_anew(tmp_path: Path, reseed: str, still: set[str]):
    first, *_, last = made(tmp_path, reseed=reseed).cells
    shared = {s.id for s in first.plan.steps if s.fingerprint == last.plan[s.id].fingerprint}
    assert shared == still | ({"evaluation-base"} if still else set())


@pytest.mark.slow
def test_axes_multiply_arms(tmp_path: Path):
    axes = {"signal.objective.epsilon_high": [0.2, 0.28], "signal.stages.0.steps": [2, 3]}
    found = made(tmp_path, axes=axes, control="grpo-epsilon_high-0.2-steps-2")
    assert len(found.arms) == 8
    assert next(iter(found.arms)) == "grpo-epsilon_high-0.2-steps-2", "the control comes first"
    [cell] = [c for c in found.of_seed(1) if c.arm == "mgpo-epsilon_high-0.28-steps-3"]
    assert (cell.config.signal.objective.epsilon_high, cell.config.signal.stages[0].steps) == (0.28, 3)
    assert (cell.config.signal.objective.lambda_, cell.config.signal.stages[1].steps) == (2, 1)
    alone = make({**BASIC, "arms": {}, "axes": {"signal.objective.lambda": [0, 0.5]}, "control": "lambda-0"}, tmp_path)
    assert list(alone.arms) == ["lambda-0", "lambda-0.5"]


def test_the_id_is_the_design_s_and_not_that_of_how_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = made(tmp_path).id
    assert first.startswith("basic-")
    same = made(tmp_path / "elsewhere", settings={"execution.slots": 1}, at_once=2, question="Why?")
    assert same.id == first
    for changed in (
        {"seeds": [1, 2]},
        {"alpha": 0.1},
        {"comparisons": [{"metric": "pass@2"}]},
        {"settings": {"spectrum.sft.steps": 5}},
        {"futility": {"looks": [2], "gain": 0.01}},
    ):
        assert made(tmp_path, **changed).id != first, changed
    monkeypatch.setattr(statistics, "VERSION", 0)
    assert made(tmp_path).id != first, "what is computed from the same runs is another result"


def test_the_environment_leaves_arms_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = made(tmp_path).id
    monkeypatch.setenv("NUM_GENERATIONS", "8")
    assert made(tmp_path).id == first


def test_settings_of_the_command_line_lie_beneath_the_arms(tmp_path: Path):
    values = overridden(BASIC, ["signal.objective.lambda=1", "signal.objective.learning_rate=1e-5"])
    found = make(values, tmp_path)
    assert [c.config.signal.objective.lambda_ for c in found.of_seed(1)] == [0, 2]
    assert {c.config.signal.objective.learning_rate for c in found.cells} == {1e-5}
    with pytest.raises(ConfigurationError, match="--set takes KEY=VALUE"):
        overridden(BASIC, ["signal"])


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"arms": {"grpo": {}, "mgpo": {"signal.objective.lambdda": 1}}}, "Arm 'mgpo': There is no setting .*'lambda'"),
        ({"arms": {"grpo": {}, "same": {"signal.objective.lambda": 1}}}, "'grpo' and 'same' compute the same"),
        ({"arms": {"grpo": {}}}, "give it two arms or more"),
        ({"arms": {"grpo": {}, "Big": {"signal.objective.lambda": 0}}}, "can't be named 'Big'"),
        ({"control": "base"}, "control is 'base', which is no arm; the arms are grpo, mgpo"),
        ({"comparisons": [{"metric": "avg", "arms": ["mpgo"]}]}, r"comparisons\.0\.arms is 'mpgo', which is no arm"),
        ({"comparisons": [{"metric": "pass@9"}]}, "draws 2 samples: raise evaluation.samples"),
        ({"comparisons": [{"metric": "speed"}]}, r"comparisons\.0\.metric can't be 'speed'"),
        ({"comparisons": [{"model": "signal-9"}]}, "'signal-9', which arm .* doesn't measure: it has base"),
        ({"comparisons": [{"sets": ["maths"]}]}, "have 'maths', on which arm .* sets are algebra, statistics"),
        ({"comparisons": [{"model": "specialist-code", "sets": ["algebra"]}]}, "the sets are code"),
        ({"seeds": [1, 1]}, "seeds has one seed twice"),
        ({"futility": {"looks": [3], "gain": 0.01}}, r"futility\.looks has 3"),
        ({"at_once": 2, "settings": {"scaling.runner": "ray"}}, "at_once is 2 and scaling.runner is ray"),
        ({"settings": {"approvals.signal": True}}, r"approvals\.signal would have every run wait"),
        ({"reseeed": "signal"}, "There is no setting 'reseeed'; did you mean 'reseed'"),
        ({"axes": {"signal.objective.lambda": [1, 1.0, "1"]}, "control": "grpo-lambda-1"}, "Two arms are named"),
    ],
)  # fmt: skip
def test_what_a_design_may_not_say(tmp_path: Path, changed: dict[str, Any], sentence: str):
    with pytest.raises(ConfigurationError, match=sentence) as refused:
        made(tmp_path, **changed)
    assert "\n" not in str(refused.value)


def test_two_arms_of_one_name_in_a_file_are_refused(tmp_path: Path):
    file = tmp_path / "e.yaml"
    file.write_text("name: x\narms:\n  a: {}\n  a: {seed: 2}\n")
    with pytest.raises(ConfigurationError, match=r"e\.yaml: 'a' is there twice \(line 3\)"):
        read(file)
    file.write_text("arms: [")
    with pytest.raises(ConfigurationError, match="isn't valid YAML"):
        read(file)
    with pytest.raises(ConfigurationError, match=r"absent\.yaml can't be read"):
        read(tmp_path / "absent.yaml")
    (tmp_path / "more.yaml").write_text("seed: 7\n")
    file.write_text("config: more.yaml\n")
    assert read(file) == {"config": str(tmp_path / "more.yaml")}


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "docs" / "examples").glob("*-study.yaml")))
def test_the_studies_of_the_docs_can_be_planned(tmp_path: Path, file: Path):
    found = make(read(file), tmp_path)
    assert len(found.cells) == len(found.arms) * len(found.design.seeds)


MODEL = {
    "model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 512, "max_position_embeddings": 32768,
}  # fmt: skip
STUDIES = sorted((Path(__file__).parents[2] / "docs" / "studies").glob("*.yaml"))


def test_the_documentation_has_studies():
    assert {file.stem for file in STUDIES} == {"mgpo", "mgpo-gsm8k", "spectrum"}


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_of_the_documentation_is_valid(file: Path, tmp_path: Path):
    values = read(file)
    if "config" in values:  # it is given a model and data by --set
        for name in ("gsm8k_train", "gsm8k_test", "math_train", "math500_test"):
            (tmp_path / f"{name}.jsonl").write_text("{}\n")
        (tmp_path / "config.json").write_text(json.dumps(MODEL))
        names = ("base_model.source", "data.teacher.model", "data.directory")
        values = overridden(values, [f"{name}={tmp_path}" for name in names])
    found = make(values, tmp_path)
    assert found.design.name == file.stem
    assert len(found.cells) == len(found.arms) * len(found.design.seeds)


def test_a_round_ends_with_each_look(tmp_path: Path):
    assert made(tmp_path).design.rounds == [(3, (1, 2, 3))]
    looks = made(tmp_path, seeds=[3, 1, 4, 5, 9], futility={"looks": [3, 2], "gain": 0.01}).design.rounds
    assert looks == [(2, (3, 1)), (3, (4,)), (5, (5, 9))]
