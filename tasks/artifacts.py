"""Prefect artifacts: a progress bar a training step, tables for probing and evaluation, a summary a run.

Keys are stable, so that the UI shows an artifact's history over runs. A thread sends them, in order and each
progress only in its latest state, so that a server that doesn't answer holds nothing up: a step's events are heard in
the thread that would otherwise wait for it.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from vibethinker.artifacts import Artifact
from vibethinker.plan import Step, role_of
from vibethinker.reporting.card import markdown

UPDATE_SECONDS = 2.0  # an update is a call to the server
DRAIN_SECONDS = 20.0


class _Sender:
    """A thread that makes calls to the server, the oldest first; of those with one name, only the latest."""

    def __init__(self) -> None:
        self._waiting: dict[str, Callable[[], None]] = {}
        self._changed = threading.Condition()
        self._busy = False
        self._thread: threading.Thread | None = None

    def send(self, name: str, call: Callable[[], Any]) -> None:
        """Make the call soon, in the caller's context; a failure is a line in the run's log."""
        context, logger = copy_context(), get_run_logger()

        def attempt() -> None:
            try:
                context.run(call)
            except Exception as error:
                logger.warning("The artifact of %s can't be written: %s", name, error)

        with self._changed:
            self._waiting[name] = attempt
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="artifacts", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drain(self, seconds: float) -> bool:
        """Wait until everything is sent; whether it was, in so long."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting))
                call = self._waiting.pop(next(iter(self._waiting)))
                self._busy = True
            call()


_sender = _Sender()


def drain() -> bool:
    """Wait for what is still to be sent, up to DRAIN_SECONDS; whether all of it was."""
    return _sender.drain(DRAIN_SECONDS)


class Progress:
    """The progress artifact of one step, made at its first report."""

    def __init__(self, step: Step) -> None:
        self._step, self._id, self._at = step, None, 0.0

    def update(self, done: int, total: int) -> None:
        """`done` of `total` are finished; sent at most every UPDATE_SECONDS, the end always."""
        now = time.monotonic()
        if done < total and now - self._at < UPDATE_SECONDS:
            return
        self._at, percent = now, 100.0 * done / max(1, total)
        _sender.send(self._step.id, lambda: self._send(percent))

    def _send(self, percent: float) -> None:
        if self._id is None:
            made: Any = create_progress_artifact(percent, key=key(self._step.id), description=self._step.id)
            self._id: UUID | None = made
        else:
            update_progress_artifact(self._id, percent)


def results(step: Step, artifact: Artifact) -> None:
    """The table that a step's result is best read as, if it has one."""
    _sender.send(f"{step.id}'s result", lambda: _results(step, artifact))


def _results(step: Step, artifact: Artifact) -> None:
    if role_of(step) == "data":
        card = json.loads((artifact.folder / "card.json").read_text())
        create_markdown_artifact(markdown(card), key=key("data-card"), description="What the data is made of")
    elif role_of(step) == "probe" and (artifact.folder / "probe.json").exists():
        probe = json.loads((artifact.folder / "probe.json").read_text())
        rows = [
            {"checkpoint": c["checkpoint"], **{f"Pass@{k}": _interval(v) for k, v in c["pass_at"].items()}}
            for c in probe["candidates"]
        ]
        text = f"Chosen by Pass@{probe['k']}: {probe['selected']}"
        create_table_artifact(rows, key=key(f"{step.id}-table"), description=text)
    elif role_of(step) == "evaluation":
        scores = json.loads((artifact.folder / "scores.json").read_text())
        rows = [{"set": name, **{m: _interval(v) for m, v in metrics.items()}} for name, metrics in scores.items()]
        create_table_artifact(rows, key=key(f"{step.id}-table"), description=step.id)


def summary(profile: str, text: str) -> None:
    """The markdown summary of a run."""
    made = {"key": key(f"summary-{profile}"), "description": "What the run achieved"}
    _sender.send("the summary", lambda: create_markdown_artifact(text, **made))


def key(text: str) -> str:
    """A name that Prefect accepts as an artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _interval(score: dict[str, Any]) -> str:
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"
