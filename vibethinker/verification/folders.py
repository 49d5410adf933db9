"""Folders that programs' processes can reach, and their removal, whatever a program made in them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

_PLACES = ("/tmp", "/var/tmp", "/dev/shm")


def open_to_all(path: str) -> bool:
    """Whether any user can get to a file or folder and read it."""
    return all(folder.stat().st_mode & 0o001 for folder in Path(path).parents) and bool(os.stat(path).st_mode & 0o004)


def make() -> str:
    """A new folder; as root, where the user that programs get can reach it, wherever TMPDIR points."""
    places = [tempfile.gettempdir()]
    if os.geteuid() == 0:
        places = [place for place in (*places, *_PLACES) if os.path.isdir(place) and open_to_all(place)] or places
    return tempfile.mkdtemp(prefix="vibethinker-programs-", dir=places[0])


def remove(path: str) -> None:
    """Remove a folder and everything in it, or what can be removed."""
    with suppress(OSError):
        os.rmdir(path)
        return
    # Python's rmtree gives up on folders nested thousands deep and on ones without permissions.
    subprocess.run(["chmod", "-R", "u+rwx", "--", path], stderr=subprocess.DEVNULL, check=False)
    subprocess.run(["rm", "-rf", "--one-file-system", "--", path], stderr=subprocess.DEVNULL, check=False)
