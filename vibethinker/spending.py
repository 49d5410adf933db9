"""What a run has spent, on each step and in all: seconds, money, and energy where it can be read.

It is counted while steps run, whatever becomes of them, and kept in the run's folder (spending.json), so that a run
which goes on after a crash knows what it has spent; a SIGKILL loses at most SAVE_SECONDS of it. Money is
`execution.price` an hour of each GPU that a step holds; on a CPU, of the machine, by the part of its slots. Idle GPUs
and a teacher's server, which has a budget of its own, aren't in it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vibethinker.energy import CPU, Energy
from vibethinker.errors import BudgetError
from vibethinker.operations import Budget

FILE = "spending.json"  # of a run's folder
SAVE_SECONDS = 5.0
RESERVE = 0.02  # most of a budget that is kept for steps to save what they have


class Spending:
    """The spending of one run; safe to use from several threads.

    Args:
        folder: the run's.
        price: USD an hour of one GPU, or of the machine where steps compute on its CPU; None: unknown.
    """

    def __init__(self, folder: Path, price: float | None, energy: Energy | None = None) -> None:
        self._file, self._price, self._energy = folder / FILE, price, energy
        self._lock = threading.RLock()
        self._running: dict[str, tuple[float, Sequence[str]]] = {}
        self._at = self._saved = time.monotonic()
        before = _read(self._file)
        self._total: dict[str, float] = before.get("total", {"elapsed": 0.0, "seconds": 0.0})
        self._steps: dict[str, dict[str, float]] = before.get("steps", {})

    @contextmanager
    def running(self, step: str, share: float, gpus: Sequence[str] = ()) -> Iterator[None]:
        """Count for this step during the `with` block; `share` as `workload.share` has it."""
        with self._lock:
            self.tick()
            self._running[step] = share, gpus
        try:
            yield
        finally:
            with self._lock:
                self.tick(save=True)
                del self._running[step]

    def tick(self, save: bool = False) -> None:
        """Count what has passed since the last call; to be called every few seconds, and at the end to `save`."""
        with self._lock:
            now = time.monotonic()
            passed, self._at = now - self._at, now
            self._add(self._total, elapsed=passed, seconds=passed if self._running else 0.0)
            for step, (share, _) in self._running.items():
                usd = {} if self._price is None else {"usd": passed / 3600 * self._price * share}
                self._add(self._steps.setdefault(step, {}), seconds=passed, **usd)
            self._share_energy(last=save)
            if save or now - self._saved > SAVE_SECONDS:
                self._saved = now
                self._write()

    def document(self) -> dict[str, Any]:
        """`total` and `steps` (step id → …): seconds, usd and joules as far as they are known. The total's `seconds`
        are those in which any step ran, `elapsed` all in which the run was there."""
        with self._lock:
            steps = {step: {k: round(v, 4) for k, v in spent.items()} for step, spent in self._steps.items()}
            total = {k: round(v, 4) for k, v in self._total.items()}
            for name in ("usd", "joules"):
                if any(name in spent for spent in steps.values()):
                    total[name] = round(sum(spent.get(name, 0.0) for spent in steps.values()), 4)
            return {"total": total, "steps": steps}

    def check(
        self,
        budget: Budget,
        step: str = "",
        estimates: Mapping[str, Mapping[str, Any]] | None = None,
        leave_seconds: float = 0.0,
    ) -> None:
        """Refuse to begin a step that would exceed the budget, or, without a step, to go on once it is spent.

        Args:
            estimates: step id → seconds and usd, either of them None where unknown; of a step that was begun before
                only the rest counts.
            leave_seconds: that running steps may take to save and leave; RESERVE of the budget at most is left for it.

        Raises:
            BudgetError: with the sentence for the user.
        """
        if budget.hours is None and budget.usd is None:
            return
        with self._lock:
            self.tick()
            found = self.document()
            going = {step, *self._running} if step else set()
            left = {one: _left((estimates or {}).get(one, {}), found["steps"].get(one, {})) for one in going}
            rate = (self._price or 0.0) / 3600 * sum(share for share, _ in self._running.values())
        seconds, usd = found["total"]["seconds"], found["total"].get("usd", 0.0)
        over = []
        if budget.hours is not None:
            most = budget.hours * 3600
            coming = left[step]["seconds"] if step else min(leave_seconds, RESERVE * most)
            if seconds >= most or seconds + coming > most:
                over.append(("hours", _hours(seconds), _hours(coming), f"{budget.hours:g} h"))
        if budget.usd is not None:
            coming = (
                sum(one["usd"] for one in left.values()) if step else min(leave_seconds * rate, RESERVE * budget.usd)
            )
            if usd >= budget.usd or usd + coming > budget.usd:
                over.append(("usd", f"{usd:.2f} USD", f"{coming:.2f} USD", f"{budget.usd:.2f} USD"))
        if over:
            raise BudgetError(_sentence(step, *over[0]))

    def _share_energy(self, last: bool) -> None:
        if self._energy is None:
            return
        for source, joules in self._energy.take(last).items():
            takers = {
                step: (share if source == CPU else 1.0)
                for step, (share, gpus) in self._running.items()
                if source == CPU or source in gpus
            }
            whole = sum(takers.values())
            for step, share in takers.items():
                self._add(
                    self._steps.setdefault(step, {}), joules=joules * (share / whole if whole else 1 / len(takers))
                )

    def _add(self, to: dict[str, float], **amounts: float) -> None:
        for name, amount in amounts.items():
            to[name] = to.get(name, 0.0) + amount

    def _write(self) -> None:
        # No lasting evidence, so it needn't be forced to the disk.
        aside = self._file.with_name(f".{FILE}.{os.getpid()}")
        with suppress(OSError):  # a full disk is for others to tell
            aside.write_text(json.dumps({"total": self._total, "steps": self._steps}, indent=1, sort_keys=True))
            aside.replace(self._file)


def _left(estimate: Mapping[str, Any], spent: Mapping[str, float]) -> dict[str, float]:
    return {name: max(0.0, (estimate.get(name) or 0.0) - spent.get(name, 0.0)) for name in ("seconds", "usd")}


def _sentence(step: str, name: str, spent: str, coming: str, most: str) -> str:
    go_on = f"raise it (--set budget.{name}=…) and run the same command again to go on"
    if not step:
        return (
            f"The run was paused after {spent}, since budget.{name} is {most}; its steps saved what they had: {go_on}."
        )
    return (
        f"The run was paused before {step}, which would take about {coming} after {spent}, since budget.{name} is "
        f"{most}: {go_on}."
    )


def _hours(seconds: float) -> str:
    return (
        f"{seconds / 3600:.2f} h"
        if seconds >= 360
        else f"{seconds / 60:.1f} min"
        if seconds >= 60
        else f"{seconds:.0f} s"
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
