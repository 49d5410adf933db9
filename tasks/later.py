"""A process that waits until what was left out may be told, and tells it: `python -m tasks.later WORKSPACE SETTINGS
SECONDS`.

It is started by whoever left out the first message of a kind, or could tell nobody what is owed, and whose process may
end with its run. Whoever tells something of that kind before it leaves it nothing to tell. Asked to end, as by
`vibethinker down`, it tells at once.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path

from tasks.notifications import tell_owed
from vibethinker.operations import Notifications

TICK_SECONDS = 0.5


def main(workspace: str, settings: str, seconds: str) -> None:
    """See the module."""
    given, asked = Notifications.model_validate_json(settings), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    limit = time.monotonic() + float(seconds)
    while time.monotonic() < limit and not asked.wait(TICK_SECONDS):  # a signal just before a wait doesn't end it
        pass
    if Path(workspace).is_dir():
        tell_owed(Path(workspace), given, 0 if asked.is_set() else given.quiet_seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
