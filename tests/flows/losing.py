"""A run of a service's whose machine is gone, so to speak: its worker and its own process are killed in the middle of a
stage, and only the server is left to notice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import automations
from tests.flows.serving import Service
from tests.waiting import until
from vibethinker.operations import Notifications

LOST_SECONDS = 90.0  # three heartbeats
# A stage that is long enough to be met in its middle, and too slow a learner to collapse.
STEPS = 40
CONFIG: dict[str, Any] = {
    "signal": {
        "objective": {"learning_rate": 1e-6},
        "stages": [
            {"name": "math", "context": 96, "steps": STEPS, "reward": "math"},
            {"name": "code", "context": 96, "steps": 1, "reward": "code"},
        ],
    },
    "execution": {"checkpoints": {"seconds": 0.5}},
}


@dataclass(frozen=True)
class Lost:
    """The flow run, its name, the last update that it had saved, and the process of its worker."""

    id: str
    name: str
    saved: int
    worker: int


def lose(service: Service) -> Lost:
    """Begin such a run and kill it with the service's worker."""
    with temporary_settings({PREFECT_API_URL: service.api.url}):
        automations.register(Notifications().slack_block, LOST_SECONDS)
    id = service.start(CONFIG)
    until(lambda: saved(service.workspace) > 0 or service.flow_run(id)["state_type"] == "FAILED", 240)
    worker = service.state["worker"]["process"]["pid"]
    engines = [one for one in service.processes_of(id) if "vibethinker.worker" not in one.cmdline()]
    assert engines
    for process in (psutil.Process(worker), *engines):
        process.kill()
    until(lambda: not service.processes_of(id), 40)
    return Lost(id, service.flow_run(id)["name"], saved(service.workspace), worker)


def saved(workspace: Path) -> int:
    """The last update that the first stage has saved."""
    found = (workspace / "checkpoints" / "signal-1").glob("*/updates/*/manifest.json")
    return max((int(path.parent.name) for path in found if path.parent.name.isdigit()), default=0)


def computed(run: Path) -> list[int]:
    """Which updates of the first stage were computed, in whatever process, in order."""
    told = [json.loads(line) for line in (run / "tracking.jsonl").read_text().splitlines()]
    rows = [one for one in told if one["op"] == "metrics" and one.get("step") == "signal-1" and one["at"]]
    return [row["at"] for row in rows if any("tokens_per_second" in name for name in row["values"])]
