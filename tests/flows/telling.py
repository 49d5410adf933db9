"""Signal stages that fail and tell all that they know, in the host of a worker that preloads this module:
VIBETHINKER_PRELOAD=tests.flows.telling."""

from __future__ import annotations

import os

from tests.leaks import PLANTED
from vibethinker import steps
from vibethinker.errors import DivergedError

FAILURE = "The planted failure came"


def fail(context: steps.StepContext) -> steps.Metrics:
    """Print, warn of and fail with every secret that was planted."""
    keys = " ".join(os.environ[name] for name in PLANTED)
    print(f"the last words are {keys}", flush=True)
    context.emit.warning(f"{context.step_id} is about to fail with {keys}")
    raise DivergedError(f"{FAILURE}, with {keys}.")


steps.STEP_FUNCTIONS["signal"] = f"{__name__}:fail"
