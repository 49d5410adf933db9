"""How many steps compute at once in this process, and how many CPU threads each gets.

Slots are a weighted first-come, first-served semaphore: a step that nothing else can run beside (the base model, a
signal stage) takes them all and gets all cores, others take one and their share. Measured on two cores: two children
of one thread train 10.9k tokens/s together, one of two threads 9k, two of two 3.8k.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Slots:
    """`total` slots, handed out in the order of asking."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = list(range(total))
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def take(self, width: int) -> Iterator[int]:
        """Hold `width` slots (at most all) and get the number of the first; waits for those who asked before."""
        width, ticket = min(width, self.total), object()
        with self._changed:
            self._queue.append(ticket)
            try:
                self._changed.wait_for(lambda: self._queue[0] is ticket and len(self._free) >= width)
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
