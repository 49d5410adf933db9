"""What a Prefect server must know before a worker can do anything: work pool, queues, limits of GPUs, deployments, and
whom to tell of runs that are lost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from flows.clone import ROOT
from tasks.channels import WEBHOOK_VARIABLE
from vibethinker import hardware
from vibethinker.config import Config
from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.operations import Notifications

POOL = "vibethinker"
QUEUES = {"interactive": 1, "default": 2, "batch": 3}  # name → priority; the lowest number goes first
USUAL = "usual"  # the slug of prefect.yaml's schedules
DEPLOYED = "vibethinker_deployed"  # a variable of Prefect's: the digest of what is deployed there


def prepare() -> list[str]:
    """Give the server that PREFECT_API_URL names the pool, queues, limits and automations that it lacks; what was made,
    in words.

    Raises:
        ConfigurationError: the pool is of another type, this environment has another worker for it than
            `flows.worker.Worker`, or SLACK_WEBHOOK_URL is set and prefect-slack isn't installed.
    """
    _check_worker()
    return [*_pool(), *_limits(), *_automations()]


def deploy(environ: Mapping[str, str]) -> list[str]:
    """Deploy everything, unless it is there and hasn't changed; what was made, in words.

    Schedules of deployments that are there stay as they are: whoever keeps the server has switched them on, or changed
    or added some.

    Args:
        environ: of the command that is run.

    Raises:
        InfrastructureError: the server refused a deployment.
    """
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.variables import Variable

    digest, there = _digest(), _deployed()
    if Variable.get(DEPLOYED) == digest and _names() <= there:
        return []
    _deploy(environ, there)
    with suppress(ObjectAlreadyExists):
        Variable.set(DEPLOYED, digest, overwrite=True)
    return [f"{len(_names())} deployments"]


def switched_on() -> dict[str, bool]:
    """Whether the usual schedule of each deployment is switched on, for prefect.yaml, which would switch all off; keys
    are names as templates can have them. A deployment that isn't there yet begins with it switched off."""
    found = dict.fromkeys(_names(), False)
    for deployment in _deployments():
        usual = [one for one in deployment.schedules if one.slug == USUAL]
        if not usual and [one.slug for one in deployment.schedules] == [None]:  # an older version gave it no slug
            usual = deployment.schedules
        found[deployment.name] = any(schedule.active for schedule in usual)
    return {re.sub(r"\W", "_", name): on for name, on in found.items()}


def heard(name: str) -> float | None:
    """When the server last heard of the pool's worker of this name, by its own clock (Unix); None if that is too long
    ago."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for worker in client.read_workers_for_work_pool(POOL):
            if worker.name == name and worker.status == "ONLINE":
                return worker.last_heartbeat_time.timestamp()
    return None


def _check_worker() -> None:
    """Refuse an environment whose worker would kill flow runs instead of letting them save."""
    from prefect.workers.process import ProcessWorker

    found = ProcessWorker.get_worker_class_from_type(ProcessWorker.type)  # by what is installed, so before our own is
    from flows.worker import Worker

    if not issubclass(found, Worker):
        raise ConfigurationError(
            f"The worker that Prefect would start here ({found.__module__}.{found.__name__}) kills flow runs when it "
            "ends: install vibethinker again, as `make` does, or derive it from flows.worker.Worker if it is your own."
        )


def _pool() -> list[str]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    made = []
    with get_client(sync_client=True) as client:
        try:
            pool = client.read_work_pool(POOL)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            with suppress(ObjectAlreadyExists):  # by a worker that began at the same moment; so for what follows
                client.create_work_pool(WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template))
                made.append(f"work pool {POOL}")
            pool = client.read_work_pool(POOL)
        if pool.type != ProcessWorker.type:
            raise ConfigurationError(
                f"The server's work pool {POOL} is of type {pool.type}, and `up` starts a worker for processes: start "
                "that pool's own workers instead."
            )
        there = {queue.name: queue for queue in client.read_work_queues(work_pool_name=POOL)}
        for name, priority in QUEUES.items():
            if name not in there:
                with suppress(ObjectAlreadyExists):
                    client.create_work_queue(name=name, work_pool_name=POOL, priority=priority)
                    made.append(f"work queue {name}")
    return made


def _limits() -> list[str]:
    """One limit a GPU of this host, where the server has none; existing ones are its keeper's."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectNotFound

    from tasks.leases import limit_name

    made = []
    with get_client(sync_client=True) as client:
        for name in map(limit_name, hardware.devices()):
            try:
                client.read_global_concurrency_limit_by_name(name)
            except ObjectNotFound:
                share = Config().execution.steps_per_gpu
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=share))
                made.append(f"limit {name}")
    return made


def _automations() -> list[str]:
    """What tells of runs whose machine is gone, by Slack where SLACK_WEBHOOK_URL is set."""
    from flows import automations

    block = Notifications().slack_block
    if address := os.environ.get(WEBHOOK_VARIABLE):
        automations.save_webhook(address, block)
    before = {name for name in (automations.CRASH, automations.POST) if automations.known(name)}
    return [f"automation {name!r}" for name in automations.register(block) if name not in before]


def _definition() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("prefect.yaml").read_text())


def _names() -> set[str]:
    return {deployment["name"] for deployment in _definition()["deployments"]}


def _deployed() -> set[str]:
    return {deployment.name for deployment in _deployments()}


def _deployments() -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags

    with get_client(sync_client=True) as client:
        wanted = DeploymentFilter(tags=DeploymentFilterTags(all_=[POOL]))
        return client.read_deployments(deployment_filter=wanted)


def _digest() -> str:
    """Of all that deployments are made of."""
    from prefect.utilities.callables import parameter_schema

    from flows import pipeline
    from tasks.session import revision

    flows = ("pipeline", "data_phase", "spectrum_phase", "signal_phase", "evaluation_phase")
    schemas = [parameter_schema(getattr(pipeline, name)).model_dump() for name in flows]
    parts = [_definition(), schemas, metadata.version("vibethinker"), revision()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _deploy(environ: Mapping[str, str], there: set[str]) -> None:
    """Deploy all; Prefect leaves schedules alone only where the file names none, and else makes them anew."""
    definition = _definition()
    for deployment in definition["deployments"]:
        if deployment["name"] in there:
            deployment.pop("schedules", None)
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prefect.yaml"
        path.write_text(yaml.safe_dump(definition))
        done = subprocess.run(
            [*command, str(path)], cwd=ROOT, env=dict(environ), capture_output=True, text=True, check=False
        )
    if done.returncode:
        last = next(iter((done.stdout + done.stderr).strip().splitlines()[-1:]), "no message")
        raise InfrastructureError(
            f"`prefect --no-prompt deploy --all` failed in {ROOT} ({last.strip()}): mend that, and run `up` again."
        )
