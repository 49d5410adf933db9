"""Memory foreseen by `plan`: parts, warnings that name the setting to lower, and what earlier runs have learned."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vibethinker.config import load
from vibethinker.estimates import estimate
from vibethinker.memory import Memory, setting_of
from vibethinker.needs import Place, forecast, memory_need, memory_settings, place_of, slow_to_save, together
from vibethinker.plan import Plan, build

QWEN = "qwen3-0.6b"


def plan_of(workspace: Path, *overrides: str, profile: str = QWEN) -> Plan:
    return build(load(profile, overrides=overrides, environ={}), workspace)


def warning(plan: Plan, step: str, gib: float, steps: int = 1) -> str | None:
    return forecast(plan, plan[step], Place("card", int(gib * 2**30), True, steps)).warning


def test_a_step_that_fits_is_not_warned_of(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "base_model.backend=transformers")
    for step in ("specialist-algebra", "probe-algebra", "signal-1", "signal-2", "evaluation-base"):
        assert warning(plan, step, 80) is None


def test_a_step_that_does_not_fit_is_told_the_setting_that_makes_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "spectrum.sft.micro_tokens=65536", "execution.gradient_checkpointing=false")
    said = warning(plan, "specialist-algebra", 24)
    assert said.startswith("specialist-algebra needs about ")
    assert "of the 26 GB that it has of card: set spectrum.sft.micro_tokens=" in said
    tokens = int(said.partition("micro_tokens=")[2].rstrip("."))
    mended = plan_of(tmp_path, f"spectrum.sft.micro_tokens={tokens}", "execution.gradient_checkpointing=false")
    assert warning(mended, "specialist-algebra", 24) is None
    assert warning(plan, "specialist-algebra", 80, steps=4) is not None, "four share it"


def test_a_stage_that_does_not_fit_beside_vllm_lets_it_sleep(tmp_path: Path) -> None:
    sets = ("signal.micro_tokens=32768", "execution.gradient_checkpointing=true", "execution.vllm.shared_memory=0.7")
    assert "execution.vllm" in warning(plan_of(tmp_path, *sets), "signal-3", 20)


def test_a_model_that_is_too_large_is_told_what_else_to_change(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, profile="vibethinker-3b")
    said = warning(plan, "specialist-algebra", 24)
    assert "spectrum.sft.method to lora" in said
    assert said.endswith("or use a GPU with more memory.")


def test_a_state_that_takes_long_to_save_is_told_with_the_setting_that_grants_it(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, profile="vibethinker-1.5b")
    said = slow_to_save(plan.config, plan["signal-1"])
    assert said.startswith("signal-1 has 19 GB to save")
    patient = plan_of(tmp_path, "execution.stop_seconds=90", profile="vibethinker-1.5b")
    assert slow_to_save(patient.config, patient["signal-1"]) is None
    assert slow_to_save(plan.config, plan["fusion"]) is None
    adapters = plan_of(tmp_path)
    assert slow_to_save(adapters.config, adapters["specialist-algebra"]) is None


def test_vllm_that_can_not_hold_the_model_is_warned_of(tmp_path: Path) -> None:
    assert warning(plan_of(tmp_path, profile="vibethinker-3b"), "probe-algebra", 6) is not None


def test_parts_say_what_the_memory_is_for(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "execution.gpu=H100")
    found = estimate(plan)
    parts = found["specialist-algebra"]["memory"]["parts"]
    assert {"weights", "gradients", "optimizer", "activations", "logits", "context"} <= set(parts)
    assert sum(parts.values()) == found["specialist-algebra"]["gpu_memory_bytes"]
    assert found["signal-1"]["memory"]["parts"]["vllm"] == int(0.4 * 80e9)
    assert found["probe-algebra"]["memory"]["parts"]["vllm"] == int(0.9 * 80e9)
    assert found["fusion"]["gpu_memory_bytes"] is None
    assert json.loads(json.dumps(found)) == found


def test_steps_that_share_a_gpu_have_their_part_of_it(tmp_path: Path) -> None:
    found = estimate(plan_of(tmp_path, "execution.gpu=H100", "execution.steps_per_gpu=2"))
    assert found["specialist-algebra"]["memory"]["available"] == 40_000_000_000
    assert found["signal-1"]["memory"]["available"] == 80_000_000_000
    sharing = ("execution.gpu=H100", "execution.steps_per_gpu=2", "execution.stages_share=true")
    stage = estimate(plan_of(tmp_path, *sharing))["signal-1"]["memory"]
    assert (stage["available"], stage["parts"]["vllm"]) == (40_000_000_000, int(0.4 * 40e9))


def test_a_stage_s_part_of_a_gpu_holds_what_vllm_starts_with(tmp_path: Path) -> None:
    """Of 24 GB, a fourth has 6 and 0.4 of that are 2.4 for vLLM, which wants 2.7 for Qwen3-0.6B and 4,096 tokens."""
    sharing = ("execution.gpu=RTX4090", "execution.stages_share=true", "execution.steps_per_gpu={}")
    stages = "signal.stages=[{name: math, context: 4096}]"

    def told(steps: int) -> dict[str, Any]:
        settings = [one.format(steps) for one in sharing]
        return estimate(plan_of(tmp_path, stages, *settings, profile="qwen3-0.6b"))["signal-1"]["memory"]

    plan = plan_of(tmp_path, stages, *(one.format(3) for one in sharing), profile="qwen3-0.6b")
    place = Place("RTX4090", int(24e9), True, 3)
    step = plan["signal-1"]
    need = memory_need(plan.config, step.settings, plan.config.architecture(), place)
    assert need.least_share == pytest.approx(2.7 / 8, rel=0.05)
    assert told(1)["warning"] is None
    assert told(4)["warning"].startswith("signal-1 needs about")


def test_what_has_worked_is_not_warned_of_and_what_has_failed_is_not_started_with(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "spectrum.sft.micro_tokens=65536", "execution.gradient_checkpointing=false")
    place = Place("card", 24 << 30, True)
    step = plan["specialist-algebra"]
    need = memory_need(plan.config, step.settings, plan.config.architecture(), place)
    memory = Memory(tmp_path, lambda text: None)
    wanted = setting_of(need, memory_settings(plan.config, True))
    memory.failed(need, {**wanted, "sft_micro_tokens": 131072})
    memory.worked(need, wanted)
    assert forecast(plan, step, place).warning is None
    memory.failed(need, wanted)
    assert forecast(plan, step, place).start == "spectrum.sft.micro_tokens=32768"


@pytest.mark.slow
def test_the_plan_command_tells_warnings_and_what_was_learned(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, profile="tiny")
    need = memory_need(plan.config, plan["specialist-algebra"].settings, plan.config.architecture(), place_of(None))
    Memory(tmp_path, lambda text: None).failed(need, setting_of(need, memory_settings(plan.config, True)))
    command = [sys.executable, "-m", "vibethinker", "plan", "--workspace", str(tmp_path)]
    done = subprocess.run([*command, "--profile", "tiny"], capture_output=True, text=True, check=True)
    assert "specialist-algebra starts with spectrum.sft.micro_tokens=2560, since more has run out" in done.stdout
    large = ["--profile", "vibethinker-3b", "--set", "execution.gpu=RTX4090"]
    done = subprocess.run([*command, *large], capture_output=True, text=True, check=True)
    # The five specialists, their second stages and the distilled model.
    assert "Warning: specialist-algebra (and 10 like it) needs about " in done.stdout


def test_steps_with_the_same_trouble_are_told_together() -> None:
    assert together({"a-1": "a-1 is big.", "a-2": "a-2 is big.", "b": "b is small.", "c": None}) == [
        "a-1 (and 1 like it) is big.",
        "b is small.",
    ]


@pytest.mark.parametrize("profile", ["micro", "tiny", "vibethinker-1.5b", "vibethinker-3b"])
def test_every_profile_has_a_forecast_of_every_step(tmp_path: Path, profile: str) -> None:
    plan = plan_of(tmp_path, profile=profile)
    for step in plan.steps:
        parts = forecast(plan, step, Place("card", 80 << 30, True)).parts
        assert bool(parts) == (
            step.kind in ("specialist", "solutions", "probe", "signal", "distilled", "evaluation", "base")
            and (step.kind != "base" or profile in ("micro", "tiny"))
        )
        assert all(value >= 0 for value in parts.values())
