"""What a person sees of a run: a bar a running step in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

from vibethinker.plan import Plan, Step
from vibethinker.worker.host import Event

LINE_SECONDS = 15.0  # at most one plain line of progress a step in this time


class Lines:
    """One line when a step starts, ends or warns, and now and then one of progress; `run` tells whose it is, where
    there are several."""

    def __init__(self, plan: Plan, out: TextIO | None = None, run: str = "") -> None:
        self._out, self._lock = out or sys.stderr, threading.Lock()
        self._run = f"{run} " if run else ""
        self._numbers = {s.id: i for i, s in enumerate(plan.steps, start=1)}
        self._told: dict[str, float] = {}

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *exc: object) -> None:
        self._out.flush()

    def state(self, step: Step, state: str, detail: str = "") -> None:
        """See `tasks.session.Display`."""
        self._told[step.id] = time.monotonic()
        self._say(step, f"{state}{': ' if detail else ''}{detail}")

    def event(self, step: Step, event: Event) -> None:
        """See `tasks.session.Display`."""
        if event["event"] == "warning":
            self._say(step, f"warning: {event['text']}")
        elif event["event"] == "waiting":
            self._say(step, event["text"])
        elif event["event"] == "progress":
            now = time.monotonic()
            if now - self._told.get(step.id, 0.0) >= LINE_SECONDS:
                self._told[step.id] = now
                self._say(step, f"{event['done']}/{event['total']} {event['text']}".rstrip())

    def _say(self, step: Step, text: str) -> None:
        with self._lock:
            number = f"{self._numbers[step.id]:>2}/{len(self._numbers)}"
            # At once with its end: other runs of an experiment write to the same place.
            self._out.write(f"{time.strftime('%H:%M:%S')} {self._run}[{number}] {step.id}: {text}\n")
            self._out.flush()


class Bars:
    """A bar for the run and one for each running step; ended steps scroll away above as lines."""

    def __init__(self, plan: Plan) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[text]}"),
            console=self._console,
        )
        self._all = self._progress.add_task("all steps", total=len(plan.steps), text="")
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def state(self, step: Step, state: str, detail: str = "") -> None:
        """See `tasks.session.Display`."""
        if state == "running":
            if step.id not in self._bars:
                self._bars[step.id] = self._progress.add_task(step.id, total=None, text=detail)
            return
        if step.id in self._bars:
            self._progress.remove_task(self._bars.pop(step.id))
        self._progress.advance(self._all)
        style = {"failed": "bold red", "cached": "dim"}.get(state, "green")
        self._console.print(f"[{style}]{state:>7}[/]  {step.id}  [dim]{detail}[/]", highlight=False)

    def event(self, step: Step, event: Event) -> None:
        """See `tasks.session.Display`."""
        if event["event"] == "progress" and step.id in self._bars:
            self._progress.update(
                self._bars[step.id], completed=event["done"], total=event["total"], text=event["text"]
            )
        elif event["event"] == "warning":
            self._console.print(f"[yellow]warning[/]  {step.id}: {event['text']}", highlight=False)
        elif event["event"] == "waiting":
            self._console.print(f"[dim]{step.id} {event['text']}[/]", highlight=False)


def display(plan: Plan) -> Lines | Bars:
    """Bars if a person looks at a terminal, else lines."""
    return Bars(plan) if sys.stderr.isatty() else Lines(plan)
