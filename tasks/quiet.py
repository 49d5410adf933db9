"""Which messages come too soon after one of their kind, and what is owed of those that were left out for that.

A kind is that of one deployment or profile. A file of the workspace, under a lock, has for each when one was told last,
how many were left out since then, the titles of the first of them, and whether a process was started to tell them;
whoever takes those is the one to tell them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vibethinker import locks
from vibethinker.artifacts import write_json

FILE = "notifications.json"
TITLES = 20


@dataclass(frozen=True)
class Owed:
    """Messages of one kind that were left out: how many, since when (Unix), and the titles of the first."""

    about: str
    kind: str
    number: int
    since: float
    titles: tuple[str, ...]


def ask(workspace: Path, about: str, kind: str, title: str, seconds: float) -> tuple[bool, Owed | None, float | None]:
    """Whether a message may be told now, since the last one of its kind is `seconds` ago; else it is left out.

    Returns:
        whether; what is owed of this kind, to be told with it; and where it is left out and no process waits to tell
        it, the seconds until it may be told: the caller starts one.
    """
    with _kept(workspace) as known:
        key, now = f"{about} {kind}", time.time()
        entry = known.get(key, _new(0.0))
        if _is_over(entry, seconds):
            known[key] = _new(now)
            return True, _owed(key, entry), None
        entry["number"] += 1
        entry["titles"] = [*entry["titles"], f"{time.strftime('%H:%M:%S')} {title}"][:TITLES]
        return False, None, _wait(entry, seconds)


def is_owed(workspace: Path, seconds: float) -> bool:
    """Whether there is something to take."""
    return any(entry["number"] and _is_over(entry, seconds) for entry in _read(workspace).values())


def take(workspace: Path, seconds: float) -> list[Owed]:
    """What is owed of all kinds of which nothing was told for `seconds`; the caller tells it, which counts as told."""
    if not (workspace / FILE).exists():
        return []
    with _kept(workspace) as known:
        now = time.time()
        taken = {key: owed for key, entry in known.items() if (owed := _owed(key, entry)) and _is_over(entry, seconds)}
        known.update({key: _new(now) for key in taken})
    return list(taken.values())


def put_back(workspace: Path, owed: Owed, seconds: float | None = None) -> float | None:
    """Owe again what could not be told.

    Returns:
        with `seconds`, what `ask` returns of a message that is left out: until it may be told, where no process waits.
    """
    with _kept(workspace) as known:
        entry = known.setdefault(f"{owed.about} {owed.kind}", _new(owed.since))
        entry["number"] += owed.number
        entry["titles"] = [*owed.titles, *entry["titles"]][:TITLES]
        entry["since"] = min(entry["since"], owed.since)
        return None if seconds is None else _wait(entry, seconds)


@contextmanager
def _kept(workspace: Path) -> Iterator[dict[str, Any]]:
    """What the file has, kind → its entry, to be changed."""
    with locks.held(workspace / "locks" / "notifications"):
        known = _read(workspace)
        yield known
        write_json(workspace / FILE, known)


def _read(workspace: Path) -> dict[str, Any]:
    try:
        known = json.loads((workspace / FILE).read_text())
    except (OSError, ValueError):
        return {}
    return {key: _new(entry.get("at", 0.0)) | entry for key, entry in known.items()}  # an older version kept less


def _is_over(entry: dict[str, Any], seconds: float) -> bool:
    """Whether enough time has passed since one was told; a clock that was set back is no reason to be silent."""
    return not 0 <= time.time() - entry["at"] < seconds


def _new(at: float) -> dict[str, Any]:
    return {"at": at, "since": at, "number": 0, "titles": [], "waited": False}


def _wait(entry: dict[str, Any], seconds: float) -> float | None:
    """The seconds until it may be told, where no process was started to wait for that: from now on one is."""
    if entry["waited"]:
        return None
    entry["waited"] = True
    return max(0.0, entry["at"] + seconds - time.time())


def _owed(key: str, entry: dict[str, Any]) -> Owed | None:
    about, _, kind = key.rpartition(" ")
    return Owed(about, kind, entry["number"], entry["since"], tuple(entry["titles"])) if entry["number"] else None
