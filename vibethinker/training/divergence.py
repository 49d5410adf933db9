"""The signs by which a training counts as diverged, looked for in each update's metrics.

- `not_finite`: loss or gradient norm is NaN or infinite; at once, in every training.

The others are of signal stages, and count once they have shown for a number of updates in a row, so that no single odd
batch ends a training:

- `entropy_collapse`: the policy's entropy is all but gone, against that of the stage's first updates;
- `runaway_length`, `runaway_repetition`: most rollouts are truncated, or end in a loop, though few did at first;
- `all_wrong`: none is right, though by the accuracy so far at least `EXPECTED` of them would have been;
- `all_right`: none is wrong, so that no group has an advantage and nothing is left to learn.

An update is computed by the weights that the one before it made. So the first update that shows a sign accuses the
update before it, and the last weights beyond suspicion are those two updates back (`Sign.healthy`).

Loops are looked for in the token ids, at a rollout's end. `data.filters.repetition` is another measure: the share of a
text's word n-grams that came before, which grows with any long derivation, and takes all of the text to count.

Left out: explosion of a loss or gradient that stays finite, which clipping bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vibethinker.operations import Divergence
from vibethinker.training import processes

PERIOD, TIMES, LEAST = 64, 4, 32  # tokens of a passage at most, how often it comes in a row, tokens of all of them
# Right rollouts that all_wrong takes to be missed: if chance alone were at work, it would come once in e^20 windows.
EXPECTED = 20
NUMBERS = ("loss", "grad_norm")
STARTS = ("entropy", "truncated", "repeating")  # whose means over the first updates are what later ones are held to

_SMALLER = "lower the learning rate or raise the warm-up"


@dataclass(frozen=True)
class Sign:
    """One sign that has shown for long enough.

    Attributes:
        name: see the module.
        update: the last one that showed it.
        since: the first one of those in a row.
        finding: what was found, as a sentence without its end.
        mend: what to do about it, as the rest of one.
        numbers: what was measured, and the bounds.
    """

    name: str
    update: int
    since: int
    finding: str
    mend: str
    numbers: Mapping[str, float]

    @property
    def healthy(self) -> int:
        """The last update whose weights are beyond suspicion; 0 is the start."""
        return max(0, self.since - 2)

    @property
    def curable(self) -> bool:
        """Whether going back and taking smaller steps may help: neither an update that found the start's own weights
        broken is mended so, nor problems that are too easy."""
        return self.since > 1 and self.name != "all_right"


def not_finite(update: int, row: Mapping[str, Any]) -> Sign | None:
    """The sign of a loss or gradient that is no number."""
    for name in NUMBERS:
        value = float(row.get(name, 0.0))
        if not math.isfinite(value):
            what = "loss" if name == "loss" else "gradient norm"
            mend = _SMALLER if update > 1 else "look at the weights and the data that it began with"
            return Sign("not_finite", update, update, f"The {what} became {value}", mend, {name: value})
    return None


def repeats(ids: Sequence[int]) -> bool:
    """Whether tokens end in a loop: one passage of at most PERIOD tokens, TIMES or more times in a row, LEAST tokens or
    more in all."""
    for period in range(1, PERIOD + 1):
        length = max(LEAST, TIMES * period)
        if length > len(ids):
            return False
        if ids[-1] == ids[-1 - period] and ids[-length + period :] == ids[-length:-period]:
            return True
    return False


class Watch(TrainerCallback):
    """Looks for the signs after each update, before anything of it is written; all processes find the same.

    Args:
        settings: bounds and windows.
        rollouts: of an update; 0 in supervised training.

    Attributes:
        halt: called with a sign and the update's metrics; doesn't return.
    """

    def __init__(self, settings: Divergence, rollouts: int = 0) -> None:
        self._settings, self._rollouts = settings, rollouts
        self._since: dict[str, int] = {}  # signs that the last update showed → the first of those in a row
        self._starts: dict[str, list[float]] = {name: [] for name in STARTS}
        self._right, self._updates, self._last = 0.0, 0, 0  # sum of p, updates with rollouts, the last update
        self.halt: Callable[[Sign, Mapping[str, Any]], NoReturn] | None = None

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Halt if the update of any process shows a sign."""
        if logs is None or "loss" not in logs:  # the summary at the end
            return
        found = next((one for one in processes.gathered([self.look(state.global_step, logs)]) if one), None)
        if found is not None:
            assert self.halt is not None
            self.halt(found, logs)

    @property
    def healthy(self) -> int:
        """The last update whose weights no sign casts doubt on so far; 0 is the start."""
        since = [update for name, update in self._since.items() if name != "all_right"]
        return max(0, min(since, default=self._last + 1) - 2)

    def look(self, update: int, row: Mapping[str, Any]) -> Sign | None:
        """Take in an update's metrics, as the trainer or metrics.jsonl names them; a sign, if one has shown for long
        enough."""
        self._last = update
        if broken := not_finite(update, row):
            return broken
        if "zero_variance" not in row:  # no rollouts
            return None
        shown = self._shown(row)
        self._since = {name: self._since.get(name, update) for name in shown}
        found = [sign for name, numbers in shown.items() if (sign := self._sign(name, update, numbers))]
        self._updates += 1
        self._right += row.get("p", 0.0)  # none where every rollout was left out
        for name, values in self._starts.items():
            if len(values) < self._settings.window and row.get(name) is not None:
                values.append(float(row[name]))
        return found[0] if found else None

    def _shown(self, row: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        """The signs that one update shows, with what was measured; those that are off are left out."""
        settings, shown = self._settings, {}
        entropy, start = row.get("entropy"), self._start("entropy")
        if settings.entropy and entropy is not None and start is not None and entropy < settings.entropy * start:
            shown["entropy_collapse"] = {"entropy": entropy, "start": start, "bound": settings.entropy * start}
        for name, sign, bound in (
            ("truncated", "runaway_length", settings.truncated),
            ("repeating", "runaway_repetition", settings.repeating),
        ):
            value, start = row.get(name), self._start(name)
            if bound and value is not None and start is not None and value >= bound > 2 * start:
                shown[sign] = {name: value, "start": start, "bound": bound}
        if settings.all_wrong and not row.get("p"):
            shown["all_wrong"] = {"p": 0.0}
        if settings.all_right and row.get("p") == 1:
            shown["all_right"] = {"p": 1.0}
        return shown

    def _start(self, name: str) -> float | None:
        """The mean over the first window, once that is over."""
        values = self._starts[name]
        return sum(values) / len(values) if len(values) >= self._settings.window else None

    def _sign(self, name: str, update: int, numbers: dict[str, float]) -> Sign | None:
        """The sign that an update shows, once it has for long enough."""
        settings, since = self._settings, self._since[name]
        count = update - since + 1
        window = {"all_wrong": settings.all_wrong, "all_right": settings.all_right}.get(name, settings.window)
        if count < window:
            return None
        mend = _SMALLER
        if name == "entropy_collapse":
            finding = "The policy's entropy has been below {bound:.2g} nats a token for {n} updates, from {start:.2g}"
        elif name == "runaway_length":
            finding = "{bound:.0%} of rollouts or more have been truncated for {n} updates, from {start:.0%}"
        elif name == "runaway_repetition":
            finding = "{bound:.0%} of rollouts or more have ended in a loop for {n} updates, from {start:.0%}"
        elif name == "all_right":
            finding = "Every rollout has been right for {n} updates, so that nothing is left to learn"
            mend = "give harder problems, or end the stage earlier by its `steps`"
        else:
            before = self._updates - (count - 1)
            numbers |= {"start": self._right / before if before > 0 else 0.0}
            if numbers["start"] * self._rollouts * count < EXPECTED:
                return None
            finding = "No rollout has been right for {n} updates, though {start:.1%} of those before were"
        numbers |= {"window": window, "updates": count}
        return Sign(name, update, since, finding.format(n=count, **numbers), mend, numbers)

    def remembered(self) -> dict[str, Any]:
        """See `resumable.Remembers`."""
        return {
            "since": dict(self._since),
            "starts": {name: list(values) for name, values in self._starts.items()},
            "right": self._right,
            "updates": self._updates,
            "last": self._last,
        }

    def recall(self, state: dict[str, Any]) -> None:
        """See `resumable.Remembers`."""
        self._since, self._starts = state["since"], state["starts"]
        self._right, self._updates, self._last = state["right"], state["updates"], state["last"]
