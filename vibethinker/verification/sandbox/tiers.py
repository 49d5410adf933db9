"""The tiers as the code that starts processes sees them, and the interpreter as each must reach it.

As root, programs get another user, and with it can't reach an interpreter below a folder like /root. Then the worker
binds the interpreter's folder where that user can, in a mount namespace of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vibethinker.verification import linux
from vibethinker.verification.folders import open_to_all
from vibethinker.verification.sandbox import bubblewrap, landlock, seccomp
from vibethinker.verification.schema import CodeLimits

# As root, each worker gets one of these, which no distribution gives to anyone: so that neither the limit on a user's
# processes nor signals reach from one worker's programs to another's.
USERS = range(65520, 65534)
_OVERLAID = ("/mnt", "/media", "/srv", "/opt", "/home")  # one of these is hidden, to the worker, by its own memory
_INODES = 1 << 15  # files and folders in it
_ROOM = 16 << 20  # bytes in it beside a program's own
_LAYOUT = "import os, sys; print(os.path.realpath(sys.executable), sys.base_prefix, sys.base_exec_prefix, sep='\\n')"


class Unavailable(Exception):
    """A tier can't be had here; the message says why."""


class Interpreter(NamedTuple):
    """What runs programs: its real path, its folders, and where programs' user reaches these (elsewhere if bound)."""

    path: str
    folders: tuple[str, ...]
    reached: dict[str, str]

    @classmethod
    def find(cls, python: str | None, root: str, user: int | None) -> Interpreter:
        """`python`, or the one that runs this, with its folders made reachable to `user`, below `root` if need be.

        Raises:
            Unavailable: it doesn't start, or can't be reached.
        """
        try:
            command = [python or sys.executable, "-I", "-S", "-c", _LAYOUT]
            found = subprocess.run(command, capture_output=True, text=True, check=True, env={})
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"{python or sys.executable} doesn't start ({error})") from None
        path, *prefixes = found.stdout.splitlines()
        places = tuple(dict.fromkeys(os.path.realpath(prefix) for prefix in prefixes))
        if places == ("/usr",):  # its libraries are the system's, which every tier has
            places = ()
        reached = {place: place for place in places}
        if user is not None and not all(map(open_to_all, (path, *places))):
            try:
                reached = _bound(places, root)
            except OSError as error:
                raise Unavailable(
                    f"user {user}, as whom programs run, can't reach {path}, nor can it be bound elsewhere ({error}): "
                    "name an interpreter by sandbox.python that every user can run"
                ) from None
        return cls(path, places, reached)

    @property
    def reachable(self) -> str:
        """The path by which the programs' user reaches it."""
        for folder, where in self.reached.items():
            if Path(self.path).is_relative_to(folder):
                return str(where / Path(self.path).relative_to(folder))
        return self.path


def own_memory(size: int, needed: Sequence[str]) -> str | None:
    """A folder in memory that this process and what it starts alone see, of bounded size; None where it isn't
    allowed."""
    needed = (*needed, sys.executable, sys.base_prefix, *filter(None, [str(bubblewrap.find() or "")]))
    paths = [Path(os.path.realpath(path)) for path in needed]
    over = next((o for o in _OVERLAID if os.path.isdir(o) and not any(p.is_relative_to(o) for p in paths)), None)
    if over is None:
        return None
    try:
        linux.leave_mounts()
        linux.mount_memory(over, size + _ROOM, _INODES)
    except OSError:
        return None
    return over


def _bound(folders: tuple[str, ...], root: str) -> dict[str, str]:
    """Bind folders below `root`, seen by this process and what it starts alone: whoever removes `root` must not find
    them there."""
    linux.leave_mounts()
    reached = {}
    for number, folder in enumerate(folders):
        reached[folder] = os.path.join(root, f"python-{number}")
        os.mkdir(reached[folder])
        linux.bind(folder, reached[folder])
    return reached


def reachable_bwrap(root: str, user: int | None) -> str | None:
    """Where `user` can run bubblewrap from: where it is, or a copy below `root`."""
    found = bubblewrap.find()
    if found is None:
        return None
    if user is None or open_to_all(str(found)):
        return str(found)
    # With its library, which lies two folders up.
    for part in (found.parents[1], found.parents[2] / f"{found.parents[1].name}.libs"):
        if part.is_dir():
            copied = shutil.copytree(part, os.path.join(root, part.name))
            for path in (Path(copied), *Path(copied).rglob("*")):
                path.chmod(0o755)
                os.chown(path, user, user)
    return os.path.join(root, *found.parts[-3:])


class Tier:
    """How programs are confined in one tier. The base class is the tier "rlimits", which does nothing more."""

    name = "rlimits"
    counts_alone = False  # whether RLIMIT_NPROC counts a program's processes only
    in_memory = False  # whether the private folder is the tier's own

    def __init__(self, limits: CodeLimits, interpreter: Interpreter, bwrap: str | None, root: str) -> None:
        self.limits, self.interpreter, self.bwrap, self.root = limits, interpreter, bwrap, root

    @contextmanager
    def command(self) -> Iterator[tuple[list[str], tuple[int, ...]]]:
        """The command that starts the interpreter, and the descriptors that it needs."""
        yield [self.interpreter.reachable], ()

    @property
    def script(self) -> str:
        """Where programs find child.pyc."""
        return os.path.join(self.root, "child.pyc")

    def before_exec(self, folder: str) -> Callable[[], None] | None:
        """What runs between fork and exec; without it, subprocess needs no slow kind of fork."""
        return lambda: self._confine(folder)

    def _confine(self, folder: str) -> None:
        linux.die_with_parent(signal.SIGKILL)


class _Landlock(Tier):
    name = "landlock"

    def __init__(self, limits: CodeLimits, interpreter: Interpreter, bwrap: str | None, root: str) -> None:
        super().__init__(limits, interpreter, bwrap, root)
        if (version := linux.landlock_version()) < landlock.OLDEST:
            raise Unavailable(f"this kernel's Landlock is version {version}, {landlock.OLDEST} is needed")
        self.filter = _filter(signals=landlock.confines_signals(), metadata=False)
        self.readable = [*interpreter.reached.values(), interpreter.reachable, self.script, *bubblewrap.libraries()]

    def _confine(self, folder: str) -> None:
        super()._confine(folder)
        landlock.restrict(self.readable, folder)
        seccomp.install(self.filter)


class _Bubblewrap(Tier):
    name = "bubblewrap"
    counts_alone = True
    in_memory = True
    script = "/child.pyc"

    def __init__(self, limits: CodeLimits, interpreter: Interpreter, bwrap: str | None, root: str) -> None:
        super().__init__(limits, interpreter, bwrap, root)
        if bwrap is None:
            raise Unavailable("there is no bwrap")
        self.filter = _filter(signals=True, metadata=True)
        self.mounts = dict(interpreter.reached) | {self.script: os.path.join(root, "child.pyc")}
        if not interpreter.folders:
            self.mounts[interpreter.path] = interpreter.path

    def before_exec(self, folder: str) -> None:
        return None  # bwrap does it all

    @contextmanager
    def command(self) -> Iterator[tuple[list[str], tuple[int, ...]]]:
        # bwrap reads the filter to its end, so each start needs a pipe of its own; a filter fits into its buffer.
        reading, writing = os.pipe()
        try:
            os.write(writing, self.filter)
        finally:
            os.close(writing)
        try:
            confined = bubblewrap.arguments(str(self.bwrap), self.mounts, self.limits.disk_mib << 20, reading)
            yield [*confined, self.interpreter.path], (reading,)
        finally:
            os.close(reading)


def _filter(signals: bool, metadata: bool) -> bytes:
    try:
        return seccomp.program(signals, metadata)
    except OSError as error:
        raise Unavailable(str(error)) from None


_CLASSES: dict[str, type[Tier]] = {tier.name: tier for tier in (_Bubblewrap, _Landlock, Tier)}


def make_tier(name: str, limits: CodeLimits, interpreter: Interpreter, bwrap: str | None, root: str) -> Tier:
    """A tier by its name.

    Raises:
        Unavailable: it lacks something here.
    """
    return _CLASSES[name](limits, interpreter, bwrap, root)
