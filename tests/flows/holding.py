"""A flow whose steps hold a GPU, for tests of who holds it: `python -m tests.flows.holding DEVICE`.

Prints `{"run", "id"}` once the first step has the GPU, which gives it back when stdin closes; the second one keeps it
until this process is killed.
"""

from __future__ import annotations

import json
import sys
import time

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from tasks.leases import Gpus


@task(task_run_name="{step}", cache_policy=NO_CACHE)
def hold(step: str, device: str) -> None:
    """Hold the GPU as a training step does."""
    with Gpus((device,), 1, 1).take(1):
        if step == "specialist-algebra":
            print(json.dumps({"run": flow_run.get_name(), "id": str(flow_run.get_id())}), flush=True)
            sys.stdin.read()
        else:
            time.sleep(600)


@flow
def holding(device: str) -> None:
    """One step after the other."""
    hold("specialist-algebra", device)
    hold("specialist-geometry", device)


if __name__ == "__main__":
    holding(sys.argv[1])
