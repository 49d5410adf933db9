"""Slots: never more at once than there are, and nobody overtakes."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tasks.slots import Slots


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
        while len(slots._queue) < 1:
            pass
        second = threading.Thread(target=narrow)
        second.start()
        while len(slots._queue) < 2:
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
            while len(slots._queue) < waiting:
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
    while len(slots._queue) < 1:
        pass
    with slots.take(1):
        asked.set()
        order.append("training")
    waiting.join()
    assert order == ["training", "evaluation"]


def test_a_step_wider_than_all_slots_gets_all() -> None:
    slots = Slots(2)
    with slots.take(99):
        assert slots._free == []
    assert slots._free == [0, 1]


def test_each_holder_gets_a_slot_of_its_own() -> None:
    slots = Slots(2)
    with slots.take(1) as first, slots.take(1) as second:
        assert {first, second} == {0, 1}
    with slots.take(1) as again:
        assert again == 0
