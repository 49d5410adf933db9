"""The spool between a run and MLflow: an append-only file of operations, and how far they have been
delivered.

`tracking.jsonl` in the run's folder holds one operation a line, in the order they happened. Appending costs
microseconds and needs no store, so a store that is down, slow or still migrating costs a training step
nothing. A position is a byte offset into that file; `tracking.json` beside it remembers the position up to
which one store has everything. A line torn by a crash is closed by the next writer and skipped by the reader.

What a full disk doesn't take is kept in memory and written with the next operation.

Left out: fsync. A power cut may lose the last operations, never a step's published output.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vibethinker import locks

JOURNAL, STATE = "tracking.jsonl", "tracking.json"
WINDOW = 4 << 20  # bytes read at once


class Journal:
    """The operations of one run; `append` may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._left = b""  # what couldn't be written yet
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)
        if self._file.tell() and self.path.read_bytes()[-1:] != b"\n":
            self._file.write(b"\n")

    def append(self, operation: dict[str, Any]) -> None:
        """Add one operation, unless the journal is closed; a float that is NaN or infinite is kept as such."""
        line = json.dumps(operation, sort_keys=True).encode() + b"\n"
        with self._lock:
            if not self._file.closed:
                self._left += line
                self._write()

    def flush(self) -> bool:
        """Write what is left; False where the disk still doesn't take it."""
        with self._lock:
            self._write()
            return not self._left

    def close(self) -> None:
        """Close the file; what is appended afterwards is dropped, by a step that had to be left alone."""
        with self._lock:
            self._file.close()

    def _write(self) -> None:
        with suppress(OSError):
            while self._left:  # a write to a disk that fills up may take a part
                self._left = self._left[self._file.write(self._left) :]


def read(folder: Path, position: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Complete operations after `position`, about `WINDOW` bytes of them, each with the position behind
    it."""
    path = folder / JOURNAL
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(position)
        for line in file.readlines(WINDOW):
            if not line.endswith(b"\n"):
                return
            position += len(line)
            try:
                operation = json.loads(line)
            except ValueError:
                operation = {"op": "torn"}
            yield position, operation


def read_all(folder: Path) -> Iterator[dict[str, Any]]:
    """Every complete operation of the journal."""
    position = 0
    while window := list(read(folder, position)):
        yield from (operation for _, operation in window)
        position = window[-1][0]


class Progress:
    """How far one store has been given the journal of one run; another store starts at the beginning."""

    def __init__(self, folder: Path, uri: str) -> None:
        self._path = folder / STATE
        # An address may carry a password, so only its digest is written down.
        self._store = hashlib.sha256(uri.encode()).hexdigest()[:16]

    def begin(self) -> None:
        """Note the store that the journal is meant for, before anything has arrived."""
        if self._read() is None:
            self.record("", 0)

    def pending(self) -> bool:
        """Whether the journal was meant for this store and has operations that never arrived."""
        state, journal = self._read(), self._path.with_name(JOURNAL)
        return state is not None and journal.exists() and state["delivered"] < journal.stat().st_size

    def position(self, run: str) -> int:
        """The position delivered to the MLflow run `run`; 0 where it isn't the run that was being delivered
        to."""
        state = self._read()
        return state["delivered"] if state is not None and state["run"] == run else 0

    def record(self, run: str, position: int) -> None:
        """Remember that everything before `position` has arrived."""
        state = {"delivered": position, "run": run, "store": self._store}
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, sort_keys=True) + "\n")
        temporary.replace(self._path)

    def _read(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return None
        return state if state.get("store") == self._store else None


def undelivered(folder: Path) -> bool:
    """Whether the journal of this run has operations that never arrived at the store that it was last meant for."""
    try:
        return json.loads((folder / STATE).read_text())["delivered"] < (folder / JOURNAL).stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def delivering(folder: Path) -> Iterator[None]:
    """Hold the right to deliver this journal, so that two processes never send the same operations at
    once."""
    with locks.alone(folder / "tracking.lock"):
        yield
