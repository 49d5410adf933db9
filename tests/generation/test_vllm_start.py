"""What a start of vLLM does before vLLM is there."""

from __future__ import annotations

import threading

from vibethinker.generation.vllm_start import _turn


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


def test_processes_of_one_group_start_together(tmp_path, monkeypatch):
    with _turn(tmp_path):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with _turn(tmp_path):
            pass
