"""Who computes next in this process, and how many steps do at once on a CPU.

Turns are first come, first served. Evaluations, which no training waits for, stand behind everything that trains,
training that is about to ask included: one evaluation that slips in between two signal stages leaves a core idle for
its whole length.

Slots are a weighted semaphore: a step that nothing else runs beside (the base model, a signal stage) takes them all
and gets all cores, others take one and their share. Measured on two cores: two children of one thread train 10.9k
tokens/s together, one of two threads 9k, two of two 3.8k.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

_LOOK_SECONDS = 0.5  # how often a patient asker looks whether others are still expected

Taken = TypeVar("Taken")


class Turns:
    """A queue in which only the first tries to take what it needs, patient askers after all others.

    Attributes:
        changed: the condition under which takers try; whoever gives something back notifies it.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._asked = 0
        self._queue: list[tuple[bool, int]] = []

    def take(
        self,
        attempt: Callable[[], Taken | None],
        expected: Callable[[], bool] | None = None,
        look: float | None = None,
    ) -> Taken:
        """What `attempt` returns, once it isn't None; it is called in turn, and again whenever something changed.

        Args:
            expected: makes the asker patient: it also waits for all who aren't, and while `expected()` says that one
                of them is about to ask.
            look: seconds after which to try again, for what can change unheard.
        """
        with self.changed:
            self._asked += 1
            ticket = (expected is not None, self._asked)
            self._queue.append(ticket)
            try:
                while True:
                    if min(self._queue) == ticket and not (expected and expected()):
                        taken = attempt()
                        if taken is not None:
                            return taken
                    self.changed.wait(_LOOK_SECONDS if expected else look)
            finally:
                self._queue.remove(ticket)
                self.changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many stand in the queue."""
        return len(self._queue)


class Slots:
    """`total` slots, handed out in turn."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.turns = Turns()
        self._free = total

    @contextmanager
    def take(self, width: int, expected: Callable[[], bool] | None = None) -> Iterator[int]:
        """Hold `width` slots (at most all) for the `with` block, and get their number; see `Turns.take`."""
        width = min(width, self.total)
        held = self.turns.take(lambda: self._attempt(width), expected)
        try:
            yield held
        finally:
            with self.turns.changed:
                self._free += width
                self.turns.changed.notify_all()

    def _attempt(self, width: int) -> int | None:
        if self._free < width:
            return None
        self._free -= width
        return width
