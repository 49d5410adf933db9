"""Seconds, tokens and peak memory of each phase of a training step: training, generation, grading.

Phases nest and exclude each other: while an inner one is open, the outer one's clock stands still and its peak of
memory is kept aside. So a trainer that opens `training` once and `generation` and `grading` inside it learns what
each of them takes, and the seconds of all add up to the time that passed. `grading` is the wait for verdicts after
the last rollout, not what the verifier does meanwhile.

The GPU is waited for where a phase begins and ends, and nowhere else. A peak is of torch's allocator in this process:
what tensors held (`allocated`), and what torch had taken from the GPU for them (`reserved`); `used` is all that is
taken of the GPU where the phase ends, a sampling engine's share and CUDA's own included. On a CPU it is the process's
largest resident set so far, whatever the phase. Left out: threads, other processes.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

GIB = 1 << 30
# What a phase does with tokens, as its rate is named.
RATES = {"generation": "generated_tokens_per_second", "training": "trained_tokens_per_second"}


@dataclass
class Phase:
    """What one phase has taken so far: seconds, tokens that whoever is in it adds, and bytes of GPU memory."""

    seconds: float = 0.0
    tokens: float = 0.0
    allocated: int = 0
    reserved: int = 0
    used: int = 0

    def add(self, other: Phase) -> None:
        """Add what another stretch of the same phase took."""
        self.seconds += other.seconds
        self.tokens += other.tokens
        self.allocated = max(self.allocated, other.allocated)
        self.reserved = max(self.reserved, other.reserved)
        self.used = max(self.used, other.used)

    def values(self, name: str) -> dict[str, float]:
        """As metrics: seconds, tokens a second where it has any, and GiB where there is a GPU."""
        found = {f"seconds_{name}": self.seconds}
        if self.tokens and self.seconds:
            found[RATES.get(name, f"{name}_tokens_per_second")] = self.tokens / self.seconds
        if self.reserved:
            for kind in ("allocated", "reserved", "used"):
                found[f"gpu_{kind}_gib_{name}"] = getattr(self, kind) / GIB
        return found


class Phases:
    """The phases of one step in this process; see the module. For one thread.

    Args:
        device: where it computes, `cpu` or `cuda`.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self._open: list[str] = []
        self._since = 0.0
        self._window: dict[str, Phase] = {}
        self._all: dict[str, Phase] = {}

    @contextmanager
    def __call__(self, name: str, tokens: float = 0) -> Iterator[Phase]:
        """Be in a phase for the `with` block. `tokens` counts for its rate; where the number is known only later, add
        it to the block's `.tokens`."""
        self.enter(name)
        told = Phase(tokens=tokens)
        try:
            yield told
        finally:
            self.leave()
            self.count(name, told.tokens)

    def enter(self, name: str) -> None:
        """Begin a phase, within the one that is open."""
        self._note()
        self._open.append(name)

    def leave(self) -> None:
        """End the phase that was entered last."""
        self._note()
        self._open.pop()

    def count(self, name: str, tokens: float) -> None:
        """Add tokens to a phase."""
        self._window.setdefault(name, Phase()).tokens += tokens

    def window(self) -> dict[str, float]:
        """What the phases took since the last call, as metrics: `seconds_training`, `trained_tokens_per_second`,
        `gpu_reserved_gib_training` and so on; on a CPU `memory_gib`."""
        self._note()
        values = self._values(self._window)
        for name, phase in self._window.items():
            self._all.setdefault(name, Phase()).add(phase)
        self._window = {}
        return values

    def summary(self) -> dict[str, float]:
        """The same over the whole step."""
        self.window()
        return self._values(self._all)

    def _values(self, phases: dict[str, Phase]) -> dict[str, float]:
        values = {} if self._cuda else {"memory_gib": resident_peak() / GIB}
        for name, phase in sorted(phases.items()):
            values |= phase.values(name)
        return values

    def _note(self) -> None:
        """Book what passed since the last call to the phase that is open."""
        taken = Phase()
        if self._cuda:
            torch.cuda.synchronize()
            free, total = torch.cuda.mem_get_info()
            taken.allocated, taken.reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
            taken.used = total - free
            torch.cuda.reset_peak_memory_stats()
        now = time.monotonic()
        taken.seconds, self._since = now - self._since, now
        if self._open:
            self._window.setdefault(self._open[-1], Phase()).add(taken)


def resident_peak() -> int:
    """The largest resident set of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
