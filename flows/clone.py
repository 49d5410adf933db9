"""Where this machine has the flows; a step that every deployment begins with, since no two clones need lie alike."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]


def enter() -> dict[str, str]:
    """Go where the flows are that this environment has installed; the folder, as Prefect's pull steps return it."""
    os.chdir(ROOT)
    return {"directory": str(ROOT)}
