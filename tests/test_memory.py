"""What is tried when memory runs out, in which order, and what of it is remembered."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from vibethinker.errors import DataError, OutOfMemoryError
from vibethinker.memory import Memory, Need, Setting, applied, demands, lower, need_of, run_within, said, setting_of

EXECUTION = {
    "sft_micro_tokens": 16384,
    "signal_micro_tokens": 16384,
    "generation_batch": 64,
    "gradient_checkpointing": None,
    "vllm": {"memory": 0.9, "shared_memory": 0.4, "sleep": False},
}
SFT = Need("sft", 4096, False, {"device": "one"})
SIGNAL = Need("signal", 4096, True, {"device": "one"})
BY_TRANSFORMERS = Need("signal", 4096, False, {"device": "one"})
SAMPLING = Need("sampling", 1024, False, {"device": "one"})


def rungs(need: Need, **changes: Any) -> list[Setting]:
    """Every setting that is tried, each as what differs from the one before."""
    setting, found = setting_of(need, {**EXECUTION, **changes}), []
    while (lowered := lower(setting, need)) is not None:
        found.append({key: value for key, value in lowered.items() if value != setting[key]})
        setting = lowered
    return found


def test_a_trainer_halves_its_micro_batch_to_one_row_and_then_computes_activations_again() -> None:
    assert rungs(SFT) == [{"sft_micro_tokens": 8192}, {"sft_micro_tokens": 4096}, {"gradient_checkpointing": True}]
    assert rungs(SFT, gradient_checkpointing=True)[-1] == {"sft_micro_tokens": 4096}
    assert rungs(SFT, sft_micro_tokens=5000)[0] == {"sft_micro_tokens": 4096}
    assert rungs(SFT, sft_micro_tokens=100) == [{"gradient_checkpointing": True}]


def test_a_signal_stage_goes_on_to_what_vllm_takes() -> None:
    assert rungs(SIGNAL) == [
        {"signal_micro_tokens": 8192},
        {"signal_micro_tokens": 4096},
        {"gradient_checkpointing": True},
        {"vllm.shared_memory": 0.2},
        {"vllm.shared_memory": 0.1},
        {"vllm.sleep": True},
        {"generation_batch": 32},
        {"generation_batch": 16},
    ]


def test_vllm_keeps_the_share_that_it_can_start_with() -> None:
    need = Need("signal", 16384, True, {}, least_share=0.3)
    assert rungs(need, gradient_checkpointing=True)[0] == {"vllm.sleep": True}


def test_where_transformers_samples_the_trainer_s_and_the_sampler_s_batch_are_halved_together() -> None:
    assert rungs(BY_TRANSFORMERS)[0] == {"signal_micro_tokens": 8192, "generation_batch": 32}
    assert rungs(BY_TRANSFORMERS)[-1] == {"gradient_checkpointing": True}
    assert {"generation_batch": 1} in rungs(BY_TRANSFORMERS)


def test_sampling_alone_decodes_fewer_at_once() -> None:
    assert rungs(SAMPLING) == [{"generation_batch": n} for n in (32, 16, 8, 4, 2, 1)]
    by_vllm = rungs(Need("sampling", 1024, True, {}))
    assert by_vllm[0] == {"generation_batch": 32, "vllm.memory": 0.8}
    assert len(by_vllm) == 4


def test_each_rung_demands_less() -> None:
    for need in (SFT, SIGNAL, BY_TRANSFORMERS, SAMPLING):
        setting = setting_of(need, EXECUTION)
        while (lowered := lower(setting, need)) is not None:
            assert demands(setting, lowered, need)
            assert not demands(lowered, setting, need)
            setting = lowered


def test_a_setting_is_said_as_users_write_it_and_laid_over_the_execution_settings() -> None:
    setting = {"signal_micro_tokens": 4096, "gradient_checkpointing": True, "vllm.sleep": True}
    assert said(setting) == (
        "signal.micro_tokens=4096, execution.gradient_checkpointing=true, execution.vllm.sleep=true"
    )
    result = applied(setting, EXECUTION)
    assert result["vllm"] == {"memory": 0.9, "shared_memory": 0.4, "sleep": True}
    assert EXECUTION["vllm"]["sleep"] is False


def fits(bound: int):
    """An attempt that fails above so many tokens, and the list of what was tried."""
    tried: list[int] = []

    def attempt(execution: dict[str, Any]) -> dict[str, Any]:
        tried.append(execution["sft_micro_tokens"])
        if tried[-1] > bound:
            raise OutOfMemoryError("Too much.")
        return {}

    return attempt, tried


def refuse(text: str) -> None:
    raise AssertionError(text)


def test_the_next_run_starts_from_what_worked(tmp_path: Path) -> None:
    told: list[str] = []
    attempt, tried = fits(8192)
    run_within(attempt, SFT, EXECUTION, Memory(tmp_path, refuse), told.append)
    assert tried == [16384, 8192]
    assert told == ["Too much; running again with spectrum.sft.micro_tokens=8192."]
    attempt, tried = fits(8192)
    run_within(attempt, SFT, EXECUTION, Memory(tmp_path, refuse), told.append)
    assert tried == [8192]
    assert "Starting with spectrum.sft.micro_tokens=8192" in told[-1]
    entry = next(iter(json.loads((tmp_path / "memory.json").read_text())["entries"].values()))
    assert (entry["failed"]["sft_micro_tokens"], entry["worked"]["sft_micro_tokens"]) == (16384, 8192)


def test_a_killed_run_s_failure_is_known_too(tmp_path: Path) -> None:
    memory = Memory(tmp_path, refuse)
    memory.failed(SFT, setting_of(SFT, EXECUTION))
    assert memory.start(SFT, setting_of(SFT, EXECUTION))["sft_micro_tokens"] == 8192


def test_what_was_learned_is_of_one_case_alone(tmp_path: Path) -> None:
    memory = Memory(tmp_path, refuse)
    wanted = setting_of(SFT, EXECUTION)
    memory.failed(SFT, wanted)
    for other in (Need("sft", 2048, False, SFT.identity), Need("sft", 4096, False, {"device": "other"})):
        assert memory.start(other, wanted) == wanted


def test_a_smaller_setting_than_the_failed_one_is_left_alone(tmp_path: Path) -> None:
    memory = Memory(tmp_path, refuse)
    memory.failed(SFT, setting_of(SFT, EXECUTION))
    small = setting_of(SFT, {**EXECUTION, "sft_micro_tokens": 6000})
    assert memory.start(SFT, small) == small


def test_what_works_again_is_believed(tmp_path: Path) -> None:
    memory = Memory(tmp_path, refuse)
    wanted = setting_of(SFT, EXECUTION)
    memory.failed(SFT, {**wanted, "sft_micro_tokens": 8192})
    memory.worked(SFT, wanted)
    assert memory.start(SFT, wanted) == wanted


def test_without_a_failure_nothing_is_written(tmp_path: Path) -> None:
    attempt, _ = fits(99999)
    run_within(attempt, SFT, EXECUTION, Memory(tmp_path, refuse), refuse)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_another_run_made_proves_nothing(tmp_path: Path) -> None:
    memory = Memory(tmp_path, refuse)
    memory.failed(SFT, setting_of(SFT, EXECUTION))
    run_within(lambda execution: {"reused": True}, SFT, EXECUTION, memory, lambda text: None)
    [entry] = json.loads(memory.file.read_text())["entries"].values()
    assert "worked" not in entry


def test_at_the_end_the_error_names_what_to_change(tmp_path: Path) -> None:
    attempt, tried = fits(1)
    with pytest.raises(OutOfMemoryError, match=r"Too much; spectrum\.sft\.micro_tokens=4096, .*max_length.*GPU") as end:
        run_within(attempt, SFT, EXECUTION, Memory(tmp_path, refuse), lambda text: None)
    assert str(end.value).count(". ") == 0, "one sentence"
    assert tried == [16384, 8192, 4096, 4096]


def test_another_failure_is_not_memory_s_business(tmp_path: Path) -> None:
    def attempt(execution: dict[str, Any]) -> dict[str, Any]:
        raise DataError("No data.")

    with pytest.raises(DataError):
        run_within(attempt, SFT, EXECUTION, Memory(tmp_path, refuse), refuse)
    assert not (tmp_path / "memory.json").exists()


@pytest.mark.parametrize("text", ["{", "[]", "nothing", '{"schema": 1}', '{"schema": 1, "entries": {"x": 3}}'])
def test_a_damaged_file_is_warned_of_and_replaced(tmp_path: Path, text: str) -> None:
    (tmp_path / "memory.json").write_text(text)
    warnings: list[str] = []
    attempt, tried = fits(8192)
    run_within(attempt, SFT, EXECUTION, Memory(tmp_path, warnings.append), lambda text: None)
    assert tried == [16384, 8192]
    assert bool(warnings) == ("entries" not in text)
    assert all("memory.json" in warning and "delete it" in warning for warning in warnings)
    assert Memory(tmp_path, refuse).start(SFT, setting_of(SFT, EXECUTION))["sft_micro_tokens"] == 8192


def test_settings_that_are_not_whole_are_not_used(tmp_path: Path) -> None:
    broken = {"worked": {"sft_micro_tokens": "many"}, "failed": {"sft_micro_tokens": 1}}
    (tmp_path / "memory.json").write_text(json.dumps({"schema": 1, "entries": {SFT.key: broken}}))
    wanted = setting_of(SFT, EXECUTION)
    assert Memory(tmp_path, refuse).start(SFT, wanted) == wanted


def test_a_file_of_another_version_is_kept_as_it_is(tmp_path: Path) -> None:
    text = '{"schema": 2, "entries": {}}'
    (tmp_path / "memory.json").write_text(text)
    warnings: list[str] = []
    Memory(tmp_path, warnings.append).failed(SFT, setting_of(SFT, EXECUTION))
    assert (tmp_path / "memory.json").read_text() == text
    assert "schema 2" in warnings[0]


@pytest.mark.slow
def test_two_runs_that_learn_at_once_lose_nothing(tmp_path: Path) -> None:
    needs = [Need("sft", 4096, False, {"device": str(i)}) for i in range(6)]
    threads = [
        threading.Thread(target=Memory(tmp_path, refuse).failed, args=(need, setting_of(need, EXECUTION)))
        for need in needs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(json.loads((tmp_path / "memory.json").read_text())["entries"]) == {need.key for need in needs}


def test_a_step_s_need_is_told_by_its_settings() -> None:
    def need(settings: dict[str, Any]) -> Need | None:
        return need_of(settings, {"hidden_size": 8}, {"device": "cpu"}, vllm=True)

    base = {"source": "hub/model", "precision": "bfloat16", "quantization": "none"}
    lora = {"method": "lora", "optimizer": "adamw", "lora": {"rank": 8}}
    stage = need({"stage": {"context": 512}, "objective": lora, "base_model": base})
    assert (stage.role, stage.row, stage.vllm, stage.identity["rank"]) == ("signal", 512, True, 8)
    sft = need({"sft": {"max_length": 256, "method": "full", "optimizer": "adamw"}, "base_model": base})
    assert (sft.role, sft.row, sft.vllm) == ("sft", 256, False)
    assert need({"probing": {"max_tokens": 64}}).role == "sampling"
    assert need({"evaluation": {"max_tokens": 64}}).keys == ("generation_batch", "vllm.memory")
    assert need({"base_model": base}) is None
    assert need({"fusion": {"method": "linear"}}) is None
    assert need({"data": {"teacher": {"model": None, "max_tokens": 9}}}) is None
    assert need({"data": {"teacher": {"model": "sage", "max_tokens": 9}}}).row == 9
