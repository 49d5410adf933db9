"""How a process of the worker ends: the class of failure of any exception, and death with its parent."""

from __future__ import annotations

import ctypes
import errno
import os
import signal

from vibethinker.errors import (
    DataError,
    DivergedError,
    InfrastructureError,
    OutOfMemoryError,
    PreemptedError,
    VibeThinkerError,
)
from vibethinker.redaction import redact
from vibethinker.worker import exhaustion

# Of what safetensors and torch raise where the operating system's error was lost.
DISK = {
    "No space left on device": errno.ENOSPC,
    "Disk quota exceeded": errno.EDQUOT,
    "Input/output error": errno.EIO,
    "PytorchStreamWriter failed writing": errno.ENOSPC,
    ". unexpected pos ": errno.ENOSPC,
}


def classify(error: BaseException) -> VibeThinkerError:
    """The error of this project that says what kind of failure any exception is.

    A request to stop is raised wherever the process happens to be, so whoever catches all exceptions may have reworded
    it.
    """
    if (asked := _asked_to_stop(error)) is not None:
        return asked
    if isinstance(error, VibeThinkerError):
        return error
    text = f"{type(error).__name__}: {redact(' '.join(str(error).split()))[:500]}"
    if exhaustion.is_out_of_memory(error):
        return OutOfMemoryError(text)
    if isinstance(error, FloatingPointError):
        return DivergedError(text)
    number = error.errno if isinstance(error, OSError) else next((DISK[said] for said in DISK if said in text), None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return InfrastructureError(f"The disk is full ({text}): make room, then run the same command again.")
    if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
        return DataError(text)
    if isinstance(error, (OSError, EOFError)) or number == errno.EIO:
        return InfrastructureError(text)
    return VibeThinkerError(text)


def _asked_to_stop(error: BaseException | None) -> PreemptedError | None:
    while error is not None and not isinstance(error, PreemptedError):
        error = error.__cause__ or error.__context__
    return error


def killed_by(number: int, victims: int | None = None) -> tuple[type[VibeThinkerError], str]:
    """What a process that a signal ended is said to have died of, and the class of that failure.

    Args:
        victims: of the kernel's out-of-memory killer while the process still ran (see `exhaustion.killed`); None where
            another cause of its death is known.
    """
    reason = f"killed by {signal.Signals(number).name}"
    if number != signal.SIGKILL:
        return InfrastructureError, reason
    if victims is not None and (exhaustion.killed() or 0) > victims:
        return OutOfMemoryError, f"{reason}: the kernel ended it since memory ran out"
    return InfrastructureError, f"{reason}, which is how the kernel ends what uses too much memory"


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux)."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request
        os._exit(1)
