"""Process control that Python doesn't offer: prctl, mounts, Landlock and seccomp.

On other systems these do nothing, fail or find nothing, and workers end when their channel closes.
"""

from __future__ import annotations

import ctypes
import os
import sys

_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _SET_CHILD_SUBREAPER, _SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
_SECCOMP_MODE_FILTER = 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_NEW_MOUNTS, _READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 0x20000, 0x1, 0x20, 0x1000, 0x4000, 0x40000
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _call(name: str, *arguments: object) -> int:
    """A function of the C library; OSError where it says -1."""
    if _LIBC is None:
        raise OSError(f"{name} is Linux's")
    result = getattr(_LIBC, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return int(result)


def _prctl(option: int, value: int) -> bool:
    return _LIBC is not None and _LIBC.prctl(option, value, 0, 0, 0) == 0


def die_with_parent(signal_number: int) -> None:
    """Receive this signal when the *thread* that started this process ends."""
    _prctl(_SET_PDEATHSIG, signal_number)


def hide_memory() -> None:
    """Forbid processes of the same user to trace this one or to read its memory and environment."""
    _prctl(_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, so that none escapes."""
    _prctl(_SET_CHILD_SUBREAPER, 1)


def gain_nothing() -> None:
    """From here on, no exec gives this process or its descendants a privilege."""
    _prctl(_SET_NO_NEW_PRIVS, 1)


def set_seccomp_filter(program: object) -> None:
    """Apply a struct sock_fprog, given by reference; OSError where the kernel refuses."""
    _call("prctl", _SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)


def landlock_version() -> int:
    """Of the running kernel; 0 where it has none."""
    try:
        return _call("syscall", _LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    except OSError:
        return 0


def landlock_create(ruleset: ctypes.Structure) -> int:
    """The descriptor of a new ruleset."""
    size = ctypes.c_size_t(ctypes.sizeof(ruleset))
    return _call("syscall", _LANDLOCK_CREATE, ctypes.byref(ruleset), size, 0)


def landlock_add(descriptor: int, beneath: ctypes.Structure) -> None:
    """Add a rule about what lies beneath a path."""
    _call("syscall", _LANDLOCK_ADD, descriptor, 1, ctypes.byref(beneath), 0)


def landlock_restrict(descriptor: int) -> None:
    """Apply a ruleset to this thread and what it starts."""
    _call("syscall", _LANDLOCK_RESTRICT, descriptor, 0)


def leave_mounts() -> None:
    """From here on, what this process mounts is its own and its descendants' to see, and ends with them; root only."""
    _call("unshare", _NEW_MOUNTS)
    _call("mount", b"none", b"/", None, ctypes.c_ulong(_RECURSIVE | _PRIVATE), None)


def mount_memory(target: str, size: int, files: int) -> None:
    """Mount an empty file system in memory of so many bytes and files at a folder; root only."""
    options = f"mode=0755,size={size},nr_inodes={files}".encode()
    _call("mount", b"none", target.encode(), b"tmpfs", ctypes.c_ulong(0), options)


def bind(source: str, target: str) -> None:
    """Mount the folder `source` at the folder `target` too, read-only; root only."""
    _call("mount", source.encode(), target.encode(), None, ctypes.c_ulong(_BIND), None)
    # Flags that the source has may be locked, and dropping them refused.
    kept = os.statvfs(source).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)
    flags = ctypes.c_ulong(_BIND | _REMOUNT | _READ_ONLY | kept)
    _call("mount", b"none", target.encode(), None, flags, None)
