"""What a step takes of a Ray cluster, and GPUs that are a run's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import cluster
from tasks.leases import Gpus
from vibethinker.artifacts import Store
from vibethinker.config import load
from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.plan import Step

TRAINED = Step("specialist-algebra", "specialist", {}, {"data": "data"}, "f" * 64)
PROBED = Step("probe-algebra", "probe", {}, {}, "f" * 64)


@pytest.mark.parametrize(
    "changes, step, gpus_there, expected",
    [
        ([], TRAINED, True, {"num_cpus": 1, "num_gpus": 1}),
        ([], TRAINED, False, {"num_cpus": 1, "num_gpus": 0}),
        (["execution.device=cpu", "scaling.ray.cpus=4"], TRAINED, True, {"num_cpus": 4, "num_gpus": 0}),
        (["execution.steps_per_gpu=2"], PROBED, True, {"num_cpus": 1, "num_gpus": 0.5}),
        (["execution.processes=2"], TRAINED, True, {"num_cpus": 1, "num_gpus": 2}),
        (["execution.processes=2"], PROBED, True, {"num_cpus": 1, "num_gpus": 1}),
    ],
)
def test_a_step_takes_gpus_by_its_processes_and_its_share(
    changes: list[str], step: Step, gpus_there: bool, expected: dict[str, float]
) -> None:
    assert cluster.resources(load("tiny", overrides=changes, environ={}), step, gpus_there) == expected


def test_a_machine_without_the_inputs_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match=r"no output of data: .*storage\.url"):
        cluster._inputs(Store(tmp_path), None, TRAINED, {"data": "d" * 64})


def test_gpus_of_a_run_s_own_are_taken_in_turn_without_a_server() -> None:
    gpus = Gpus(("0", "1"), 2, 4, leased=False)
    gpus.check()
    with gpus.take(0) as first, gpus.take(0) as second, gpus.take(0) as third:
        assert {first, second} == {("0",), ("1",)}
        assert third in (first, second)
    with gpus.take(2) as both:
        assert both == ("0", "1")
    with pytest.raises(ConfigurationError), gpus.take(3):
        pass
