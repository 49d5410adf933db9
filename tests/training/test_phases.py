"""Phases: times that add up, tokens at their rates, and peaks of memory."""

from __future__ import annotations

import time

import pytest
import torch

from vibethinker.training.phases import Phases, resident_peak


def test_an_inner_phase_is_not_booked_to_the_outer_one() -> None:
    phases = Phases("cpu")
    began = time.monotonic()
    phases.enter("training")
    with phases("generation"):
        time.sleep(0.05)
    with phases("grading"):
        time.sleep(0.02)
    phases.leave()
    passed = time.monotonic() - began
    found = phases.summary()
    assert found["seconds_generation"] >= 0.05
    assert found["seconds_grading"] >= 0.02
    seconds = sum(value for name, value in found.items() if name.startswith("seconds_"))
    assert seconds == pytest.approx(passed, abs=0.005)


def test_tokens_are_told_as_rates_of_the_seconds_they_took() -> None:
    phases = Phases("cpu")
    with phases("generation", tokens=100) as generation:
        generation.tokens += 20
    phases.enter("training")
    phases.count("training", 300)
    phases.leave()
    found = phases.window()
    assert found["generated_tokens_per_second"] == pytest.approx(120 / found["seconds_generation"])
    assert found["trained_tokens_per_second"] == pytest.approx(300 / found["seconds_training"])


def test_a_window_begins_where_the_last_one_ended_and_the_summary_has_them_all() -> None:
    phases = Phases("cpu")
    phases.enter("training")
    phases.count("training", 10)
    first = phases.window()
    phases.count("training", 30)
    phases.leave()
    second = phases.window()
    whole = phases.summary()
    assert whole["seconds_training"] == pytest.approx(first["seconds_training"] + second["seconds_training"])
    assert whole["trained_tokens_per_second"] == pytest.approx(40 / whole["seconds_training"])
    assert set(phases.window()) == {"memory_gib"}, "nothing has happened since"


def test_a_phase_that_fails_is_closed() -> None:
    phases = Phases("cpu")
    phases.enter("training")
    with pytest.raises(ZeroDivisionError), phases("generation", tokens=5):
        raise ZeroDivisionError
    phases.leave()
    assert "generated_tokens_per_second" in phases.summary()


def test_a_cpu_has_the_process_s_peak() -> None:
    before = resident_peak()
    block = torch.ones(64 << 20, dtype=torch.uint8)
    assert resident_peak() >= before
    assert Phases("cpu").window()["memory_gib"] >= (block.nbytes + 1) / 2**30


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_s_peak_is_the_phase_s_own() -> None:
    phases = Phases("cuda")
    phases.enter("training")
    kept = torch.empty(64 << 20, dtype=torch.uint8, device="cuda")
    with phases("generation"):
        torch.empty(512 << 20, dtype=torch.uint8, device="cuda")
    phases.leave()
    found = phases.summary()
    assert found["gpu_allocated_gib_generation"] >= 0.56
    assert 0.06 <= found["gpu_allocated_gib_training"] < 0.3
    assert found["gpu_used_gib_training"] >= found["gpu_reserved_gib_training"]
    assert kept.numel()


def test_the_reporter_tells_phases_to_the_emitter_and_keeps_them_out_of_the_file(tmp_path) -> None:
    from types import SimpleNamespace

    from tests.conftest import Emitted
    from vibethinker.training.callbacks import Reporter

    emitted, phases = Emitted(), Phases("cpu")
    reporter = Reporter(emitted, tmp_path / "metrics.jsonl", 2, {"loss": "loss"}, tokens="seen", phases=phases)
    reporter.on_train_begin(None, SimpleNamespace(global_step=0), None)
    for step in (1, 2):
        with phases("generation", tokens=50):
            time.sleep(0.01)
        reporter.on_log(None, SimpleNamespace(global_step=step), None, {"loss": 1.5, "seen": 100.0 * step})
    reporter.on_train_end(None, None, None)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"loss": 1.5, "step": 1}\n{"loss": 1.5, "step": 2}\n'
    for _, values in emitted.rows:
        assert {"seconds_generation", "seconds_training", "memory_gib"} <= set(values)
        assert values["trained_tokens_per_second"] == pytest.approx(100 / values["seconds_training"])
        assert values["generated_tokens_per_second"] <= 50 / 0.01
