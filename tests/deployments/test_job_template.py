"""The Kubernetes pool's job template, held to the rules of Prefect's server and filled in as its workers do.

prefect-kubernetes isn't installed here, so what its worker adds (names, labels, the API's address) is left out.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
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


def test_defaults_fit_the_repository_s_manifests_and_images(template: dict[str, Any]) -> None:
    """Checked against gpu-worker.yaml, in whose place the jobs are."""
    manifests = [one for path in TEMPLATE.parent.glob("*.yaml") for one in yaml.safe_load_all(path.read_text())]
    [worker] = [one["spec"]["template"] for one in manifests if one.get("metadata", {}).get("name") == "gpu-worker"
                and one["kind"] == "StatefulSet"]  # fmt: skip
    job = filled(template).job_manifest
    made = job["spec"]["template"]
    [theirs], [ours] = worker["spec"]["containers"], made["spec"]["containers"]
    assert made["spec"]["securityContext"] == worker["spec"]["securityContext"]
    assert ours["image"] == theirs["image"]
    for reference in ("configMapRef", "secretRef"):
        [name], [wanted] = (
            [one[reference]["name"] for one in c["envFrom"] if reference in one] for c in (ours, theirs)
        )
        assert name == wanted
    for volume in made["spec"]["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            assert {"name": volume["name"], "persistentVolumeClaim": claim} in worker["spec"]["volumes"]
    [policy] = [one["spec"] for one in manifests if one.get("metadata", {}).get("name") == "servers"]
    let_in = policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert let_in.items() <= made["metadata"]["labels"].items()
    assert job["metadata"]["namespace"] in {one["metadata"]["name"] for one in manifests if one["kind"] == "Namespace"}
    user = made["spec"]["securityContext"]
    dockerfile = (TEMPLATE.parents[1] / "Dockerfile.trainer").read_text()
    assert f"USER {user['runAsUser']}:{user['runAsGroup']}\n" in dockerfile


@pytest.mark.slow
@pytest.mark.parametrize("release", ["1.30", "1.37"])
def test_kubernetes_takes_the_job(template: dict[str, Any], release: str) -> None:
    job = filled(template, name="micro", labels={"team": "a"}).job_manifest
    [container] = job["spec"]["template"]["spec"]["containers"]
    # prefect-kubernetes' worker makes a list of the variables, and words of the command.
    container["env"] = [{"name": name, "value": value} for name, value in container.get("env", {}).items()]
    container.setdefault("args", ["prefect", "flow-run", "execute"])
    kubernetes_validate.validate(job, release, strict=True)


def test_a_pod_leaves_trainings_the_time_to_save(template: dict[str, Any]) -> None:
    from tasks.workbench import LEAVE_SECONDS

    pod = filled(template).job_manifest["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > LEAVE_SECONDS
