"""Rollouts that a person may read: of some updates of a signal stage the groups that say most, in samples.jsonl.

Of an update these are the group that was right most often, the one that was wrong most often, and the one about which
its rollouts disagree most; of each two right ones and two wrong ones, long texts without their middle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vibethinker.data.schema import Problem

TIMES = 8  # updates, evenly spaced, beside the first
SHOWN = 2  # rollouts of a verdict
END = 1000  # characters of each end of a text

Group = Sequence[Mapping[str, Any]]


class Samples(TrainerCallback):
    """Writes the file; an update's rollouts are there when it is logged.

    Args:
        file: samples.jsonl.
        steps: of the training, at most.
        problems: by their numbers.
        groups: of the last update: their rollouts with `problem`, `text`, `tokens`, `verdict` and `truncated`.
    """

    def __init__(
        self, file: Path, steps: int, problems: Sequence[Problem], groups: Callable[[], Sequence[Group]]
    ) -> None:
        self._file, self._problems, self._groups = file, problems, groups
        self._steps, self._every = steps, math.ceil(steps / TIMES)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin the file, unless the training goes on."""
        if state.global_step == 0:
            self._file.write_text("")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl,
        logs: dict[str, Any] | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        """Write the update's rollouts, if it is one of those that are kept."""
        update = state.global_step
        if (
            logs is None
            or "loss" not in logs
            or not (update == 1 or update == self._steps or update % self._every == 0)
        ):
            return
        with self._file.open("a", encoding="utf-8") as file:
            for group in chosen(self._groups()):
                problem = self._problems[group[0]["problem"]]
                row = {"update": update, "id": problem.id, "problem": problem.problem, "gold": problem.answer}
                file.write(json.dumps({**row, **told(group)}, sort_keys=True, ensure_ascii=False) + "\n")


def chosen(groups: Sequence[Group]) -> list[Group]:
    """The groups that say most, in the order of the update; see the module."""
    shares = [share(group) for group in groups]
    found: set[int] = set()
    for distance in (1.0, 0.0, 0.5):
        near = [i for i in range(len(groups)) if abs(shares[i] - distance) < 0.5]
        if near:
            # Rounded, as 1/3 and 2/3 are equally far from 1/2.
            found.add(min(near, key=lambda i: (round(abs(shares[i] - distance), 9), i)))
    return [groups[i] for i in sorted(found)]


def share(group: Group) -> float:
    """Right rollouts of all."""
    return sum(one["verdict"] == 1 for one in group) / len(group)


def told(group: Group) -> dict[str, Any]:
    """A group as the file has it."""
    right = [one for one in group if one["verdict"] == 1]
    wrong = [one for one in group if one["verdict"] == 0]
    failed = [one for one in group if one["verdict"] is None]
    shown = [("correct", right), ("wrong", wrong), ("infrastructure", failed)]
    samples = [
        {"verdict": name, "text": _shortened(one["text"]), "tokens": one["tokens"], "truncated": one["truncated"]}
        for name, some in shown
        for one in some[:SHOWN]
    ]
    return {"correct": len(right), "count": len(group), "samples": samples}


def _shortened(text: str) -> str:
    if len(text) <= 2 * END:
        return text
    return f"{text[:END]}\n[{len(text) - 2 * END} characters left out]\n{text[-END:]}"
