"""How tests wait for what other processes do."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx


def until(
    true: Callable[[], Any],
    seconds: float = 300,
    process: subprocess.Popen[Any] | None = None,
    printed: Path | None = None,
) -> Any:
    """What `true` returns once it is true, to which a server that doesn't answer yet is a no; fails after so long, or
    where `process`, which is to bring it about, has ended, with what it `printed`."""
    limit, found = time.monotonic() + seconds, None
    while not found:
        with suppress(httpx.HTTPError):
            if found := true():
                break
        said = printed.read_text() if printed else ""
        assert process is None or process.poll() is None, f"it ended with {process.returncode}: {said}"
        assert time.monotonic() < limit, f"it took too long: {said}"
        time.sleep(0.05)
    return found
