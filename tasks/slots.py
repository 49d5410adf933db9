"""How many steps compute at once in this process, and how many CPU threads each gets.

Slots are a weighted first-come, first-served semaphore: a step that nothing else can run beside (the base model, a
signal stage) takes them all and gets all cores, others take one and their share. Evaluations, which no training waits
for, stand behind everything that trains, training that is about to ask included: one evaluation that slips in between
two signal stages leaves a core idle for its whole length. Measured on two cores: two children of one thread train
10.9k tokens/s together, one of two threads 9k, two of two 3.8k.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK_SECONDS = 0.5  # how often a patient asker looks whether others are still expected


class Slots:
    """`total` slots, handed out in the order of asking, patient askers after all others."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total))
        self._asked = 0
        self._queue: list[tuple[bool, int]] = []
        self._changed = threading.Condition()

    @contextmanager
    def take(self, width: int, expected: Callable[[], bool] | None = None) -> Iterator[int]:
        """Hold `width` slots (at most all) and get the number of the first; waits for those who asked before.

        With `expected` it is patient: it also waits for all who aren't, and while `expected()` says that one of them is
        about to ask.
        """
        width = min(width, self.total)
        patient = expected is not None
        with self._changed:
            self._asked += 1
            ticket = (patient, self._asked)
            self._queue.append(ticket)
            try:
                while not (min(self._queue) == ticket and len(self._free) >= width) or (expected and expected()):
                    self._changed.wait(_LOOK_SECONDS if expected else None)
                held, self._free = self._free[:width], self._free[width:]
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()
        try:
            yield held[0]
        finally:
            with self._changed:
                self._free = sorted(self._free + held)
                self._changed.notify_all()
