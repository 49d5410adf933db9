"""The session's policies around the worker: what doesn't count as a retry, and a worker that died."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.display import Lines
from tasks import hosts, session
from tasks.session import Session
from tasks.workbench import PREEMPTIONS
from tests.worker import failing_steps
from vibethinker import config, workload
from vibethinker.errors import BudgetError, InfrastructureError, OutOfMemoryError, PreemptedError, VibeThinkerError
from vibethinker.operations import Budget
from vibethinker.plan import Plan, Step, build
from vibethinker.runs import read_summary

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def step(function: Any, **settings: Any) -> Step:
    return Step("step", f"tests.worker.failing_steps:{function.__name__}", settings, {}, "f" * 64, {})


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setenv("VIBETHINKER_PRELOAD", "json")
    settings = config.load("micro", overrides=[f"worker.env={{PYTHONPATH: '{ROOT}'}}"], environ={})
    plan = Plan(settings, (step(failing_steps.succeed, value="abc"),), tmp_path)
    with session.opened(plan, Lines(plan)) as current:
        yield current


def test_a_preempted_step_runs_again_but_not_for_ever(opened: Session) -> None:
    events: list[dict[str, Any]] = []
    with pytest.raises(PreemptedError, match="this is why"):
        opened.execute(step(failing_steps.fail, error="preempted"), events.append)
    assert len([e for e in events if "running it again" in e.get("text", "")]) == PREEMPTIONS


def test_a_retry_finds_a_new_worker_where_the_last_one_died(opened: Session) -> None:
    server = psutil.Process(opened.bench.host()._process.pid)
    with pytest.raises(InfrastructureError, match="server ended"):
        opened.execute(step(failing_steps.wait), lambda event: event["event"] == "metrics" and server.kill())
    assert opened.execute(step(failing_steps.succeed, value="abc"), lambda event: None)["metrics"] == {"length": 3}


def test_a_step_that_takes_too_long_is_asked_to_leave_and_not_run_again(opened: Session) -> None:
    execution = opened.config.execution.model_copy(update={"timeout_seconds": 1.0})
    opened.bench.config = opened.config.model_copy(update={"execution": execution})
    events: list[dict[str, Any]] = []
    with pytest.raises(VibeThinkerError, match=r"after 1 s \(execution\.timeout_seconds\): raise") as failed:
        opened.execute(step(failing_steps.wait), events.append)
    assert type(failed.value) is VibeThinkerError
    assert not [e for e in events if "running it again" in e.get("text", "")]
    assert opened.execute(step(failing_steps.succeed, value="abc"), lambda event: None)["metrics"] == {"length": 3}


def test_a_running_step_is_asked_to_leave_once_the_budget_is_spent_and_no_other_begins(opened: Session) -> None:
    opened.config = opened.config.model_copy(update={"budget": Budget(hours=2 / 3600)})
    with pytest.raises(PreemptedError) as left:
        opened.execute(step(failing_steps.wait), lambda event: None)
    opened.failed(opened.plan["step"], left.value)
    assert opened.run.finish("paused")["steps"][0]["state"] == "skipped"
    assert str(opened.failures["step"]).startswith("The run was paused after 2 s, since budget.hours is")
    with pytest.raises(BudgetError, match="raise it"), opened.paid(opened.plan["step"], None):
        raise AssertionError("it began")


def tried(events: list[dict[str, Any]], name: str) -> list[float]:
    return [e["values"][name] for e in events if e["event"] == "metrics"]


def warnings(events: list[dict[str, Any]]) -> list[str]:
    return [e["text"] for e in events if e["event"] == "warning"]


SFT = {"max_length": 160, "method": "full", "optimizer": "adamw"}


def test_a_step_that_needs_too_much_memory_runs_again_with_less_and_the_next_session_knows(opened: Session) -> None:
    needy = step(failing_steps.need_memory, sft=SFT, bound={"sft_micro_tokens": 700})
    events: list[dict[str, Any]] = []
    result = opened.execute(needy, events.append)
    assert tried(events, "sft_micro_tokens") == [2560, 1280, 640]
    assert result["metrics"]["sft_micro_tokens"] == 640
    assert "again with spectrum.sft.micro_tokens=640" in warnings(events)[-1]
    with session.opened(opened.plan, Lines(opened.plan)) as later:
        again = step(failing_steps.need_memory, sft=SFT, bound={"sft_micro_tokens": 700}, another=True)
        events = []
        later.execute(replace(again, fingerprint="e" * 64), events.append)
    assert tried(events, "sft_micro_tokens") == [640]
    assert "Starting with spectrum.sft.micro_tokens=640" in warnings(events)[0]


def test_a_damaged_memory_is_told_and_done_without(opened: Session) -> None:
    (opened.plan.workspace / "memory.json").write_text("{")
    events: list[dict[str, Any]] = []
    opened.execute(step(failing_steps.need_memory, sft=SFT, bound={"sft_micro_tokens": 1500}), events.append)
    assert tried(events, "sft_micro_tokens") == [2560, 1280]
    assert any("memory.json can't be read" in text for text in opened.run.save()["warnings"])


def test_a_row_that_is_too_long_has_its_activations_computed_again(opened: Session) -> None:
    bound = {"signal_micro_tokens": 100, "generation_batch": 100, "gradient_checkpointing": True}
    stage = {"stage": {"context": 96}, "objective": {"method": "full", "optimizer": "adamw"}}
    events: list[dict[str, Any]] = []
    result = opened.execute(step(failing_steps.need_memory, **stage, bound=bound), events.append)
    assert result["metrics"]["signal_micro_tokens"] == 96
    assert result["metrics"]["gradient_checkpointing"] is True


def test_what_never_fits_fails_with_what_to_change(opened: Session) -> None:
    events: list[dict[str, Any]] = []
    with pytest.raises(OutOfMemoryError, match=r"spectrum\.sft\.max_length"):
        opened.execute(step(failing_steps.need_memory, sft=SFT, bound={"sft_micro_tokens": 0}), events.append)
    assert tried(events, "sft_micro_tokens") == [2560, 1280, 640, 320, 160, 160]


def test_a_step_with_nothing_to_lower_fails_at_once(opened: Session) -> None:
    events: list[dict[str, Any]] = []
    with pytest.raises(OutOfMemoryError, match="this is why"):
        opened.execute(step(failing_steps.fail, error="out_of_memory"), events.append)
    assert warnings(events) == []
    assert not (opened.plan.workspace / "memory.json").exists()


def test_a_worker_s_log_that_can_t_be_cleaned_is_a_warning_and_changes_no_end(
    opened: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(hosts, "clean", full)
    opened.run.finish("completed")
    opened.close()
    [warning] = read_summary(opened.run.folder)["warnings"]
    assert "worker.log, which could not be written without them (No space left on device)" in warning
    assert warning in capsys.readouterr().err
    assert read_summary(opened.run.folder)["status"] == "completed"


@pytest.mark.parametrize(("override", "computes"), [("method=ties", False), ("search={}", True)])
def test_a_fusion_wants_a_gpu_only_if_it_generates(tmp_path: Path, override: str, computes: bool) -> None:
    plan = build(config.load("micro", overrides=[f"spectrum.fusion.{override}"], environ={}), tmp_path)
    assert workload.computes(plan["fusion"]) is computes
