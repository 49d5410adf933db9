"""How many steps compute at once in this process, and how many CPU threads each gets.

Slots are a weighted first-come, first-served semaphore: a step that nothing else can run beside (the base model, a
signal stage) takes them all and gets all cores, others take one and their share. Evaluations, which no training waits
for, stand behind everything that trains. Measured on two cores: two children
of one thread train 10.9k tokens/s together, one of two threads 9k, two of two 3.8k.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Slots:
    """`total` slots, handed out in the order of asking, patient askers after all others."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total))
        self._asked = 0
        self._queue: list[tuple[bool, int]] = []
        self._changed = threading.Condition()

    @contextmanager
    def take(self, width: int, patient: bool = False) -> Iterator[int]:
        """Hold `width` slots (at most all) and get the number of the first; waits for those who asked before and, if
        `patient`, for those who aren't."""
        width = min(width, self.total)
        with self._changed:
            self._asked += 1
            ticket = (patient, self._asked)
            self._queue.append(ticket)
            try:
                self._changed.wait_for(lambda: min(self._queue) == ticket and len(self._free) >= width)
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
