"""A run of steps that only say where they compute, for tests of leases: `python -m tests.flows.leasing WORKSPACE JSON`.

JSON is `{"steps": [{"role", "seconds"}], "overrides": […]}`; a step of which a file is named in the place of seconds
computes until that is there. Prints a line when a step waits, has its GPU or computes, and at the end one JSON
object: step → what it said, the error's sentence, and what it waited for.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from flows.display import Lines
from tasks import leases, session
from vibethinker import config, needs, workload
from vibethinker.errors import VibeThinkerError
from vibethinker.plan import Plan, Step

ROOT = Path(__file__).parents[2]
COMPUTE = "tests.worker.failing_steps:compute"


def step(number: int, role: str, seconds: float | str) -> Step:
    """A step that stands in for one of this role, as an import does, but computes."""
    settings = {"role": role, "seconds": seconds}
    return Step(f"{role}-{number}", COMPUTE, settings, {}, f"{number:064d}", {})


def main(workspace: str, asked: dict[str, Any]) -> None:
    """Execute all the steps at once, each in its own thread, as tasks do."""
    session.role_of = needs.role_of = workload.role_of = lambda one: one.settings["role"]
    leases.LEASE_SECONDS = float(os.environ.get("LEASE_SECONDS", leases.LEASE_SECONDS))
    overrides = [f"worker.env={{PYTHONPATH: '{ROOT}'}}", *asked.get("overrides", [])]
    settings = config.load("micro", overrides=overrides, environ={})
    steps = tuple(step(n, one["role"], one["seconds"]) for n, one in enumerate(asked["steps"]))
    plan, found = Plan(settings, steps, Path(workspace)), {}

    def execute(one: Step) -> None:
        said: dict[str, Any] = {"waited": []}
        found[one.id] = said

        def hear(event: dict[str, Any]) -> None:
            if event["event"] == "started":
                said["lease"] = event["gpu"]
                print(json.dumps({"started": one.id, "lease": event["gpu"]}), flush=True)
            elif event["event"] == "progress":
                print(json.dumps({"computes": one.id}), flush=True)
            elif event["event"] == "waiting":
                said["waited"].append(event["text"])
                print(json.dumps({"waits": one.id}), flush=True)

        try:
            said |= current.execute(one, hear)["metrics"]
        except VibeThinkerError as error:
            said["error"] = f"{type(error).__name__}: {error}"

    with session.opened(plan, Lines(plan)) as current:
        threads = [threading.Thread(target=execute, args=(one,)) for one in steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
