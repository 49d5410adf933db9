"""Who holds a site's GPUs: what a Prefect server knows of its limits `gpu-<host>-<index>`, asked over its REST API.

A server tells how many slots of a limit are taken, not by whom: its leases have no endpoint. But each taking and each
giving back is one of its events, which names the flow run and the task run. Of the takings that nothing gave back the
latest hold the slots, as many as are taken; the holders of earlier ones died, and the server freed their slots.
Left out: holders from before the latest 50 of a limit's events, or longer ago than the server keeps them (a week unless
it is set otherwise), which stay unnamed.
"""

from __future__ import annotations

import os
import re
import socket
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from vibethinker import hardware
from vibethinker.errors import InfrastructureError

PREFIX = "gpu-"
PAGE = 200
SECONDS = 10.0  # for one answer
ENDED = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
_EVENT = "prefect.concurrency-limit."


@dataclass(frozen=True)
class Holder:
    """A step of a run: `state` is its run's name for how it is, `ended` whether it is over, `since` in UTC."""

    step: str
    run: str
    state: str
    ended: bool
    since: datetime
    slots: int


@dataclass(frozen=True)
class GpuLimit:
    """One GPU's limit, and who holds its slots, the latest first; of `taken` slots some may have no known holder."""

    name: str
    total: int
    taken: int
    enabled: bool
    holders: tuple[Holder, ...]


def limit_name(device: str) -> str:
    """The limit of a GPU of this host that CUDA_VISIBLE_DEVICES names so."""
    host = re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname())
    return f"{PREFIX}{host}-{hardware.gpu_index(device)}"


def gpu_limits(api: str) -> list[GpuLimit]:
    """Every GPU's limit of the server, by name.

    Args:
        api: what PREFECT_API_URL says.

    Raises:
        InfrastructureError: the server doesn't answer, or not as Prefect's does.
    """
    try:
        with httpx.Client(base_url=api.rstrip("/"), headers=_credentials(), timeout=SECONDS) as client:
            found = [row for row in _limits(client) if row["name"].startswith(PREFIX)]
            return [_told(client, row) for row in sorted(found, key=lambda row: row["name"])]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InfrastructureError(f"Prefect's server doesn't tell who holds its GPUs ({reason}).") from error


def _credentials() -> dict[str, str]:
    """The headers that Prefect's own client sends; a key is Cloud's."""
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    if words := os.environ.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {b64encode(words.encode()).decode()}"}
    return {}


def _post(client: httpx.Client, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body)
    answer.raise_for_status()
    return answer.json()


def _limits(client: httpx.Client) -> Iterator[dict[str, Any]]:
    offset = 0
    while page := _post(client, "/v2/concurrency_limits/filter", {"limit": PAGE, "offset": offset}):
        yield from page
        offset += len(page)


def _told(client: httpx.Client, row: dict[str, Any]) -> GpuLimit:
    holders: list[Holder] = []
    taken = row["active_slots"]
    for event in _held(client, row["id"]) if taken else ():
        if sum(holder.slots for holder in holders) < taken:
            holders.append(_holder(client, event))
    return GpuLimit(row["name"], row["limit"], taken, row["active"], tuple(holders))


def _held(client: httpx.Client, limit: str) -> list[dict[str, Any]]:
    """The events of takings that nothing gave back, the latest first."""
    names = [f"{_EVENT}acquired", f"{_EVENT}released"]
    asked = {"event": {"name": names}, "resource": {"id": [f"{_EVENT[:-1]}.{limit}"]}}
    events = _post(client, "/events/filter", {"filter": asked})["events"]
    over = {event["follows"] for event in events if event["event"] == names[1]}
    return [event for event in events if event["event"] == names[0] and event["id"] not in over]


def _holder(client: httpx.Client, event: dict[str, Any]) -> Holder:
    related = {one["prefect.resource.role"]: one for one in event["related"] if "prefect.resource.role" in one}
    step = related.get("task-run", {}).get("prefect.resource.name", "unnamed")
    run, state, kind = "no run of Prefect's", "unknown", ""
    if id := related.get("flow-run", {}).get("prefect.resource.id", "").removeprefix("prefect.flow-run."):
        answer = client.get(f"/flow_runs/{id}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            run, state, kind = id, "Deleted", "CANCELLED"
        else:
            told = answer.raise_for_status().json()
            run, state, kind = told["name"], told["state_name"] or "Pending", told["state_type"] or ""
    since = datetime.fromisoformat(event["occurred"]).astimezone(UTC)
    return Holder(step, run, state, kind in ENDED, since, int(event["resource"]["slots-acquired"]))
