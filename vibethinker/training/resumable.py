"""The checkpoints of a training under way, kept on disk, so that a killed one goes on where it was.

transformers' Trainer writes and reads the model (or adapters), the optimizer, the scheduler, the random numbers and the
position in the data. Here that becomes safe: it is written aside, sealed with a manifest of digests, and renamed; the
newest one whose digests hold is used, and of it nothing but what the manifest lists. Beside it lies what the Trainer
doesn't know of: the metrics and checkpoints that the step has written so far, and what trainer and callbacks of each
process remember (`Remembers`).

They are saved so seldom that training waits for them a fixed share of the time at most (`SHARE`); digests, syncing and
renaming happen in a thread. Where the disk lacks room, a warning says so and training goes on. What is saved, and when,
is `vibethinker.training.resuming`'s.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from vibethinker import faults
from vibethinker.artifacts import seal, sync_folder
from vibethinker.operations import TrainerCheckpoints
from vibethinker.steps import Emitter, measured
from vibethinker.training import processes
from vibethinker.validation import MANIFEST, check, read_manifest

SHARE = 0.02  # of the time, in which training may wait for it
WRITTEN, METRICS = "written", "metrics.jsonl"
ROOM = 1.1  # times what the last one took


@runtime_checkable
class Remembers(Protocol):
    """A trainer or callback with a state of its own: plain values, as JSON holds them."""

    def remembered(self) -> dict[str, Any]:
        """Its state at the end of an update."""

    def recall(self, state: dict[str, Any]) -> None:
        """Take on a state that `remembered` gave."""


class Resumable:
    """The checkpoints of one training.

    Args:
        folder: where they are kept.
        written: files and folders that the step has written so far, which belong to its output; files are appended to,
            a folder's files stay as they are.
        settings: how often, and how many are kept.
        emit: hears warnings.
        layout: how weights lie on the disk; a checkpoint of another layout can't be read.
        good: of each rollback so far, in order, the last update whose weights were still good; what was saved after
            it and before the rollback is removed.
    """

    def __init__(
        self,
        folder: Path,
        written: Sequence[Path],
        settings: TrainerCheckpoints,
        emit: Emitter,
        layout: str = "whole",
        good: Sequence[int] = (),
    ) -> None:
        self._folder, self._written, self._settings, self._emit = folder, list(written), settings, emit
        self._layout, self._good = layout, list(good)
        self._saved_at, self._cost, self._size = time.monotonic(), 0.0, 0
        self._saved = 0  # the last update that was, or whose state needs no checkpoint
        self._sealing: threading.Thread | None = None
        self._failed: Exception | None = None
        self._digests: dict[tuple[int, int, int], str] = {}
        if processes.rank() == 0:
            shutil.rmtree(self.aside, ignore_errors=True)

    @property
    def aside(self) -> Path:
        """Where the Trainer writes; nothing in it counts."""
        return self._folder.with_name(f"{self._folder.name}-aside")

    def newest(self) -> Path | None:
        """The newest whole checkpoint; damaged ones are put aside, as is what lies in it but isn't of it, each with a
        warning."""
        found = self._newest() if processes.rank() == 0 else None
        [path, *_] = processes.gathered([str(found) if found else ""])
        return Path(path) if path else None

    def restore(self, checkpoint: Path, remembering: dict[str, Remembers]) -> None:
        """Begin with a checkpoint: put back what the step had written, tell its metrics again (the last events of a
        killed process may never have arrived), and let each of `remembering` recall its own."""
        if processes.rank() == 0:
            for target in self._written:
                source = checkpoint / WRITTEN / target.name
                if source.is_dir():
                    shutil.copytree(source, target, copy_function=_linked, dirs_exist_ok=True)
                elif source.is_file():
                    shutil.copyfile(source, target)
                if target.name == METRICS and source.is_file():
                    self._tell(target)
        self._saved = int(checkpoint.name)
        own = checkpoint / _remembered_by(processes.rank())
        # Saved by fewer processes, it has nothing of this one's own.
        states = json.loads((own if own.is_file() else checkpoint / _remembered_by(0)).read_text())
        for name, one in remembering.items():
            if name in states:
                one.recall(states[name])

    def _tell(self, metrics: Path) -> None:
        for update, values in measured(metrics):
            self._emit.metrics(update, values)

    def due(self, update: int) -> bool:
        """Whether to save after this update."""
        settings = self._settings
        since = time.monotonic() - self._saved_at
        mine = since >= settings.seconds and since >= self._cost / SHARE
        kept = settings.every is not None and update % settings.every == 0
        return any(processes.gathered([mine or kept or settings.seconds == 0]))

    def save(
        self, update: int, write: Callable[[], None], remembered: dict[str, Any], needed: int, healthy: int
    ) -> None:
        """Save the state after an update.

        Args:
            write: makes the Trainer write into `aside`; called by each process.
            needed: bytes that it is expected to take, before one was saved.
            healthy: the newest of this update or before it is kept.
        """
        began = time.monotonic()
        self.finish()
        if all(processes.gathered([update == self._saved])):  # the first alone knows whether sealing failed
            return
        if not self._has_room(update, needed):
            self._saved_at = began
            return
        first, failed = processes.rank() == 0, None
        try:
            write()
            faults.point("update.written")
            [made] = self.aside.iterdir()
            (made / _remembered_by(processes.rank())).write_text(json.dumps(remembered, sort_keys=True))
            if first:
                for path in self._written:
                    if path.is_dir():
                        shutil.copytree(path, made / WRITTEN / path.name, copy_function=_linked)
                    elif path.is_file():
                        (made / WRITTEN).mkdir(exist_ok=True)
                        shutil.copyfile(path, made / WRITTEN / path.name)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of a full disk, safetensors and torch raise errors of their own
            failed = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        # Every process writes states of its own; one that couldn't makes the others give up too.
        if reasons := [reason for reason in processes.gathered([failed]) if reason]:
            self._give_up(update, reasons[0])
            return
        self._saved = update
        if first:
            self._sealing = threading.Thread(target=self._seal, args=(made, update, healthy), name="checkpoint")
            self._sealing.start()
        self._saved_at = time.monotonic()
        self._cost = self._saved_at - began

    def finish(self) -> None:
        """Wait until the last one is on the disk."""
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        if self._failed is not None:
            error, self._failed = self._failed, None
            self._emit.warning(f"A checkpoint could not be written ({error}): training goes on without it.")

    def _newest(self) -> Path | None:
        if os.path.lexists(self._folder) and not self._folder.is_dir():
            self._emit.warning(f"{self._folder} is no folder: moved to {self._put_aside(self._folder).name}.")
        for folder in sorted(self._folder.glob("[0-9]*"), reverse=True):
            if not folder.name.isdigit():
                continue
            try:
                reason = self._flaw(folder)
            except OSError as error:
                reason = f"a file can't be read: {error}"
            if reason is None and self._was_rolled_back(folder):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            if reason is None:
                return folder
            self._emit.warning(f"The checkpoint of update {int(folder.name)} can't be used ({reason}).")
            self._put_aside(folder)
        return None

    def _flaw(self, folder: Path) -> str | None:
        """Why a checkpoint can't be used, if so; what is in its folder but not of it is moved away."""
        if reason := check(folder, "digest", lambda: self._emit.progress(0, 1, "reading the saved update")):
            return reason
        manifest, reason = read_manifest(folder)
        if manifest is None:
            return reason
        if manifest["layout"] != self._layout:
            return f"its weights are {manifest['layout']}, and this training's {self._layout}"
        if manifest["update"] != int(folder.name):
            return f"it was saved after update {manifest['update']}"
        # The Trainer loads some files wherever it finds them, and what the step has written is copied by folders.
        known = {folder / MANIFEST, *(folder / name for name in manifest["files"])}
        known |= {parent for path in known for parent in path.parents}
        foreign = [path for path in sorted(folder.rglob("*")) if path not in known and path.parent in known]
        if foreign:
            away = _free(folder.with_name(f"{folder.name}-foreign"))
            for path in foreign:
                target = away / path.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                path.rename(target)
            names = ", ".join(path.relative_to(folder).as_posix() for path in foreign)
            self._emit.warning(
                f"The checkpoint of update {int(folder.name)} had what isn't of it ({names}): moved to {away.name}."
            )
        return None

    def _was_rolled_back(self, folder: Path) -> bool:
        """Whether a whole checkpoint is of updates that a later rollback took back."""
        before = json.loads((folder / MANIFEST).read_text()).get("rollbacks", 0)
        return int(folder.name) > min(self._good[before:], default=int(folder.name))

    def _put_aside(self, path: Path) -> Path:
        return path.rename(_free(path.with_name(f"{path.name}-unusable")))

    def _has_room(self, update: int, needed: int) -> bool:
        """Whether the disk has room, as the first process finds."""
        self._folder.mkdir(parents=True, exist_ok=True)
        needed = int(ROOM * (self._size or needed))
        free = shutil.disk_usage(self._folder).free
        [enough, *_] = processes.gathered([free >= needed])
        if not enough:
            self._emit.warning(
                f"No checkpoint after update {update}: it needs {needed >> 20} MiB and the disk has {free >> 20} MiB "
                "free; make room. Training goes on without."
            )
        return enough

    def _give_up(self, update: int, reason: str) -> None:
        if processes.rank() == 0:
            shutil.rmtree(self.aside, ignore_errors=True)
        self._saved_at = time.monotonic()
        self._emit.warning(f"The checkpoint after update {update} failed ({reason}): training goes on without it.")

    def _seal(self, made: Path, update: int, healthy: int) -> None:
        try:
            record = {"update": update, "layout": self._layout, "rollbacks": len(self._good)}
            seal(made, record, self._digests, at="update")
            states = (path.stat() for path in made.rglob("*") if path.is_file())
            self._size = sum(state.st_size for state in states if state.st_nlink == 1)
            target = self._folder / f"{update:08d}"
            shutil.rmtree(target, ignore_errors=True)
            faults.point("update.rename")
            made.rename(target)
            faults.point("update.renamed")
            sync_folder(self._folder)
            faults.point("update.synced")
            self._forget(healthy)
            faults.point("update.forgotten")
        except Exception as error:  # told by the thread that trains
            shutil.rmtree(self.aside, ignore_errors=True)
            self._failed, self._saved = error, 0

    def _forget(self, healthy: int) -> None:
        """Remove those that are no longer kept."""
        every = self._settings.every
        folders = sorted(p for p in self._folder.iterdir() if p.name.isdigit())
        last_healthy = max((p for p in folders if int(p.name) <= healthy), default=None)
        for folder in folders[: -self._settings.keep]:
            if folder != last_healthy and not (every and int(folder.name) % every == 0):
                shutil.rmtree(folder, ignore_errors=True)


def _remembered_by(rank: int) -> str:
    return f"remembered-{rank}.json" if rank else "remembered.json"


def _free(path: Path) -> Path:
    """This name, or the first one like it that is free."""
    names = (path if number == 1 else path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name))


def _linked(source: str, target: str) -> None:
    """A second name for a file that no longer changes; a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
