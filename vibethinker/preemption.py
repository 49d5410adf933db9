"""Being asked to stop (SIGTERM): at once, or where no work is lost.

A step that keeps no state leaves wherever it is. A training holds the request back while it moves weights or writes,
lets it through while it samples and differentiates, saves what it has, and leaves then. Only the first request counts.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from vibethinker.errors import PreemptedError

ASKED = "The step was asked to stop."
_asked = False
_held = False


def install() -> None:
    """Listen for requests from now on, in this process's main thread."""
    signal.signal(signal.SIGTERM, _hear)


def asked() -> bool:
    """Whether this process has been asked to stop."""
    return _asked


def check() -> None:
    """Leave, if asked to.

    Raises:
        PreemptedError: it was.
    """
    if _asked:
        raise PreemptedError(ASKED)


@contextmanager
def held() -> Iterator[None]:
    """Hold a request back for the `with` block; whoever is in it asks."""
    yield from _while(True)


@contextmanager
def let_through() -> Iterator[None]:
    """Within `held`, raise PreemptedError for a request that came, or that comes in the `with` block."""
    yield from _while(False)


def _while(hold: bool) -> Iterator[None]:
    global _held
    before, _held = _held, hold
    try:
        if not hold:
            check()
        yield
    finally:
        _held = before


def _hear(number: int, frame: object) -> None:
    global _asked
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _asked = True
    if not _held:
        check()
