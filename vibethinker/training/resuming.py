"""The state of a training under way, kept on disk, so that a killed one goes on where it was.

transformers' Trainer writes and reads the model (or adapters), the optimizer, the scheduler, the random numbers and the
position in the data. Here that becomes safe: it is written aside, sealed with a manifest of digests, and renamed; the
newest one whose digests hold is used, and of it nothing but what the manifest lists. Beside it lies what the Trainer
doesn't know of: the metrics and checkpoints that the step has written so far, and what trainer and callbacks of each
process remember (`Remembers`).

An update is the unit. At SIGTERM in the middle of one, rollouts and gradients are dropped, and what is saved is the end
of the last: its weights haven't moved since, and the random numbers and counts are those noted when the update began.

It saves so seldom that training waits for it a fixed share of the time at most (`SHARE`); digests, syncing and renaming
happen in a thread. Where the disk lacks room, a warning says so and training goes on.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy
import torch
from transformers import Trainer, TrainerCallback

from vibethinker import faults, preemption
from vibethinker.artifacts import seal, sync_folder
from vibethinker.errors import PreemptedError
from vibethinker.settings import TrainerCheckpoints
from vibethinker.steps import Emitter
from vibethinker.training import processes
from vibethinker.training.phases import Phases
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
    """

    def __init__(
        self, folder: Path, written: Sequence[Path], settings: TrainerCheckpoints, emit: Emitter, layout: str = "whole"
    ) -> None:
        self._folder, self._written, self._settings, self._emit = folder, list(written), settings, emit
        self._layout = layout
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
        for line in metrics.read_text().splitlines():
            row = json.loads(line)
            self._emit.metrics(row.pop("step"), {k: v for k, v in row.items() if not isinstance(v, list)})

    def due(self, update: int) -> bool:
        """Whether to save after this update."""
        settings = self._settings
        since = time.monotonic() - self._saved_at
        mine = since >= settings.seconds and since >= self._cost / SHARE
        kept = settings.every is not None and update % settings.every == 0
        return any(processes.gathered([mine or kept or settings.seconds == 0]))

    def save(self, update: int, write: Callable[[], None], remembered: dict[str, Any], needed: int) -> None:
        """Save the state after an update.

        Args:
            write: makes the Trainer write into `aside`; called by each process.
            needed: bytes that it is expected to take, before one was saved.
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
            self._sealing = threading.Thread(target=self._seal, args=(made, update), name="checkpoint")
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
            if reason is None:
                return folder
            self._emit.warning(f"The checkpoint of update {int(folder.name)} can't be used ({reason}).")
            self._put_aside(folder)
        return None

    def _flaw(self, folder: Path) -> str | None:
        """Why a checkpoint can't be used, if so; what is in its folder but not of it is moved away."""
        if reason := check(folder, "digest"):
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

    def _seal(self, made: Path, update: int) -> None:
        try:
            seal(made, {"update": update, "layout": self._layout}, self._digests, at="update")
            states = (path.stat() for path in made.rglob("*") if path.is_file())
            self._size = sum(state.st_size for state in states if state.st_nlink == 1)
            target = self._folder / f"{update:08d}"
            shutil.rmtree(target, ignore_errors=True)
            faults.point("update.rename")
            made.rename(target)
            faults.point("update.renamed")
            sync_folder(self._folder)
            faults.point("update.synced")
            self._forget()
            faults.point("update.forgotten")
        except Exception as error:  # told by the thread that trains
            shutil.rmtree(self.aside, ignore_errors=True)
            self._failed, self._saved = error, 0

    def _forget(self) -> None:
        """Remove those that are no longer kept."""
        every = self._settings.every
        folders = sorted(p for p in self._folder.iterdir() if p.name.isdigit())
        for folder in folders[: -self._settings.keep]:
            if not (every and int(folder.name) % every == 0):
                shutil.rmtree(folder, ignore_errors=True)


class Boundary(TrainerCallback):
    """Notes the state in which each update begins, and has the Trainer save after an update where it is due."""

    def __init__(self, resumable: Resumable, save_last: bool) -> None:
        self._resumable, self._save_last = resumable, save_last
        self.trainer: Any = None
        self.stopping = False
        self._noted: tuple[Any, dict[str, Any], int] | None = None

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        noted = copy.deepcopy(remembered(self.trainer))
        self._noted = _random_state(), noted, state.num_input_tokens_seen  # which TRL raises in the middle of one

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.stopping = any(processes.gathered([preemption.asked()]))
        due = self._save_last if state.global_step >= args.max_steps else self._resumable.due(state.global_step)
        control.should_save = self.stopping or due
        control.should_training_stop = control.should_training_stop or self.stopping

    def save_last(self) -> None:
        """Save the end of the last update, from the middle of the next."""
        if self._noted is None:
            return
        random_state, states, self.trainer.state.num_input_tokens_seen = self._noted
        _set_random_state(random_state)
        self.trainer.keep_state(states)


class Resuming(Trainer):
    """A Trainer that keeps its state by a `Resumable`, given to `train_resumably`; `phases` books what that takes."""

    resumable: Resumable | None = None
    phases: Phases | None = None

    def interruptible(self) -> AbstractContextManager[None]:
        """Where a request to stop loses no more than an update under way. Of several processes each would leave alone,
        while the others wait for it: they leave together, after the update."""
        return preemption.let_through() if processes.count() == 1 else nullcontext()

    def keep_state(self, states: dict[str, Any]) -> None:
        """Save the state after the last update; `states` is what trainer and callbacks remember of it."""
        assert self.resumable is not None
        trained = sum(p.numel() * p.element_size() for p in self.model.parameters() if p.requires_grad)
        with self.phases("checkpointing") if self.phases else nullcontext():
            self.resumable.save(
                self.state.global_step,
                lambda: Trainer._save_checkpoint(self, self.model, None),
                states,
                3 * trained,  # beside the weights, two moments
            )

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.keep_state(remembered(self))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        # Where there is another adapter, as TRL's for the KL term, transformers leaves out the one in training.
        adapted = self.accelerator.unwrap_model(model or self.model)
        if len(getattr(adapted, "peft_config", ())) > 1 and not self.is_fsdp_enabled:
            adapted.load_adapter(resume_from_checkpoint, "default", is_trainable=True)
            adapted.set_adapter("default")

    def _get_output_dir(self, trial: Any = None) -> str:
        return str(self.resumable.aside) if self.resumable else super()._get_output_dir(trial)


def train_resumably(trainer: Resuming, resumable: Resumable, *, save_last: bool = False) -> None:
    """Train, from the newest checkpoint if there is one.

    Args:
        save_last: save after the last update too, since the step goes on for long.

    Raises:
        PreemptedError: the process was asked to stop; the end of the last update is saved.
    """
    boundary = Boundary(resumable, save_last)
    trainer.resumable, boundary.trainer = resumable, trainer
    trainer.add_callback(boundary)
    start = resumable.newest()
    if start is not None:
        resumable.restore(start, remembering(trainer))
    with preemption.held():
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
            if not boundary.stopping and any(processes.gathered([preemption.asked()])):  # after the last update's end
                boundary.stopping = True
                trainer.keep_state(remembered(trainer))
        except PreemptedError:
            boundary.save_last()
            raise
        finally:
            resumable.finish()
    processes.barrier()  # the first process seals, and ends with any other that leaves
    if boundary.stopping:
        raise PreemptedError(preemption.ASKED)
    preemption.check()


def remembering(trainer: Trainer) -> dict[str, Remembers]:
    """The trainer and those of its callbacks that have a state of their own, by their classes' names."""
    found = [one for one in (trainer, *trainer.callback_handler.callbacks) if isinstance(one, Remembers)]
    return {type(one).__name__: one for one in found}


def remembered(trainer: Trainer) -> dict[str, Any]:
    """What each of them remembers now."""
    return {name: one.remembered() for name, one in remembering(trainer).items()}


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


def _random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    return random.getstate(), numpy.random.get_state(), torch.get_rng_state(), cuda


def _set_random_state(state: tuple[Any, ...]) -> None:
    random.setstate(state[0])
    numpy.random.set_state(state[1])
    torch.set_rng_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state_all(state[3])
