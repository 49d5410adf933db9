"""What a deployment by hand does to schedules that are there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule

from flows import registration


def schedule(slug: str | None, active: bool) -> DeploymentSchedule:
    return DeploymentSchedule(slug=slug, active=active, schedule=CronSchedule(cron="0 4 * * *"))


@pytest.mark.parametrize(
    ("schedules", "on"),
    [
        ([], False),
        ([("usual", True)], True),
        ([("usual", False), ("theirs", True)], False),
        ([("theirs", True)], False),  # they have deleted the usual one
        ([(None, True)], True),  # of an older version
        ([(None, True), (None, True)], False),
    ],
)
def test_only_the_usual_schedule_counts(
    schedules: list[tuple[str | None, bool]], on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [SimpleNamespace(name="qwen3-0.6b", schedules=[schedule(*one) for one in schedules])]
    monkeypatch.setattr(registration, "_deployments", lambda: there)
    assert registration.switched_on()["qwen3_0_6b"] is on
