"""What a configuration needs of packages and GPU is refused before anything starts, with what to set."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vibethinker import config as configuration
from vibethinker import doctor, hardware, requirements
from vibethinker.config import Config
from vibethinker.errors import ConfigurationError
from vibethinker.requirements import Gpu, Interpreter, check_requirements, missing, steps_interpreter

EVERYTHING = dict.fromkeys((*requirements.TRAINERS, "bitsandbytes", "unsloth", "vllm", "liger-kernel"), "1.0")
WHOLE = Interpreter("this interpreter", "3.12.1", EVERYTHING, "13.0")
T4, A100, P100 = Gpu("Tesla T4", (7, 5)), Gpu("A100", (8, 0)), Gpu("P100", (6, 0))
LORA = ("spectrum.sft.method=lora", "signal.objective.method=lora")
NF4 = (*LORA, "base_model.quantization=nf4")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing remembered of another test's driver."""
    yield
    for asked in (requirements._capabilities, hardware._listed):
        asked.cache_clear()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that gives this machine a driver which tells of these GPUs."""

    def tells(*gpus: Gpu) -> None:
        listed = "\n".join(f"{i}, GPU-{i}, {gpu.name}, 81559" for i, gpu in enumerate(gpus))
        capable = "\n".join(f"{i}, {gpu.capability[0]}.{gpu.capability[1]}" for i, gpu in enumerate(gpus))
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\ncase \"$*\" in *compute_cap*) echo '{capable}';; *) echo '{listed}';; esac\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for asked in (requirements._capabilities, hardware._listed):
            asked.cache_clear()

    return tells


def settings(*overrides: str) -> Config:
    """The settings' defaults with a model from the hub, of which nothing is known."""
    return configuration.load_defaults(["base_model.source=a/b", *overrides])


def without(*names: str) -> Interpreter:
    return dataclasses.replace(WHOLE, packages={n: v for n, v in EVERYTHING.items() if n not in names})


def sentences(has: Interpreter, gpus: tuple[Gpu, ...], *overrides: str, **which: bool) -> list[str]:
    device = "cuda" if gpus else "cpu"
    config = settings(f"execution.device={device}", *overrides)
    return list(missing(config, has, gpus, **which))


@pytest.mark.parametrize(
    ("has", "gpus", "overrides", "said"),
    [
        (without("bitsandbytes"), (A100,), NF4, ("nf4", "bitsandbytes", "vibethinker[train]")),
        (without("unsloth"), (A100,), ("base_model.backend=unsloth",), ("package unsloth", "vibethinker[unsloth]")),
        (WHOLE, (P100,), ("base_model.backend=unsloth",), ("7.0", "P100 has 6.0", "transformers")),
        (WHOLE, (T4,), (*NF4, "base_model.precision=bfloat16"), ("nf4", "8.0", "Tesla T4 has 7.5", "float32")),
        (WHOLE, (A100, T4), ("base_model.precision=bfloat16",), ("Tesla T4", "precision to float32")),
        (without("vllm"), (A100,), ("execution.engine=vllm",), ("package vllm", "vibethinker[vllm]")),
        (WHOLE, (P100,), ("execution.engine=vllm",), ("7.5", "P100 has 6.0")),
        (without("bitsandbytes"), (A100,), ("spectrum.sft.optimizer=adamw_8bit",), ("bitsandbytes", "adamw")),
        (dataclasses.replace(WHOLE, cuda=None), (A100,), (), ("build for CPUs", "execution.device to cpu")),
        (without("trl"), (), (), ("libraries (trl)", "worker.python")),
        (WHOLE, (), ("base_model.backend=unsloth",), ("NVIDIA GPU", "transformers")),
        (WHOLE, (), ("execution.engine=vllm",), ("NVIDIA GPU", "auto")),
    ],
)
def test_what_is_missing_is_told_with_what_to_set(machine, has, gpus, overrides, said):
    machine(*gpus)
    found = sentences(has, gpus, *overrides)
    assert len(found) == 1
    assert all(word in found[0] for word in said), found[0]
    assert found[0].endswith(".")
    assert ": " in found[0]


def test_a_stage_s_own_optimizer_counts(machine):
    machine(A100)
    stage = "signal.stages=[{name: one, context: 2048, overrides: {optimizer: adamw_8bit}, train_data: x.jsonl}]"
    (said,) = sentences(without("bitsandbytes"), (A100,), stage)
    assert "signal.stages.0" in said


@pytest.mark.parametrize(
    ("gpus", "overrides"),
    [
        ((A100,), (*NF4, "base_model.precision=bfloat16", "base_model.backend=unsloth", "execution.engine=vllm")),
        ((T4,), (*NF4, "base_model.backend=unsloth")),
        ((), (*NF4, "base_model.precision=bfloat16", "spectrum.sft.optimizer=adamw_8bit")),
    ],
)
def test_what_is_there_is_not_refused(machine, gpus, overrides):
    machine(*gpus)
    assert sentences(WHOLE, gpus, *overrides) == []


def test_only_what_the_steps_do_is_asked_for(machine):
    machine(A100)
    asked = ("base_model.backend=unsloth", "execution.engine=vllm")
    lacking = without("unsloth", "vllm")
    assert "unsloth" in "".join(sentences(lacking, (A100,), *asked, samples=False))
    assert "unsloth" not in "".join(sentences(lacking, (A100,), *asked, trains=False))
    assert sentences(lacking, (A100,), *asked, trains=False, samples=False) == []


def test_a_gpu_whose_capability_is_unknown_is_not_refused(machine):
    machine(A100)
    config = settings("base_model.precision=bfloat16")
    assert list(missing(config, WHOLE, ())) == []


def test_gpus_are_told_with_their_capability_as_far_as_they_are_visible(machine, monkeypatch):
    machine(T4, A100)
    assert requirements.visible_gpus() == (T4, A100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert requirements.visible_gpus() == (A100,)


# ---- interpreters ----


def test_this_interpreter_is_described_without_importing_torch():
    has = steps_interpreter(settings())
    assert set(requirements.TRAINERS) <= set(has.packages)
    import torch

    assert has.cuda == torch.version.cuda


def test_another_interpreter_is_asked_what_it_has():
    mine = steps_interpreter(settings())
    other = steps_interpreter(settings(f"worker.python={sys.executable}"))
    assert (other.version, other.packages, other.cuda) == (mine.version, mine.packages, mine.cuda)
    assert sys.executable in other.name


@pytest.mark.parametrize("python", [f"worker.python={sys.executable}", "worker.python=null"])
def test_the_workers_environment_counts_whichever_interpreter_it_is(tmp_path, python):
    (tmp_path / "vllm.py").write_text("raise SystemExit('it must not be imported')")
    assert steps_interpreter(settings(python, f"worker.env={{PYTHONPATH: '{tmp_path}'}}")).packages["vllm"] == "?"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", "exit status 3"),
        ("echo hello", "no Python"),
        ("echo no such module >&2; exit 1", "no such module"),
        ("sleep 60", "didn't answer"),
    ],
)
def test_an_interpreter_that_is_none_is_refused(tmp_path, monkeypatch, script, said):
    monkeypatch.setattr(requirements, "SECONDS", 0.5)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    with pytest.raises(ConfigurationError, match=said):
        check_requirements(settings(f"worker.python={python}"))


def test_an_interpreter_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="can't be started"):
        check_requirements(settings(f"worker.python={tmp_path / 'none'}"))


# ---- where users meet it ----


@pytest.mark.parametrize("command", ["train-specialist", "signal"])
def test_a_step_on_its_own_is_refused_before_it_starts(command, tiny_model_folder, tmp_path):
    data = tmp_path / "data.jsonl"
    row = {"id": "1", "domain": "algebra", "problem": "1+1?", "answer": "2", "source": "x", "licence": "MIT"}
    data.write_text(json.dumps({**row, "solution": "2"} if command == "train-specialist" else row) + "\n")
    given = ["--train-data", str(data), "--output", str(tmp_path / "out"), "--set", "base_model.backend=unsloth"]
    given += ["--domain", "algebra"] if command == "train-specialist" else ["--max-seq-length", "100"]
    for value in ("signal.objective.max_prompt_tokens=50", "spectrum.sft.max_length=100", "execution.device=cpu"):
        given += ["--set", value]
    done = subprocess.run(
        [sys.executable, "-m", "vibethinker", command, str(tiny_model_folder), *given],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unsloth needs an NVIDIA GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_is_refused_before_it_starts(tmp_path):
    from vibethinker import preflight
    from vibethinker.plan import build

    config = configuration.load("micro", overrides=["execution.engine=vllm", "execution.device=cpu"], environ={})
    with pytest.raises(ConfigurationError, match="engine vllm needs an NVIDIA GPU"):
        preflight.check(build(config, tmp_path))


def test_quantised_weights_are_not_trained_in_full_by_a_stage_either():
    overrides = ["base_model.quantization=nf4", "spectrum.sft.method=lora"]
    stage = "signal.stages=[{name: one, context: 2048, train_data: x.jsonl}]"
    with pytest.raises(ConfigurationError, match=r"signal\.objective\.method to lora"):
        settings(*overrides, stage)
    assert settings(*overrides, stage, "signal.objective.method=lora")


def test_the_factor_that_is_asked_for_is_of_the_model_s_own_positions():
    own = ["base_model.architecture={max_position_embeddings: 4096}"]
    for more in ([], ["base_model.rope_scaling={factor: 2}"]):
        with pytest.raises(ConfigurationError, match="factor of at least 8"):
            settings(*own, *more, "spectrum.sft.max_length=32768")
        stage = "signal.stages=[{name: one, context: 32768, train_data: x.jsonl}]"
        with pytest.raises(ConfigurationError, match="factor of at least 8"):
            settings(*own, *more, stage)


def test_doctor_tells_of_gpus_packages_and_what_the_configuration_lacks(machine):
    machine(T4)
    found = doctor.gpu(configuration.load("tiny", environ={}))
    assert (found.state, found.text) == (
        "ok",
        "1 NVIDIA GPU(s), Tesla T4 of 80 GiB, compute capability 7.5",
    )
    overrides = ["execution.device=cpu", "base_model.backend=unsloth"]
    lacking = doctor.versions(configuration.load("tiny", overrides=overrides, environ={}))
    assert lacking.state == "failure"
    assert "unsloth needs an NVIDIA GPU" in lacking.text
    assert "transformers" in lacking.mend
    whole = doctor.versions(configuration.load("tiny", overrides=["execution.device=cpu"], environ={}))
    assert "bitsandbytes" in whole.text
    gone = doctor.versions(configuration.load("tiny", overrides=["worker.python=/no/python"], environ={}))
    assert (gone.state, "can't be started" in gone.text) == ("failure", True)
