"""Starting and ending the processes of one program at a time, in a tier that has proved itself."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vibethinker.verification import child, descendants, folders, linux
from vibethinker.verification.sandbox.tiers import (
    USERS,
    Interpreter,
    Tier,
    Unavailable,
    make_tier,
    own_memory,
    reachable_bwrap,
)
from vibethinker.verification.schema import CodeLimits

_OPTIONS = ("-P", "-s", "-S", "-X", "utf8")  # of the interpreter
_SWEEPS = 1000
_SLACK = 4  # programs' worth of processes that a limit leaves where it counts all of a user's


class Sandbox:
    """Starts programs in the tier that `use` chose last; its owner must have no other children.

    As root, its process becomes another user for good. `root` is an empty folder, which `close` removes.

    Raises:
        Unavailable: the interpreter can't be used.
    """

    tier: Tier

    def __init__(self, limits: CodeLimits, root: str) -> None:
        self.limits, self.root = limits, root
        self.errors = subprocess.DEVNULL  # where what programs complain of goes
        self._running: list[subprocess.Popen[bytes]] = []
        user = USERS[os.getpid() % len(USERS)] if os.geteuid() == 0 else None
        if user is not None and (memory := own_memory(limits.disk_mib << 20, (root, child.__file__))):
            self.root = memory
        self._interpreter = Interpreter.find(limits.python, self.root, user)
        _compile(self._interpreter.path, os.path.join(self.root, "child.pyc"))
        self._bwrap = reachable_bwrap(self.root, user)
        if user is not None:
            try:
                for folder in {root, self.root}:
                    os.chown(folder, user, user)
                os.setgroups([])
                os.setgid(user)
                os.setuid(user)
            except OSError as error:
                raise Unavailable(
                    f"programs can't be given the user {user} here ({error.strerror}): run as another user than root, "
                    "or with the capabilities CHOWN, SETUID and SETGID"
                ) from None
        linux.gain_nothing()
        linux.adopt_orphans()
        linux.hide_memory()
        self._given = root

    def use(self, tier: str) -> None:
        """Start programs in this tier from now on. Whether it holds is for the caller to try.

        Raises:
            Unavailable: it lacks something here.
        """
        limits = self.limits
        self.tier = make_tier(tier, limits, self._interpreter, self._bwrap, self.root)
        self._limits = {
            resource.RLIMIT_CPU: math.ceil(limits.seconds) + 1,
            resource.RLIMIT_AS: limits.memory_mib << 20,
            resource.RLIMIT_FSIZE: limits.output_bytes,
            resource.RLIMIT_NOFILE: limits.files,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NPROC: limits.processes,
        }

    def start(self, role: str, folder: str, *descriptors: int, size: int = 0) -> subprocess.Popen[bytes]:
        """Run child.py in this role with these sockets; files of `size` bytes must be possible."""
        values = self._limits | {resource.RLIMIT_FSIZE: max(size, self.limits.output_bytes)}
        if not self.tier.counts_alone:
            others = descendants.threads_of(os.getuid())
            values[resource.RLIMIT_NPROC] = others + _SLACK * self.limits.processes
        limits = ",".join(f"{kind}={value}" for kind, value in values.items())
        with self.tier.command() as (command, needed):
            process = subprocess.Popen(
                [*command, *_OPTIONS, self.tier.script, role, limits, *map(str, descriptors)],
                env={"PYTHONHASHSEED": "0"},
                cwd=folder or "/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                start_new_session=True,
                pass_fds=(*descriptors, *needed),
                preexec_fn=self.tier.before_exec(folder),
            )
        self._running.append(process)
        return process

    @contextmanager
    def folder(self) -> Iterator[str]:
        """A private folder; at the end every process is dead and the folder gone."""
        if self.tier.in_memory:
            try:
                yield ""
            finally:
                self._kill_all()
            return
        path = tempfile.mkdtemp(dir=self.root)
        try:
            yield path
        finally:
            self._kill_all()
            folders.remove(path)

    def _kill_all(self) -> None:
        for process in self._running:
            # Before wait: until it is reaped, its number can't belong to another group.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._running.clear()
        for _ in range(_SWEEPS):
            strays = descendants.children()
            if not strays:
                return
            for pid in strays:
                os.kill(pid, signal.SIGKILL)
            for pid in strays:
                os.waitpid(pid, 0)
        raise RuntimeError("a program forks faster than its processes can be killed")

    def close(self) -> None:
        """Kill what runs and remove every file."""
        self._kill_all()
        folders.remove(self._given)


def _compile(python: str, target: str) -> None:
    """Compile child.py by the interpreter that is to run it, which saves a fifth of each start."""
    source = Path(child.__file__)
    order = f"import py_compile; py_compile.compile({str(source)!r}, {target!r}, doraise=True)"
    try:
        subprocess.run([python, "-I", "-S", "-c", order], check=True, env={}, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{python} can't compile the child's script ({error})") from None
    os.chmod(target, 0o644)
