"""Steps that end in every way a step can; run by the worker's tests through `module:function` kinds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from vibethinker.errors import ConfigurationError, DataError, DivergedError, InfrastructureError, PreemptedError
from vibethinker.steps import Metrics, StepContext

ERRORS = {
    "configuration": ConfigurationError,
    "data": DataError,
    "diverged": DivergedError,
    "infrastructure": InfrastructureError,
    "preempted": PreemptedError,
    "out_of_memory": MemoryError,
    "failure": ZeroDivisionError,
}


def succeed(context: StepContext) -> Metrics:
    """Write one file and report some progress."""
    context.emit.progress(1, 2, "half")
    context.emit.metrics(1, {"loss": 0.5})
    print("a library's noise")
    (context.output / "value.txt").write_text(context.settings["value"])
    return {"length": len(context.settings["value"])}


def fail(context: StepContext) -> Metrics:
    """Raise the error that the settings name."""
    raise ERRORS[context.settings["error"]]("this is why")


def wait(context: StepContext) -> Metrics:
    """Tell the process ids of this step and of a grandchild, then say nothing more."""
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    context.emit.metrics(0, {"child": os.getpid(), "grandchild": grandchild.pid})
    time.sleep(600)
    return {}


def die(context: StepContext) -> Metrics:
    """End without a word."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}
