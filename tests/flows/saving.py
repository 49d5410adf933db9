"""A flow that has something to save when it is asked to stop."""

from __future__ import annotations

import time
from pathlib import Path

from prefect import flow


@flow
def saving(folder: str, seconds: float) -> None:
    """Tell that it has begun, and once it is asked to stop, save for so long."""
    (Path(folder) / "begun").touch()
    try:
        time.sleep(300)
    finally:
        (Path(folder) / "asked").touch()
        time.sleep(seconds)
        (Path(folder) / "saved").touch()
