"""Configuration: precedence, refusals with a mend, and the seed's environment variables."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from vibethinker import config
from vibethinker.config import Config, load
from vibethinker.errors import ConfigurationError


@pytest.mark.parametrize("name", ["micro", "tiny", "qwen3-0.6b", "vibethinker-1.5b", "vibethinker-3b"])
def test_every_profile_validates(name: str) -> None:
    assert load(name, environ={}).profile == name


def test_command_line_beats_environment_beats_file_beats_profile(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("spectrum: {sft: {steps: 20}, probing: {k: 2}}\nseed: 7\n")
    made = load("tiny", file, ["spectrum.sft.steps=40"], environ={"SPECTRUM_STEPS": "30", "DIVERSITY_K": "4"})
    assert made.spectrum.sft.steps == 40  # command line
    assert made.spectrum.probing.k == 4  # environment
    assert made.seed == 7  # file
    assert made.spectrum.sft.batch_size == load("tiny", environ={}).spectrum.sft.batch_size  # profile


def test_environment_variables_work() -> None:
    environ = {
        "BASE_MODEL": "some/model",
        "DATA_DIR": "/data",
        "SPECTRUM_STEPS": "11",
        "SIGNAL_STEPS": "12",
        "DIVERSITY_K": "3",
        "NUM_GENERATIONS": "4",
        "MAX_SEQ_LENGTH_STAGE1": "2000",
        "MAX_SEQ_LENGTH_STAGE2": "3000",
        "MAX_SEQ_LENGTH_STAGE3": "4000",
        "DATA_PREP_MAX_PROBLEMS": "50",
        "DATA_PREP_N_SOLUTIONS": "2",
        "DATA_PREP_TEACHER_MODEL": "some/teacher",
        "DECONTAM_ENABLED": "false",
        "DECONTAM_EVAL_DATASETS": "a.jsonl,b.jsonl",
        "VIBETHINKER_WORKER_PYTHON": "/opt/trainers/bin/python",
    }
    made = load("qwen3-0.6b", environ=environ)
    assert made.base_model.source == "some/model"
    assert made.data.directory == "/data"
    assert made.spectrum.sft.steps == 11
    assert {s.steps for s in made.signal.stages} == {12}
    assert made.spectrum.probing.k == 3
    assert made.signal.objective.group_size == 4
    assert [s.context for s in made.signal.stages[:3]] == [2000, 3000, 4000]
    assert (made.data.max_problems, made.data.solutions) == (50, 2)
    assert made.data.teacher.model == "some/teacher"
    assert made.data.decontamination.enabled is False
    assert made.data.decontamination.against == ("a.jsonl", "b.jsonl")
    assert made.worker.python == "/opt/trainers/bin/python"
    assert set(environ) == set(config.ENVIRONMENT)


def test_output_root_names_the_workspace_unless_its_own_variable_does(tmp_path: Path) -> None:
    assert config.workspace(environ={"OUTPUT_ROOT": str(tmp_path)}) == tmp_path
    both = {"OUTPUT_ROOT": "elsewhere", "VIBETHINKER_WORKSPACE": str(tmp_path)}
    assert config.workspace(environ=both) == tmp_path


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("spectrum.sft.stepz=3", "did you mean 'steps'"),
        ("sead=3", "did you mean 'seed'"),
        ("signal.objective.lamda=3", "did you mean 'lambda'"),
        ("signal.stages.0.overrides={lamda: 1}", "did you mean 'lambda'"),
        ("spectrum.probing.k=99", "raise samples or lower k"),
        ("evaluation.k=[99]", "raise samples or lower k"),
        ("signal.objective.group_size=7", "choose a multiple"),
        ("signal.objective.updates=3", "takes an equal share of the rollouts"),
        ("signal.stages.0.rollouts=1000", "isn't divisible by batch_size"),
        ("signal.objective.overlong=99", "exceeds the 64 tokens"),
        ("signal.stages.0.overrides={ratio: sequence, mean_over: tokens}", "set mean_over to rollouts"),
        ("signal.stages.0.context=9999", "base_model.rope_scaling"),
        ("spectrum.sft.max_length=9999", "base_model.rope_scaling"),
        ("signal.stages.0.context=10", "raise the context"),
        ("domains=[algebra, algebra]", "list each domain once"),
        ("domains=[algebra, chemistry]", "set data.source to files"),
        ("signal.stages.0.domains=[physics]", "isn't in domains"),
        ("spectrum.fusion.weights={algebra: 1}", "must name exactly the domains"),
        ("spectrum.fusion.method=slerp", "lies between two models, not 5"),
        ("spectrum.fusion={method: pass_at_k, weights: {algebra: 1}}", "found otherwise by method pass_at_k"),
        ("spectrum.fusion={search: {}, weights: {algebra: 1}}", "found otherwise with search"),
        ("spectrum.fusion={search: {samples: 1}}", "Pass@K needs K <= n"),
        ("base_model.quantization=nf4", "set spectrum.sft.method to lora"),
        ("spectrum.sft.steps=none", "spectrum.sft.steps can't be 'none'"),
        ("signal.stages.9.steps=1", "counted from 0"),
        ("seed", "--set takes KEY=VALUE"),
        ("data.source=files", "list at least one JSONL file"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_mend(setting: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load("tiny", overrides=[setting], environ={})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_profile_names_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'tiny'"):
        load("tinny", environ={})


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [1")
    for name in ("bad.yaml", "absent.yaml"):
        with pytest.raises(ConfigurationError, match=name):
            load("tiny", tmp_path / name, environ={})


def test_a_number_without_a_dot_is_a_number() -> None:
    assert (
        load("tiny", overrides=["signal.objective.learning_rate=3e-5"], environ={}).signal.objective.learning_rate
        == 3e-5
    )


def test_stage_overrides_change_that_stage_alone() -> None:
    made = load("tiny", overrides=["signal.stages.1.overrides={lambda: 4, group_size: 4}"], environ={})
    first, second = (made.objective(s) for s in made.signal.stages[:2])
    assert (first.lambda_, second.lambda_) == (made.signal.objective.lambda_, 4)
    assert second.group_size == 4


def test_execution_settings_are_not_semantic() -> None:
    one, two = (load("tiny", overrides=[f"spectrum.sft.micro_tokens={n}"], environ={}) for n in (8, 16))
    assert one.spectrum.semantic() == two.spectrum.semantic()
    assert "micro_tokens" not in one.spectrum.semantic()["sft"]


def test_every_setting_is_documented() -> None:
    def undocumented(model: type[BaseModel], at: str = "") -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            found += [] if field.description else [at + name]
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found += undocumented(inner, f"{at}{name}.")
        return found

    assert undocumented(Config) == []


def test_configuration_plan_and_command_line_load_no_heavy_library() -> None:
    code = (
        "import sys, vibethinker.config, vibethinker.plan, vibethinker.cli, vibethinker.commands.inspect\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'prefect', 'mlflow', 'sympy', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("example", sorted((Path(__file__).parents[1] / "docs" / "examples").glob("*.yaml")))
def test_every_example_of_the_documentation_is_valid(example: Path) -> None:
    settings = config.load(None, example, ["base_model.source=Qwen/Qwen3-0.6B-Base"], environ={})
    assert settings.data.train and settings.data.evaluation


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["spectrum.sft.batch_size=9"], "spectrum.sft.batch_size 9 isn't divisible by execution.processes 2"),
        (
            ["signal.objective.batch_size=24", "signal.objective.group_size=8"],
            "batch_size 24 makes 3 groups of 8, which execution.processes 2 doesn't divide",
        ),
        (
            ["execution.sharding=fsdp", "base_model.quantization=nf4", "spectrum.sft.method=lora"],
            "execution.sharding fsdp can't divide 4-bit weights",
        ),
    ],
)
def test_what_several_processes_can_t_share_is_refused(settings: list[str], sentence: str) -> None:
    load("tiny", overrides=["execution.processes=2"], environ={})
    with pytest.raises(ConfigurationError, match=sentence):
        load("tiny", overrides=["execution.processes=2", *settings], environ={})


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vibethinker import hardware

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    hardware.check_processes(load("tiny", overrides=["execution.processes=2"], environ={}))
    assert hardware.first_gpus(2) == "4,5"
    with pytest.raises(ConfigurationError, match=r"processes is 4 but this machine shows 2 NVIDIA GPU"):
        hardware.check_processes(load("tiny", overrides=["execution.processes=4"], environ={}))


@pytest.mark.parametrize(
    "setting",
    [
        "tracking.uri=http://me:hunter2@mlflow",
        "tracking.uri='postgresql://db/mlflow?user=me&password=hunter2'",
        "worker.env={HF_TOKEN: hunter2}",
        "worker.env={SLACK_WEBHOOK_URL: hunter2}",
    ],
)
def test_a_secret_that_would_be_recorded_with_the_run_is_refused(setting: str) -> None:
    with pytest.raises(ConfigurationError, match="would be recorded with the run: set") as refused:
        load("tiny", overrides=[setting], environ={})
    assert "hunter2" not in str(refused.value)
    load("tiny", overrides=["tracking.uri=http://me@mlflow", "worker.env={TOKENIZERS_PARALLELISM: 'no'}"], environ={})
