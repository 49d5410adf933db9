"""Processes for untrusted programs: resource limits, and nothing left behind.

Tier "rlimits", the only one so far. What it does: an interpreter started afresh from the small worker (so
limits are absolute and a trainer's memory is neither counted nor visible), CPU time, address space, file
size, open files and no core dumps, an empty environment but for the hash seed (so that verdicts repeat), a
private folder, its own session, no capabilities even for root, another user where root can give one, and a
sweep that kills every descendant. What it leaves out: the network, the file system of the same user, fork
bombs of the same user, the number of files. So it isn't a sandbox, and `CodeLimits.allow_unsafe` must say
that this is known.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vibethinker.verification import linux
from vibethinker.verification.schema import CodeLimits

NOBODY = 65534
_SWEEPS = 1000


class Sandbox:
    """Starts and ends the processes of one program at a time; its owner must have no other children."""

    def __init__(self, limits: CodeLimits) -> None:
        self.limits = limits
        self.python = limits.python or sys.executable
        linux.adopt_orphans()
        linux.hide_memory()
        self.root = tempfile.mkdtemp(prefix="vibethinker-programs-")
        os.chmod(self.root, 0o711)
        self.script = os.path.join(self.root, "child.pyc")
        try:
            self._compile()
        except (OSError, subprocess.SubprocessError):
            _remove(self.root)
            raise
        os.chmod(self.script, 0o644)
        self.user: int | None = None
        if os.geteuid() == 0:
            self.user = NOBODY
            if not self._starts():
                self.user = None
        self._running: list[subprocess.Popen[bytes]] = []

    def _compile(self) -> None:
        """Compile child.py by the interpreter that is to run it, which saves a fifth of each start."""
        source = Path(__file__).with_name("child.py")
        order = f"import py_compile; py_compile.compile({str(source)!r}, {self.script!r}, doraise=True)"
        subprocess.run([self.python, "-I", "-S", "-c", order], check=True, env={})

    def _starts(self) -> bool:
        try:
            command = [self.python, "-S", "-c", f"import json; open({self.script!r}).close()"]
            return subprocess.run(command, env={}, cwd=self.root, preexec_fn=self._confine).returncode == 0
        except (OSError, subprocess.SubprocessError):
            return False

    def _confine(self) -> None:
        """Runs in the child between fork and exec."""
        limits = self.limits
        linux.give_up_privileges()
        seconds = math.ceil(limits.seconds) + 1
        for kind, value in (
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_AS, limits.memory_mib << 20),
            (resource.RLIMIT_FSIZE, limits.output_bytes),
            (resource.RLIMIT_NOFILE, 64),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(kind, (value, value))
        if self.user is not None:
            # Counts a user's processes everywhere, so it only suits one that has none of its own.
            resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))
            os.setgroups([])
            os.setgid(self.user)
            os.setuid(self.user)
        linux.die_with_parent(signal.SIGKILL)

    def start(self, role: str, folder: str, *descriptors: int) -> subprocess.Popen[bytes]:
        """Run child.py in this role with these sockets."""
        process = subprocess.Popen(
            [self.python, "-P", "-s", "-S", "-X", "utf8", self.script, role, *map(str, descriptors)],
            env={"PYTHONHASHSEED": "0"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=descriptors,
            preexec_fn=self._confine,
        )
        self._running.append(process)
        return process

    @contextmanager
    def folder(self) -> Iterator[str]:
        """A private folder; at the end every process is dead and the folder gone."""
        path = tempfile.mkdtemp(dir=self.root)
        if self.user is not None:
            os.chown(path, self.user, self.user)
        try:
            yield path
        finally:
            self._kill_all()
            _remove(path)

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
        self._kill_all()
        _remove(self.root)


def _remove(path: str) -> None:
    with suppress(OSError):
        os.rmdir(path)
        return
    # Python's rmtree gives up on folders nested thousands deep and on ones without permissions.
    subprocess.run(["chmod", "-R", "u+rwx", "--", path], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["rm", "-rf", "--", path], stderr=subprocess.DEVNULL, check=False)
