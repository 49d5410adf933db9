"""What of a workspace nobody needs any more, and its removal: `vibethinker gc`.

A run is kept if it is alive, among the newest, named, younger than an age, or has measurements that MLflow hasn't got.
Its plan names all that it needs, by step and fingerprint; an output that its configuration names by its folder is kept
as well. Everything else goes: outputs and trainer checkpoints that no kept run refers to, checkpoints of outputs that
are published, what was put into the attic, and staging folders that nobody writes into.

While it decides and takes away, no run can start (`runs.starting`), and each step's lock is held while its things are
taken, so that whoever works on it keeps them. Taking away is a rename into `trash/`, so that a kill never leaves half
an output in its place; the trash is emptied afterwards, by the next one if need be.

Left out: MLflow's and Prefect's own files, the teacher's replies, completions that were measured, and what is read
from a workspace by its path alone (another workspace's configuration, a command under way).
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vibethinker import locks, runs
from vibethinker.artifacts import Store
from vibethinker.errors import ConfigurationError, InfrastructureError, VibeThinkerError
from vibethinker.tracking.journal import undelivered

TRASH = "trash"
OUTPUT = re.compile(r"artifacts/([^/]+)/([0-9a-f]{64})")  # in a path, wherever the workspace lies
Key = tuple[str, str]  # step, fingerprint


@dataclass(frozen=True)
class Keep:
    """Which runs are kept beside those that are alive.

    Attributes:
        newest: how many of the newest.
        named: run ids.
        younger_than: seconds; nothing that is younger goes, whatever it is.
    """

    newest: int
    named: tuple[str, ...] = ()
    younger_than: float | None = None


@dataclass(frozen=True)
class Unneeded:
    """Something that can go: `what` kind it is, where, why and how many bytes it has; `locks` are held to take it."""

    what: str
    path: Path
    reason: str
    size: int
    locks: tuple[Path, ...] = ()


@dataclass
class Found:
    """What is kept (run id → why) and what can go; `busy` is what turned out to be in use."""

    kept: dict[str, str] = field(default_factory=dict)
    unneeded: list[Unneeded] = field(default_factory=list)
    busy: list[Unneeded] = field(default_factory=list)


def find(workspace: Path, keep: Keep) -> Found:
    """What could go now; changes nothing.

    Raises:
        ConfigurationError: a named run isn't there.
        VibeThinkerError: what a kept run needs can't be told.
    """
    return _Search(workspace, keep).result


def collect(workspace: Path, keep: Keep) -> Found:
    """Remove what can go.

    Raises:
        ConfigurationError, VibeThinkerError: see `find`; nothing was removed.
        InfrastructureError: something could not be removed.
    """
    with locks.alone(workspace / "locks" / runs.STARTING):
        found = find(workspace, keep)
        for one in list(found.unneeded):
            if not _take_away(workspace, one):
                found.unneeded.remove(one)
                found.busy.append(one)
    _empty_trash(workspace)
    if left := _entries(workspace / TRASH):
        raise InfrastructureError(f"{left[0]} can't be removed: see whose it is, then collect again.")
    return found


def sweep(workspace: Path) -> None:
    """Remove what dead processes of any run were writing, and what a killed collection left."""
    for folder in _entries(workspace / "staging"):
        lock = Store(workspace).writer(folder)
        if not locks.is_held(lock):
            _take_away(workspace, Unneeded("staging", folder, "", 0, (lock,)))
    _empty_trash(workspace)


def _take_away(workspace: Path, one: Unneeded) -> bool:
    """Whether it could be moved into the trash: nobody holds what it belongs to."""
    trash = workspace / TRASH
    trash.mkdir(exist_ok=True)
    with ExitStack() as held:
        for path in one.locks:
            lock = locks.attempt(path)
            if lock is None:
                return False
            held.enter_context(lock)
        if one.what not in ("lock", "trash") and one.path.exists():
            os.rename(one.path, trash / f"{one.path.name}-{secrets.token_hex(4)}")
        for path in one.locks:
            path.unlink(missing_ok=True)  # nobody else holds it; whoever waits for it looks for its name again
    return True


def _empty_trash(workspace: Path) -> None:
    for path in _entries(workspace / TRASH):
        shutil.rmtree(path, ignore_errors=True)  # another process may be at it; `collect` looks at what is left


def _unfinished_experiments(workspace: Path) -> dict[str, str]:
    """Run → the experiment that it belongs to, and that still reads what it made; see `vibethinker.experiments`."""
    found: dict[str, str] = {}
    for path in (workspace / "experiments").glob("*/result.json"):
        try:
            result = json.loads(path.read_text())
            if result["status"] != "completed":
                found |= {run["run_id"]: result["id"] for run in result["runs"]}
        except (OSError, ValueError, KeyError, TypeError):
            raise VibeThinkerError(
                f"Which runs the experiment {path.parent.name} needs can't be told, as its result.json can't be read: "
                f"run it again, or remove {path.parent} if it is of no use."
            ) from None
    return found


class _Search:
    def __init__(self, workspace: Path, keep: Keep) -> None:
        self.workspace, self.keep, self.store = workspace, keep, Store(workspace)
        self.result = Found()
        self._seen: set[tuple[int, int]] = set()  # files that have several names count once
        self._needed: set[Key] = set()
        self._now = time.time()
        self._experimented = _unfinished_experiments(workspace)
        self._runs()
        self._outputs()
        self._checkpoints()
        for folder in _entries(workspace / "attic"):
            self._add("attic", folder, "it was replaced")
        for folder in _entries(workspace / "staging"):
            lock = self.store.writer(folder)
            if not locks.is_held(lock):
                self._add("staging", folder, "nobody writes into it any more", lock)
        for folder in _entries(workspace / TRASH):
            self._add("trash", folder, "an earlier collection was interrupted")
        self._locks()

    def _runs(self) -> None:
        ordered = runs.folders(self.workspace)
        names = [folder.name for folder in ordered]
        if unknown := [name for name in self.keep.named if name not in names]:
            raise ConfigurationError(
                f"The workspace {self.workspace} has no run {unknown[0]!r}: `ls {self.workspace / 'runs'}` lists them."
            )
        for position, folder in enumerate(ordered):
            why = self._why_kept(folder, position)
            if why:
                self.result.kept[folder.name] = why
                self._needed |= self._needs(folder)
            else:
                self._add("run", folder, f"it isn't among the newest {self.keep.newest}", folder / runs.ALIVE)
        for folder in _entries(self.workspace / "runs"):
            if folder.name in names or not folder.is_dir():
                continue
            if locks.is_held(folder / runs.ALIVE):
                raise _cannot_tell(folder)
            self._add("run", folder, "it was killed before it began", folder / runs.ALIVE)

    def _why_kept(self, folder: Path, position: int) -> str | None:
        if locks.is_held(folder / runs.ALIVE):
            return "alive"
        if not (folder / runs.ALIVE).exists() and runs.read_summary(folder)["status"] == "running":
            return "an older version made it, and it may be alive"
        if position < self.keep.newest:
            return "newest"
        if folder.name in self.keep.named:
            return "named"
        if experiment := self._experimented.get(folder.name):
            return f"the experiment {experiment} isn't finished"
        if self._young(runs.started(folder)):
            return "young"
        return "MLflow hasn't got all its measurements" if undelivered(folder) else None

    def _needs(self, folder: Path) -> set[Key]:
        """The outputs that a kept run's plan and configuration name."""
        for name in ("plan.json", "summary.json"):
            try:
                steps = json.loads((folder / name).read_text())["steps"]
                needed = {(str(step["id"]), str(step["fingerprint"])) for step in steps}
                break
            except (OSError, ValueError, KeyError, TypeError):
                continue
        else:
            raise _cannot_tell(folder)
        for text in _texts(folder):
            for said in (text, str(Path(text.rpartition("=")[2]).expanduser().resolve())):
                needed |= set(OUTPUT.findall(said))
        return needed

    def _outputs(self) -> None:
        for step in _entries(self.workspace / "artifacts"):
            for folder in _entries(step):
                if (step.name, folder.name) not in self._needed:
                    self._add("output", folder, "no kept run refers to it", self._lock(f"{step.name}-{folder.name}"))

    def _checkpoints(self) -> None:
        for step in _entries(self.workspace / "checkpoints"):
            for folder in _entries(step):
                lock = self._lock(f"{step.name}-{folder.name}")
                if (step.name, folder.name) not in self._needed:
                    self._add("checkpoints", folder, "no kept run goes on from them", lock)
                elif self.store.read(step.name, folder.name) and not locks.is_held(lock):
                    self._add("checkpoints", folder, "the step's output is published", lock)

    def _locks(self) -> None:
        stays = {self._lock(f"{step}-{fingerprint}") for step, fingerprint in self._needed}
        goes = {path for one in self.result.unneeded for path in one.locks}
        for path in _entries(self.workspace / "locks"):
            if path.name != runs.STARTING and path not in stays | goes and not locks.is_held(path):
                self.result.unneeded.append(Unneeded("lock", path, "no kept run refers to it", 0, (path,)))

    def _lock(self, name: str) -> Path:
        return self.workspace / "locks" / name

    def _add(self, what: str, path: Path, reason: str, *lock: Path) -> None:
        size, changed = self._measure(path)
        if what in ("run", "trash") or not self._young(changed):
            self.result.unneeded.append(Unneeded(what, path, reason, size, lock))

    def _young(self, at: float) -> bool:
        """Whether something of this time is to stay; the future, of a clock that was set back, counts as young."""
        return self.keep.younger_than is not None and self._now - at < self.keep.younger_than

    def _measure(self, path: Path) -> tuple[int, float]:
        """Bytes of a folder, and when it was last changed."""
        size, changed = 0, max(path.lstat().st_mtime, path.lstat().st_ctime)
        for inner, _, names in os.walk(path):
            for name in names:
                with suppress(FileNotFoundError):
                    state = os.lstat(os.path.join(inner, name))
                    changed = max(changed, state.st_mtime)
                    if (key := (state.st_dev, state.st_ino)) not in self._seen:
                        self._seen.add(key)
                        size += state.st_size
        return size, changed


def _cannot_tell(folder: Path) -> VibeThinkerError:
    return VibeThinkerError(
        f"What the run {folder.name} needs can't be told, since neither its plan.json nor its summary.json can be "
        f"read: wait for its end, or remove {folder} if it is of no use."
    )


def _texts(folder: Path) -> Iterator[str]:
    """Every text in a run's configuration, and every word of the command that resumes it."""
    try:
        yield from _strings(yaml.safe_load((folder / "config.yaml").read_text()))
        yield from shlex.split(json.loads((folder / "state.json").read_text())["resume"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return  # such a run can't be resumed


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings(list(value.values()))
    elif isinstance(value, Iterable):
        for one in value:
            yield from _strings(one)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
