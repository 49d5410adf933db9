"""Pipelines of the recipe's shape whose steps do nothing, many at once:
`python -m tests.flows.stubs FOLDER NUMBER NAME…`. Each begins once NUMBER of them, in whatever process, have come to
FOLDER."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

COME_SECONDS = 120.0
DOMAINS = ("algebra", "geometry", "calculus", "statistics", "code")
SPECIALISTS, PROBES = ([f"{role}-{domain}" for domain in DOMAINS] for role in ("specialist", "probe"))
MEASURED = ["evaluation-fusion", "evaluation-signal-0", "evaluation-signal-1"]
STEPS = ["data", "base", *SPECIALISTS, *PROBES, "fusion", "signal-0", "signal-1", *MEASURED, "report"]


@task(task_run_name="{step}", cache_policy=NO_CACHE, persist_result=False)
def stub(step: str) -> str:
    """One step, which only says that it ran."""
    get_run_logger().info("%s ran", step)
    return step


@flow(name="stubs", flow_run_name="{name}", task_runner=ThreadPoolTaskRunner(max_workers=64))
def stubs(name: str, folder: Path, number: int) -> None:
    """Data and base, specialists and probes in parallel, fusion, stages, evaluations, report."""
    (folder / name).touch()
    limit = time.monotonic() + COME_SECONDS
    while len(list(folder.iterdir())) < number:
        assert time.monotonic() < limit, "the others never came"
        time.sleep(0.05)
    first = [stub.submit("data"), stub.submit("base")]
    specialists = [stub.submit(step, wait_for=first) for step in SPECIALISTS]
    probes = [stub.submit(step, wait_for=[one]) for step, one in zip(PROBES, specialists, strict=True)]
    last = [stub.submit("fusion", wait_for=probes)]
    for step in ("signal-0", "signal-1"):
        last.append(stub.submit(step, wait_for=last[-1:]))
    measured = [stub.submit(step, wait_for=[one]) for step, one in zip(MEASURED, last, strict=True)]
    stub.submit("report", wait_for=measured).result()
    create_markdown_artifact(f"{name} is over", key=f"stubs-{name}")


if __name__ == "__main__":
    folder, number, *names = sys.argv[1:]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: stubs(name, Path(folder), int(number)), names))
