"""Locks on files of a workspace, which the kernel frees when their holder dies, however it dies.

A lock is a `flock` on a file that may be removed by whoever holds it (`vibethinker gc` does). So a holder makes sure
that the file it has locked is still the one of that name; else two processes could each hold a lock of one name.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

LOOK_SECONDS = 1.0


@contextmanager
def held(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock for the `with` block; `waiting` is called once a second while another process holds it."""
    while (lock := attempt(path)) is None:
        waiting()
        time.sleep(LOOK_SECONDS)
    with lock:
        yield


def attempt(path: Path) -> TextIOWrapper | None:
    """The lock, to be closed by whoever wants no more of it; None if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        lock = path.open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        if _named(lock, path):
            return lock
        lock.close()


@contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold the lock together with others that share it; waits for whoever holds it alone."""
    with _locked(path, fcntl.LOCK_SH):
        yield


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock that nobody else then shares or holds; waits until nobody does. Its file must stay."""
    with _locked(path, fcntl.LOCK_EX):
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds the lock; looks, and makes no file."""
    try:
        lock = path.open()
    except FileNotFoundError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # two may look at once
        except BlockingIOError:
            return True
    return False


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, how)
        yield


def _named(lock: TextIOWrapper, path: Path) -> bool:
    """Whether this file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except FileNotFoundError:
        return False
