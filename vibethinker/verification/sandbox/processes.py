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

from vibethinker.verification import child, folders, linux
from vibethinker.verification.sandbox.tiers import NOBODY, Interpreter, Tier, Unavailable, make_tier, reachable_bwrap
from vibethinker.verification.schema import CodeLimits

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
        user = NOBODY if os.geteuid() == 0 else None
        self._interpreter = Interpreter.find(limits.python, user)
        _compile(self._interpreter.path, os.path.join(root, "child.pyc"))
        self._bwrap = reachable_bwrap(root, user)
        if user is not None:
            os.chown(root, user, user)
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        linux.gain_nothing()
        linux.adopt_orphans()
        linux.hide_memory()

    def use(self, tier: str) -> None:
        """Start programs in this tier from now on. Whether it holds is for the caller to try.

        Raises:
            Unavailable: it lacks something here.
        """
        limits = self.limits
        self.tier = make_tier(tier, limits, self._interpreter, self._bwrap, self.root)
        processes = limits.processes
        if not self.tier.counts_alone:
            processes = linux.threads_of(os.getuid()) + _SLACK * limits.processes
        values = {
            resource.RLIMIT_CPU: math.ceil(limits.seconds) + 1,
            resource.RLIMIT_AS: limits.memory_mib << 20,
            resource.RLIMIT_FSIZE: limits.output_bytes,
            resource.RLIMIT_NOFILE: limits.files,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NPROC: processes,
        }
        self._limits = ",".join(f"{kind}={value}" for kind, value in values.items())

    def start(self, role: str, folder: str, *descriptors: int) -> subprocess.Popen[bytes]:
        """Run child.py in this role with these sockets."""
        confine = self.tier.confine
        with self.tier.command() as (command, needed):
            process = subprocess.Popen(
                [
                    *command,
                    "-P",
                    "-s",
                    "-S",
                    "-X",
                    "utf8",
                    self.tier.script,
                    role,
                    self._limits,
                    *map(str, descriptors),
                ],
                env={"PYTHONHASHSEED": "0"},
                cwd=folder or "/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                start_new_session=True,
                pass_fds=(*descriptors, *needed),
                # Without a function to run, subprocess needs no slow kind of fork.
                preexec_fn=confine and (lambda: confine(folder)),
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
            strays = linux.children()
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
        folders.remove(self.root)


def _compile(python: str, target: str) -> None:
    """Compile child.py by the interpreter that is to run it, which saves a fifth of each start."""
    source = Path(child.__file__)
    order = f"import py_compile; py_compile.compile({str(source)!r}, {target!r}, doraise=True)"
    try:
        subprocess.run([python, "-I", "-S", "-c", order], check=True, env={}, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{python} can't compile the child's script ({error})") from None
    os.chmod(target, 0o644)
