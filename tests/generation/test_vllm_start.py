"""What a start of vLLM does before vLLM is there."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vibethinker.generation.vllm_start import _turn
from vibethinker.worker import family, ranks

ALIKE: dict[str, Any] = {"model": "skeleton", "max_model_len": 2048, "gpu_memory_utilization": 0.9}


def starts_beside(folder: Path, gpu: str, given: dict[str, Any]) -> bool:
    """Whether another engine can start on this GPU while one that is like ALIKE starts on GPU 0."""
    entered, waits = threading.Event(), threading.Event()

    def second() -> None:
        waits.set()
        with _turn(folder, gpu, given):
            entered.set()

    other = threading.Thread(target=second)
    with _turn(folder, "GPU-0", ALIKE):
        other.start()
        assert waits.wait(10)
        beside = entered.wait(0.3)
    other.join(10)
    assert entered.is_set()
    return beside


@pytest.fixture
def compiled(tmp_path) -> Path:
    """The folder in which an engine like ALIKE has started once."""
    with _turn(tmp_path, "GPU-0", ALIKE):
        pass
    return tmp_path


def test_engines_of_one_gpu_start_one_after_the_other(compiled):
    assert not starts_beside(compiled, "GPU-0", ALIKE)


def test_engines_of_two_gpus_start_side_by_side(compiled):
    assert starts_beside(compiled, "GPU-1", ALIKE | {"gpu_memory_utilization": 0.4})


def test_the_first_engine_that_compiles_is_waited_for(tmp_path):
    assert not starts_beside(tmp_path, "GPU-1", ALIKE)


def test_those_that_have_waited_for_the_first_start_side_by_side(tmp_path):
    both = threading.Barrier(2, timeout=10)

    def later(gpu: str) -> None:
        with _turn(tmp_path, gpu, ALIKE):
            both.wait()

    others = [threading.Thread(target=later, args=(gpu,)) for gpu in ("GPU-1", "GPU-2")]
    with _turn(tmp_path, "GPU-0", ALIKE):
        for other in others:
            other.start()
        time.sleep(0.3)
    for other in others:
        other.join(20)
    assert not both.broken


def test_ranks_of_one_step_start_together(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")  # so that what the rank sets is undone
    with _turn(tmp_path, "GPU-0", ALIKE):
        for name, value in ranks._environment(2, 2, 1, "127.0.0.1", 1).items():
            monkeypatch.setenv(name, value)
        family.become(1, None)
        with _turn(tmp_path, "GPU-1", ALIKE):
            pass
