"""Tier "landlock": Landlock's rules for files, seccomp for all else. For machines where namespaces are forbidden.

A program reads what its interpreter needs, writes its private folder, and opens nothing else of any file system,
/proc included. It has no sockets but pairs of streams, and signals only processes of its own. What this tier leaves
out against "bubblewrap": names, sizes and dates of the machine's files can be asked for; the number and total size of
files in the private folder, and the program's view of process numbers. Without root the user's other processes share
the limit on their number.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from vibethinker.verification import linux

OLDEST = 3  # the version that knows truncation
_SCOPES = 6  # the version that confines signals
# Access rights, one bit each, and how many of them each version knows.
_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_RIGHTS = {3: 15, 4: 15}
_IOCTL_RIGHTS = 16
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def confines_signals() -> bool:
    """Whether the rules keep signals inside; else seccomp must refuse them all."""
    return linux.landlock_version() >= _SCOPES


def restrict(readable: Sequence[str], writable: str) -> None:
    """Forbid this process, and what it starts, every file but these; needs no_new_privs.

    Raises:
        OSError: the kernel refuses.
    """
    version = linux.landlock_version()
    everything = (1 << _RIGHTS.get(version, _IOCTL_RIGHTS)) - 1
    # A structure longer than a kernel's own is accepted while the rest is zero.
    rules = _Ruleset(everything, 0b11 if version >= 4 else 0, 0b11 if version >= _SCOPES else 0)
    ruleset = linux.landlock_create(rules)
    reading = _READ | _LIST | _EXECUTE
    for path in readable:
        _allow(ruleset, path, reading if os.path.isdir(path) else _READ | _EXECUTE)
    for path in _DEVICES:
        _allow(ruleset, path, _READ | _WRITE)
    _allow(ruleset, writable, everything & ~_EXECUTE)
    linux.landlock_restrict(ruleset)
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what isn't there needs no permission
    linux.landlock_add(ruleset, _Beneath(rights, folder))
    os.close(folder)
