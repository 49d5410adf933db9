"""What a start of vLLM does before vLLM is there."""

from __future__ import annotations

import threading

from vibethinker.generation.vllm_start import _turn
from vibethinker.worker import ranks


def test_engines_of_one_machine_start_one_after_the_other(tmp_path):
    entered, waits = threading.Event(), threading.Event()

    def second() -> None:
        waits.set()
        with _turn(tmp_path):
            entered.set()

    other = threading.Thread(target=second)
    with _turn(tmp_path):
        other.start()
        assert waits.wait(10)
        assert not entered.wait(0.2)
    other.join(10)
    assert entered.is_set()


def test_ranks_of_one_step_start_together(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")  # so that what the rank sets is undone
    with _turn(tmp_path):
        for name, value in ranks._environment(processes=2, threads=1).items():
            monkeypatch.setenv(name, value)
        ranks._become(1, None)
        with _turn(tmp_path):
            pass
