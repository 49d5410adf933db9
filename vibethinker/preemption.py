"""Being asked to stop (SIGTERM): at once, or where no work is lost.

A step that keeps no state leaves wherever it is. A training holds the request back while it moves weights or writes,
lets it through while it samples and differentiates, saves what it has, and leaves then. Only the first request counts,
and none once the work is done: what is left is to publish it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from vibethinker.errors import PreemptedError

ASKED = "The step was asked to stop."
_asked = False
_held = False
_done = False


def install() -> None:
    """Listen for requests from now on, in this process's main thread."""
    global _asked, _done
    _asked = _done = False
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


def finish() -> None:
    """Heed no request any more: leaving now would lose more time than what is left takes."""
    global _done
    _done = True


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
    if not _held and not _done:
        check()
