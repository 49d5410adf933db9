"""Slots: never more at once than there are, and nobody overtakes."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tasks.slots import Slots, Turns


def test_no_more_run_at_once_than_there_are_slots() -> None:
    slots, lock, running, most = Slots(2), threading.Lock(), 0, 0

    def work() -> None:
        nonlocal running, most
        for _ in range(50):
            with slots.take(1):
                with lock:
                    running += 1
                    most = max(most, running)
                with lock:
                    running -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 2


def test_a_wide_step_is_not_overtaken_by_narrow_ones() -> None:
    slots, order = Slots(2), []
    asked = threading.Event()

    def wide() -> None:
        asked.set()
        with slots.take(2):
            order.append("wide")

    def narrow() -> None:
        with slots.take(1):
            order.append("narrow")

    with slots.take(1):
        first = threading.Thread(target=wide)
        first.start()
        asked.wait()
        while slots.turns.waiting < 1:
            pass
        second = threading.Thread(target=narrow)
        second.start()
        while slots.turns.waiting < 2:
            pass
        assert order == []
    first.join()
    second.join()
    assert order == ["wide", "narrow"]


def test_a_patient_step_waits_for_those_who_are_not() -> None:
    slots, order = Slots(1), []

    def work(name: str, expected: Callable[[], bool] | None) -> None:
        with slots.take(1, expected):
            order.append(name)

    asked = [("evaluation", lambda: False), ("training", None)]
    threads = [threading.Thread(target=work, args=one) for one in asked]
    with slots.take(1):
        for waiting, thread in enumerate(threads, start=1):
            thread.start()
            while slots.turns.waiting < waiting:
                pass
    for thread in threads:
        thread.join()
    assert order == ["training", "evaluation"]


def test_a_patient_step_leaves_free_slots_to_one_that_is_about_to_ask() -> None:
    slots, order, asked = Slots(1), [], threading.Event()

    def evaluation() -> None:
        with slots.take(1, lambda: not asked.is_set()):
            order.append("evaluation")

    waiting = threading.Thread(target=evaluation)
    waiting.start()
    while slots.turns.waiting < 1:
        pass
    with slots.take(1):
        asked.set()
        order.append("training")
    waiting.join()
    assert order == ["training", "evaluation"]


def test_a_step_wider_than_all_slots_gets_all() -> None:
    slots = Slots(2)
    with slots.take(99) as held:
        assert held == 2
        assert slots._free == 0
    assert slots._free == 2


def test_a_failed_attempt_leaves_the_queue_to_the_next() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError):
        turns.take(lambda: 1 // 0)
    assert turns.take(lambda: "mine") == "mine"


def test_what_changes_unheard_is_looked_for_again() -> None:
    answers = iter([None, None, "free"])
    assert Turns().take(lambda: next(answers), look=0.01) == "free"
