"""Process control that Python doesn't offer: prctl, and the list of a process's children.

On other systems these do nothing, and workers end when their channel closes.
"""

from __future__ import annotations

import ctypes
import os
import sys

_SET_PDEATHSIG, _SET_DUMPABLE, _CAPBSET_DROP, _SET_CHILD_SUBREAPER, _SET_NO_NEW_PRIVS = 1, 4, 24, 36, 38
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


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


def give_up_privileges() -> None:
    """No capability survives the next exec, root's included, and none can be gained."""
    capability = 0
    while _prctl(_CAPBSET_DROP, capability):
        capability += 1
    _prctl(_SET_NO_NEW_PRIVS, 1)


def children() -> list[int]:
    """Process ids of this process's children."""
    pid = os.getpid()
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as listing:
            return [int(child) for child in listing.read().split()]
    except OSError:
        return []
