"""Prefect artifacts: the progress of each step, tables for data, probing, fusion and evaluation, a summary a run.

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
from vibethinker.reporting.highlights import score

UPDATE_SECONDS = 2.0  # an update is a call to the server
DRAIN_SECONDS = 20.0
# Of a step's output, what its table is made of.
FILES = {"data": "card.json", "probe": "probe.json", "fusion": "fusion.json", "evaluation": "scores.json"}
ORDER = ("avg", "pass", "cons")

Row = dict[str, str | int]


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
            except Exception as error:  # of Prefect's client: a page less, and the run goes on
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
        self._step, self._id, self._at, self._end = step, None, 0.0, "done"

    def update(self, done: int, total: int, text: str) -> None:
        """`done` of `total` are finished, and `text`; sent at most every UPDATE_SECONDS, the end always."""
        now, percent, said = time.monotonic(), 100.0 * done / max(1, total), f"{done} of {total} {text}".rstrip()
        self._end = said if done == total else "done"
        if done < total and now - self._at < UPDATE_SECONDS:
            return
        self._at = now
        _sender.send(self._step.id, lambda: self._send(percent, said))

    def end(self) -> None:
        """The step is done, however far it said it was."""
        said = self._end
        _sender.send(self._step.id, lambda: self._send(100.0, said))

    def _send(self, percent: float, said: str) -> None:
        if self._id is None:
            made: Any = create_progress_artifact(percent, key=key(self._step.id), description=said)
            self._id: UUID | None = made
        else:
            update_progress_artifact(self._id, percent, said)


def results(step: Step, artifact: Artifact) -> None:
    """The table that a step's result is best read as, if it has one."""
    _sender.send(f"{step.id}'s result", lambda: _results(step, artifact))


def _results(step: Step, artifact: Artifact) -> None:
    role = role_of(step)
    if role not in FILES or not (file := artifact.folder / FILES[role]).exists():
        return
    found = json.loads(file.read_text())
    if role == "data":
        create_markdown_artifact(markdown(found), key=key("data-card"), description="What the data is made of")
        return
    rows, text = {"probe": _probe, "fusion": _fusion, "evaluation": _evaluation}[role](step, found)
    create_table_artifact(rows, key=key(f"{step.id}-table"), description=text)


def _probe(step: Step, found: dict[str, Any]) -> tuple[list[Row], str]:
    """A row a checkpoint."""
    rows = [
        {
            "checkpoint": c["checkpoint"],
            **{f"pass@{k}": score(v) for k, v in c["pass_at"].items()},
            "cut off": _percent(c["truncated"]),
            "chosen": "✓" if c["checkpoint"] == found["selected"] else "",
        }
        for c in found["candidates"]
    ]
    k, problems = found["k"], f"{found['candidates'][0]['problems']} problems of {found['domain']}"
    text = f"{found['selected']} goes on: it solved most of {problems} in {k} tries (pass@{k})."
    return rows, f"{text} In %, with 95 % intervals."


def _fusion(step: Step, found: dict[str, Any]) -> tuple[list[Row], str]:
    """A row a specialist."""
    rows = [
        {"specialist": domain, "checkpoint": found["sources"][domain], "weight": f"{weight:.3f}"}
        for domain, weight in found["weights"].items()
    ]
    if alone := (found.get("fallback") or {}).get("taken"):
        return rows, f"The specialist {alone} alone, since the fused model solved less of the validation problems."
    merged = {"linear": "Linear mean", "pass_at_k": "Mean by Pass@K"}.get(
        found["method"], f"Fusion by {found['method']}"
    )
    return rows, f"{merged} of these checkpoints, by these weights."


def _evaluation(step: Step, found: dict[str, Any]) -> tuple[list[Row], str]:
    """A row a set of problems."""
    rows = []
    for name, metrics in found.items():
        shares = sorted((m for m in metrics if "@" in m), key=lambda m: ORDER.index(m.partition("@")[0]))
        row = {"set": name, "problems": metrics[shares[0]]["problems"], **{m: score(metrics[m]) for m in shares}}
        tokens, cut = metrics["mean_tokens"]["value"], _percent(metrics["truncated"]["value"])
        rows.append({**row, "tokens": f"{tokens:.0f}", "cut off": cut})
    text = (
        f"Scores of {step.id.removeprefix('evaluation-')} in %, with 95 % intervals: solved per try (avg), in any of k "
    )
    return rows, text + "tries (pass), by the majority of k answers (cons)."


def summary(profile: str, text: str) -> None:
    """The markdown summary of a run."""
    made = {"key": key(f"summary-{profile}"), "description": "What the run achieved"}
    _sender.send("the summary", lambda: create_markdown_artifact(text, **made))


def key(text: str) -> str:
    """A name that Prefect accepts as an artifact key: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"
