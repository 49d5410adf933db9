"""How fast an engine samples and what GPU memory this process has taken, in the names that metrics have everywhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Meter:
    """Adds up tokens and seconds of an engine's generations between two looks at it."""

    def __init__(self) -> None:
        self._tokens, self._seconds = 0, 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the seconds inside."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - began

    def add(self, tokens: int) -> None:
        """So many tokens were generated."""
        self._tokens += tokens

    def take(self) -> dict[str, float]:
        """What was measured since the last call: `generated_tokens`, `tokens_per_second` (these by the seconds that
        they took), and on a GPU `gpu_memory_gib`, the most that this process's tensors have held so far."""
        import torch

        values: dict[str, float] = {}
        if self._seconds:
            values = {"generated_tokens": self._tokens, "tokens_per_second": self._tokens / self._seconds}
        self._tokens, self._seconds = 0, 0.0
        if torch.cuda.is_available():
            values["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        return values
