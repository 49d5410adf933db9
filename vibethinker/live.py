"""What the running steps of a run are at, in its folder, for whoever watches from another process.

`runs/<run id>/live.json` is replaced at most once in `SECONDS`, without fsync: it is for the eye, and what counts is in
the summary. A disk that doesn't take it stops nothing.

Left out: steps on a Ray cluster, whose progress stays on their machines (Prefect shows it).
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

LIVE = "live.json"
SECONDS = 0.5


class Live:
    """Notes of one run's process; its methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LIVE
        self._steps: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._written = 0.0
        self._closed = False

    def began(self, step: str) -> None:
        """A step has begun, or begins again."""
        self._note(step, {"began": time.time()}, fresh=True)

    def progress(self, step: str, done: float, total: float, text: str) -> None:
        """How far it is; `first` keeps where it began, so that a resumed one's speed can be told."""
        with self._lock:
            first = self._steps.get(step, {}).get("first")
        # Of another total it is another count, as of a step's phases.
        first = first if first and first[2] == total else [done, time.time(), total]
        self._note(step, {"done": done, "total": total, "text": text, "first": first})

    def metrics(self, step: str, values: Mapping[str, Any]) -> None:
        """What it has measured last."""
        with self._lock:
            known = self._steps.get(step, {}).get("metrics", {})
        self._note(step, {"metrics": {**known, **{k: v for k, v in values.items() if isinstance(v, (int, float))}}})

    def ended(self, step: str) -> None:
        """It runs no more; what it has measured last stays."""
        with self._lock:
            metrics = self._steps.get(step, {}).get("metrics")
        if metrics:
            self._note(step, {"metrics": metrics}, fresh=True)

    def close(self) -> None:
        """The run has ended."""
        with self._lock:
            self._closed = True
            if self._timer:
                self._timer.cancel()
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _note(self, step: str, values: Mapping[str, Any], fresh: bool = False) -> None:
        with self._lock:
            self._steps[step] = {**({} if fresh else self._steps.get(step, {})), **values}
            if self._timer is not None:
                return
            self._timer = threading.Timer(max(0.0, self._written + SECONDS - time.monotonic()), self._write)
            self._timer.daemon = True
            self._timer.start()

    def _write(self) -> None:
        with self._lock:
            self._timer, self._written = None, time.monotonic()
            if self._closed:
                return
            aside = self._path.with_name(f".{LIVE}.{os.getpid()}")
            with suppress(OSError):
                aside.write_text(json.dumps(self._steps))
                aside.replace(self._path)


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Step → what it is at: began, done, total, text, first, metrics; nothing where nobody has noted anything."""
    try:
        found = json.loads((folder / LIVE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
