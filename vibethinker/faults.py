"""Named places where a run can be made to die or to meet a failing disk; tests/faults drives them, nothing else does.

Two environment variables arm them. VIBETHINKER_FAULT is `record`, or `<point>:<n>:<action>`: at the n-th passing of
that point, counted over all processes of a run and its restarts, the action is taken, once. VIBETHINKER_FAULT_FILE is
where passings are noted, one a line: point, what it is about (a step), process id. Actions: `kill`, SIGKILL of the
process itself; `freeze`, which stops it there, so that whoever started the run can kill all of it at this very place;
`ENOSPC` and `EIO`, the file system's error. Without the variables a point is a call that returns.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal

# Everything that a run with checkpoints passes, in this order within a step.
POINTS = (
    "step.start", "child.locked",
    "update.written", "update.file", "update.manifest", "update.sealed", "update.rename", "update.renamed",
    "update.synced", "update.forgotten",
    "child.computed",
    "publish.file", "publish.manifest", "publish.sealed", "publish.rename", "publish.renamed", "publish.synced",
    "publish.cleaned",
    "child.published", "step.ended", "step.noted",
    "json.written", "json.replaced",
)  # fmt: skip

_fault, _file = os.environ.get("VIBETHINKER_FAULT"), os.environ.get("VIBETHINKER_FAULT_FILE")
_armed = bool(_fault and _file)


def point(name: str, about: str = "") -> None:
    """Pass a place where something can be made to go wrong.

    Raises:
        OSError: ENOSPC or EIO, where that is asked for.
    """
    if _armed:
        _pass(name, about)


def _pass(name: str, about: str) -> None:
    assert _fault is not None and _file is not None
    with open(_file, "a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write(f"{name} {about or '-'} {os.getpid()}\n")
        handle.flush()
        handle.seek(0)
        passings = sum(line.startswith(f"{name} ") for line in handle)
    wanted, _, rest = _fault.partition(":")
    if wanted != name or rest.partition(":")[0] != str(passings):
        return
    action = rest.partition(":")[2]
    if action in ("kill", "freeze"):
        os.kill(os.getpid(), signal.SIGKILL if action == "kill" else signal.SIGSTOP)
    else:
        number = getattr(errno, action)
        raise OSError(number, f"{os.strerror(number)} (injected at {name})")
