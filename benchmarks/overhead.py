"""What orchestration costs: the same recipe as plain library calls and as the Prefect flow, side by side.

    python benchmarks/overhead.py [--profile tiny] [--set A.B=V]… [--workspace DIR] [--output FILE]

Both sides run every step in the same kind of worker with the same number of slots, each in a new process and a new
workspace; neither has anything cached. `ours` is the flow (Prefect, MLflow, artifacts, a server of its own), `peer` the
library alone. The wait for the server beyond the worker's own imports is measured in the flow's process and stated;
`ratio` leaves it out, `ratio_with_start` doesn't.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from outcome import tell

from vibethinker import config
from vibethinker.environment import versions
from vibethinker.plan import build


def main() -> None:
    """Run both sides and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="tiny")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=V")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--workspace", type=Path, help="a new folder that keeps the two workspaces")
    parser.add_argument("--library", metavar="WORKSPACE", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.library:
        library(arguments.profile, arguments.overrides, Path(arguments.library))
        return
    options = ["--profile", arguments.profile, *[o for text in arguments.overrides for o in ("--set", text)]]
    with tempfile.TemporaryDirectory() as passing:
        folder = arguments.workspace or Path(passing)
        peer = timed([sys.executable, __file__, *options, "--library", f"{folder}/library"])
        ours = timed([sys.executable, "-m", "vibethinker", "run", *options, "--workspace", f"{folder}/flow"])
        # The first step starts when the server answers, or when the worker is ready, whichever is later.
        starts = [first_output(folder / side) for side in ("library", "flow")]
    waited = max(0.0, (starts[1] - ours["began"]) - (starts[0] - peer["began"]))
    result = {
        "ours": round(ours["seconds"], 1),
        "peer": round(peer["seconds"], 1),
        "server_wait": round(waited, 1),
        "ratio": round((ours["seconds"] - waited) / peer["seconds"], 3),
        "ratio_with_start": round(ours["seconds"] / peer["seconds"], 3),
        "unit": "s",
        "versions": versions(),
        "command": f"python benchmarks/overhead.py {' '.join(options)}",
    }
    tell(result, arguments.output)


def timed(command: list[str]) -> dict[str, float]:
    """Wall seconds of a command; its own output goes to stderr."""
    began, started = time.time(), time.monotonic()
    subprocess.run(command, check=True, stdout=sys.stderr)
    return {"began": began, "seconds": time.monotonic() - started}


def first_output(workspace: Path) -> float:
    """When the first step began to run."""
    manifest = json.loads(next(workspace.glob("artifacts/data/*/manifest.json")).read_text())
    return manifest["finished"] - manifest["seconds"]


def library(profile: str, overrides: list[str], workspace: Path) -> None:
    """The recipe without Prefect and MLflow: a thread a step, each waiting for what it reads."""
    from flows.display import Lines
    from tasks import session

    plan = build(config.load(profile, overrides=overrides), workspace)
    with session.opened(plan, Lines(plan)) as current, ThreadPoolExecutor(64) as pool:
        futures: dict[str, Future[Any]] = {}

        def run(step_id: str) -> dict[str, Any]:
            step = plan[step_id]
            for needed in step.depends_on:
                futures[needed].result()
            return current.execute(step, lambda event: current.display.event(step, event))

        for step in plan.steps:
            futures[step.id] = pool.submit(run, step.id)
        for future in futures.values():
            future.result()


if __name__ == "__main__":
    main()
