"""The Kubernetes pool's job template, held to the rules of Prefect's server and filled in as its workers do.

prefect-kubernetes isn't installed here, so what its worker adds (names, labels, the API's address) is left out.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from prefect.server.schemas.actions import WorkPoolCreate
from prefect.workers.base import BaseJobConfiguration

TEMPLATE = Path(__file__).parents[2] / "deployments" / "kubernetes" / "base-job-template.json"


class Job(BaseJobConfiguration):
    """What a worker makes of the template; prefect-kubernetes gives the container `env`, as a list."""

    job_manifest: dict[str, Any]


@pytest.fixture
def template() -> dict[str, Any]:
    return json.loads(TEMPLATE.read_text())


def filled(template: dict[str, Any], **values: Any) -> Job:
    class NoBlocks:  # none is referenced
        pass

    made = Job.from_template_and_values(template, values, client=NoBlocks())
    return asyncio.run(made)


def test_prefect_takes_it(template: dict[str, Any]) -> None:
    pool = WorkPoolCreate(name="gpu", type="kubernetes", base_job_template=template)
    assert pool.base_job_template == template
    del template["variables"]["properties"]["gpus"]
    with pytest.raises(ValueError, match="gpus"):
        WorkPoolCreate(name="gpu", type="kubernetes", base_job_template=template)


def test_defaults_are_what_the_form_says_and_everything_is_described(template: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(template["variables"])
    for name, variable in template["variables"]["properties"].items():
        assert variable["description"].endswith("."), name
        if "default" in variable:
            jsonschema.validate(variable["default"], variable)


def test_a_job_asks_for_gpus_and_mounts_the_workspace(template: dict[str, Any]) -> None:
    made = filled(template, gpus=4, env={"AWS_ENDPOINT_URL": "http://store"}, workspace_claim="mine")
    assert "{{" not in json.dumps(made.job_manifest)
    pod = made.job_manifest["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 4}
    assert container["resources"]["requests"] == {"cpu": "4", "memory": "16Gi"}
    assert made.env["AWS_ENDPOINT_URL"] == "http://store"
    assert made.env["VIBETHINKER_WORKSPACE"] in [m["mountPath"] for m in container["volumeMounts"]]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "mine"}
    assert container["envFrom"] == [{"secretRef": {"name": "vibethinker", "optional": True}}]


def test_a_pod_leaves_trainings_the_time_to_save(template: dict[str, Any]) -> None:
    from tasks.workbench import LEAVE_SECONDS

    pod = filled(template).job_manifest["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > LEAVE_SECONDS
