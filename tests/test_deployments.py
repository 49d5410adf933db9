"""The files in deployments/: valid by the real schemas, pinned, without passwords, closed to other machines."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from flows import processes
from flows.server import lasting
from vibethinker import __version__

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deployments"
DOCKERFILES = ("Dockerfile", "Dockerfile.trainer")
MANIFESTS = sorted(FOLDER.glob("kubernetes/*.yaml"))
RELEASES = ("1.30", "1.37")  # of Kubernetes, the oldest and the newest that we look at
SECRET = re.compile(r"PASSWORD|TOKEN|KEY|SECRET|WEBHOOK|AUTH_STRING|APPRISE", re.IGNORECASE)
ON_LOOPBACK = "${BIND_ADDRESS:-127.0.0.1}:"


def program(name: str) -> str:
    """A program of the test environment's, which need not be on the path."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or name


# ---- images ----


def instructions(name: str) -> list[list[str]]:
    """Each instruction's word and the rest of it, lines joined, comments left out."""
    lines = [line for line in (FOLDER / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]


@pytest.mark.skipif(sys.platform != "linux", reason="hadolint's wheel is for Linux")
@pytest.mark.parametrize("name", DOCKERFILES)
def test_the_linter_finds_nothing(name: str) -> None:
    done = subprocess.run([program("hadolint"), str(FOLDER / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stdout


@pytest.mark.parametrize("name", DOCKERFILES)
def test_everything_in_an_image_is_pinned(name: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installs = [
        one for word, rest in instructions(name) if word == "RUN" for one in rest.split("&&") if "uv pip install" in one
    ]
    assert installs
    for one in installs:
        assert set(re.findall(r"--extra (\S+)", one)) <= extras.keys()
        if "--no-deps" in one:  # this project itself
            assert "--build-constraint constraints" in one
            continue
        # What uv installs besides pyproject.toml's requirements would be free of its constraints.
        gpu = "--extra vllm" in one
        assert f"--constraint constraints{'-gpu' if gpu else ''}.txt" in one
        assert "-r pyproject.toml" in one
        assert not ({"vllm", "unsloth"} if not gpu else {"service", "slack", "postgres"}) & set(
            re.findall(r"--extra (\S+)", one)
        )
    flows = [set(re.findall(r"--extra (\S+)", one)) for one in installs if "--extra service" in one]
    assert all("s3" in one for one in flows), "or storage.url is of no use"
    assert any("ray" in one for one in flows), "or scaling.runner=ray is"
    for word, rest in instructions(name):
        if word == "FROM" and not re.match(r"(build|base)\b", rest):
            assert re.match(r"\S+:\S*\$\{\w+\}\S* AS \w+", rest), "a tag with a version"
        if word == "ARG":
            assert re.fullmatch(r"\w+=[\w.]+", rest), "a default, so that a build needs no argument"


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*")), ids=lambda path: path.name)
def test_versions_named_outside_of_the_constraints_agree_with_them(file: Path) -> None:
    if not file.is_file():
        return
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    named = re.findall(r"\b([\w.-]+)==([\w.]+)", file.read_text(errors="replace"))
    assert not [(name, version) for name, version in named if pins.get(name, version) != version]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_as_a_user_tells_its_health_and_has_no_secret(name: str) -> None:
    parts = instructions(name)
    stages = [i for i, (word, _) in enumerate(parts) if word == "FROM"]
    finals = {rest.split()[-1]: i for i, (word, rest) in enumerate(parts) if word == "FROM"}
    for stage in {"service", "worker", "trainer"} & finals.keys():
        end = next((i for i in stages if i > finals[stage]), len(parts))
        users = [rest for word, rest in parts[finals[stage] : end] if word == "USER"]
        assert users == ["10001:10001"]
    assert "HEALTHCHECK" in [word for word, _ in parts]
    for word, rest in parts:
        assert word != "ADD"
        if word in ("ENV", "ARG"):
            assert not [one for one in re.findall(r"(\w+)=", rest) if SECRET.search(one)]
    assert ("COPY", ". .") in [(word, rest) for word, rest in parts], "through .dockerignore, which names what may"
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored and "**/.env*" in ignored
    for one in ignored:
        if one.startswith("!"):
            assert (ROOT / one[1:]).exists(), one
    assert "deployments/.env" in (ROOT / ".gitignore").read_text()


# ---- what a worker's container runs ----

# Of a worker what the script has to do with: it runs flows in sessions of their own, and asks them first; Prefect's own
# ends by SIGINT alone, which it sends itself at SIGTERM, and kills them.
WORKER = f"""#!{sys.executable}
import os, signal, subprocess, sys
run = subprocess.Popen([sys.executable, "-c", os.environ["RUN"]], start_new_session=True, stdout=subprocess.PIPE)
run.stdout.readline()
signal.signal(signal.SIGTERM, lambda *_: run.terminate())
if os.environ["KIND"] == "prefect":
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
try:
    print("up", flush=True)  # and from here on the signal may come
    if os.environ["KIND"] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    run.wait(60)
    print("the run has ended", flush=True)
    sys.exit(7)
except KeyboardInterrupt:
    run.kill()
"""
RUN = """
import signal, sys, time
def save(*_):
    time.sleep(1)
    open("{saved}", "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, save)
print("up", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(not processes._PROC.is_dir(), reason="flow runs are found by /proc")
@pytest.mark.parametrize(("kind", "code"), [("ours", 7), ("killed", 137), ("prefect", 0)])
def test_a_worker_s_container_ends_with_it_and_its_flow_runs(kind: str, code: int, tmp_path: Path) -> None:
    saved, python = tmp_path / "saved", f'case "$*" in *registration*) ;; *) exec "{sys.executable}" "$@" ;; esac\n'
    for name, text in (("prefect", WORKER), ("python", f"#!/bin/sh\n{python}")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "KIND": kind}
    environ["RUN"] = RUN.format(saved=saved)
    script = ["sh", str(FOLDER / "worker.sh")]
    with subprocess.Popen(script, env=environ, stdout=subprocess.PIPE, text=True) as container:
        assert container.stdout
        assert container.stdout.readline() == "up\n"
        if kind != "killed":
            container.terminate()
        said = container.stdout.read()
    assert container.returncode == code, said
    assert saved.exists() is (kind != "prefect"), said
    assert ("the run has ended" in said) is (kind == "ours")
    assert ("save what they have" in said) is (kind == "killed"), "the script asks them itself"


# ---- compose ----


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


@pytest.mark.slow
def test_compose_s_schema_accepts_it() -> None:
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(FOLDER / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("docker"), reason="Docker isn't installed")
def test_docker_reads_it_and_asks_for_what_is_missing(tmp_path: Path) -> None:
    command = ["docker", "compose", "--file", str(FOLDER / "compose.yaml"), "--env-file"]
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("Docker's compose plug-in isn't installed")
    empty, filled = tmp_path / "empty", tmp_path / "filled"
    empty.touch()
    filled.write_text("POSTGRES_PASSWORD=planted\n")
    refused = subprocess.run([*command, str(empty), "config"], capture_output=True, text=True)
    assert refused.returncode and "POSTGRES_PASSWORD" in refused.stderr
    done = subprocess.run([*command, str(filled), "--profile", "gpu", "config"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert {port["host_ip"] for one in services.values() for port in one.get("ports", ())} == {"127.0.0.1"}


def test_compose_publishes_on_loopback_and_has_no_password_of_its_own(compose: dict[str, Any]) -> None:
    ports = [port for one in compose["services"].values() for port in one.get("ports", ())]
    assert len(ports) == 2
    assert all(port.startswith(ON_LOOPBACK) for port in ports)
    for name, service in compose["services"].items():
        assert service.get("network_mode") is None and not service.get("privileged"), name
        for variable, value in service["environment"].items():
            if SECRET.search(variable):
                assert value is None or re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}: {variable}"
    assert "://vibethinker:" not in (FOLDER / "compose.yaml").read_text(), "an address with a password"


def test_messages_of_containers_link_to_where_browsers_are(compose: dict[str, Any]) -> None:
    serves, shows = (compose["services"][name]["environment"] for name in ("worker", "prefect"))
    assert shows["PREFECT_UI_API_URL"] == f"{serves['PREFECT_UI_URL']}/api"
    [shared] = [one["data"] for _, one in resources() if one["kind"] == "ConfigMap" and "DO_NOT_TRACK" in one["data"]]
    [prefect] = [pod["containers"][0] for name, pod in pods() if name == "prefect.yaml"]
    assert {"name": "PREFECT_UI_API_URL", "value": f"{shared['PREFECT_UI_URL']}/api"} in prefect["env"]


def test_every_service_is_watched_restarted_and_waited_for(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services.keys() == {"postgres", "prefect", "mlflow", "worker", "gpu-worker"}
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        for what, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"} and what in services
        sources = {volume.partition(":")[0] for volume in service["volumes"]}
        assert {one for one in sources if not one.startswith(".")} <= compose["volumes"].keys()
        for source in (one for one in sources if one.startswith(".")):
            assert (FOLDER / source).is_file()
        if "build" not in service:
            assert re.search(r":\d+\.\d+", service["image"]), "a tag with a version"
            continue
        assert service["image"].endswith(f":${{VIBETHINKER_VERSION:-{__version__}}}")
        assert service["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert service["environment"]["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
        assert service["environment"]["PREFECT_SERVER_UI_V2_ENABLED"] == "false"
        file = (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).read_text()
        assert f" AS {service['build'].get('target', 'trainer')}\n" in file
    assert services["worker"]["depends_on"].keys() == {"prefect", "mlflow"}
    assert services["gpu-worker"]["profiles"] == ["gpu"]


def test_the_server_s_settings_are_those_of_servers_that_last(compose: dict[str, Any]) -> None:
    [lease] = [name for name in lasting(Path()) if "LEASE" in name]
    here = compose["services"]["prefect"]["environment"]
    assert here[lease] == lasting(Path())[lease]
    [prefect] = [one for path, one in resources() if (path.name, one["kind"]) == ("prefect.yaml", "Deployment")]
    [container] = prefect["spec"]["template"]["spec"]["containers"]
    assert {"name": lease, "value": here[lease]} in container["env"]


def test_the_example_names_every_variable_and_gives_no_value(compose: dict[str, Any]) -> None:
    text = (FOLDER / "compose.yaml").read_text()
    used = set(re.findall(r"\$\{(\w+)", text))
    used |= {
        name for one in compose["services"].values() for name, value in one["environment"].items() if value is None
    }
    lines = [line.lstrip("#") for line in (FOLDER / ".env.example").read_text().splitlines() if "=" in line]
    named = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    assert named.keys() == used
    assert not any(named.values())


# ---- Kubernetes ----


def resources() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in MANIFESTS:
        if path.name != "kustomization.yaml":
            yield from ((path, one) for one in yaml.safe_load_all(path.read_text()))


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, one in resources():
        if one["kind"] in ("Deployment", "StatefulSet"):
            yield path.name, one["spec"]["template"]["spec"]


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_kubernetes_schemas_accept_every_manifest(release: str) -> None:
    kinds = set()
    for _, one in resources():
        kubernetes_validate.validate(one, release, strict=True)
        kinds.add(one["kind"])
    assert {"Namespace", "ConfigMap", "Service", "Deployment", "StatefulSet", "NetworkPolicy"} <= kinds
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Service", "spec": {"port": 1}}, release, strict=True)


def test_the_kustomization_has_every_manifest_and_the_images_this_version() -> None:
    text = (FOLDER / "kubernetes" / "kustomization.yaml").read_text()
    named = re.findall(r"^  (?:# )?- (\S+\.yaml)", text, re.MULTILINE)
    assert sorted(named) == [path.name for path in MANIFESTS if path.name != "kustomization.yaml"]
    images = {container["image"] for _, pod in pods() for container in pod["containers"]}
    ours = {image for image in images if image.startswith("vibethinker-")}
    assert {f"{one['name']}:{one['newTag']}" for one in yaml.safe_load(text)["images"]} == ours
    assert {image.partition(":")[2] for image in ours} == {__version__}
    others = images - ours
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    assert others == {compose["services"]["postgres"]["image"]}
    if kubectl := shutil.which("kubectl"):
        built = subprocess.run([kubectl, "kustomize", str(FOLDER / "kubernetes")], capture_output=True, text=True)
        assert built.returncode == 0, built.stderr
        assert {one["metadata"].get("namespace", "") for one in yaml.safe_load_all(built.stdout)} == {"", "vibethinker"}


def test_pods_are_closed_watched_and_sized() -> None:
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        assert not pod.get("hostNetwork") and not pod.get("hostPID"), name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert not [port for port in container.get("ports", ()) if "hostPort" in port], name
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert {volume["name"] for volume in pod["volumes"]} <= mounted, name
    [gpu] = [pod for name, pod in pods() if name == "gpu-worker.yaml"]
    wanted = gpu["containers"][0]["resources"]
    assert wanted["requests"]["nvidia.com/gpu"] == wanted["limits"]["nvidia.com/gpu"] == 1


def test_secrets_are_referred_to_and_services_stay_inside() -> None:
    for path, one in resources():
        assert one["kind"] != "Secret", "it would be in the repository"
        if one["kind"] == "Service":
            assert one["spec"].get("type", "ClusterIP") == "ClusterIP", path.name
        if one["kind"] == "ConfigMap":
            assert not [name for name in one["data"] if SECRET.search(name)], path.name
    for name, pod in pods():
        for container in pod["containers"]:
            for variable in container.get("env", ()):
                if SECRET.search(variable["name"]):
                    assert variable["valueFrom"].keys() == {"secretKeyRef"}, f"{name}: {variable['name']}"


def test_only_what_needs_a_server_reaches_it() -> None:
    policies = {one["metadata"]["name"]: one["spec"] for _, one in resources() if one["kind"] == "NetworkPolicy"}
    assert policies["nothing-comes-in"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    labels = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for _, one in resources()
        if one["kind"] in ("Deployment", "StatefulSet")
    }
    assert "egress" not in policies["postgres"] and "Egress" in policies["postgres"]["policyTypes"]
    [source] = policies["postgres"]["ingress"][0]["from"]
    [servers] = source["podSelector"]["matchExpressions"]
    assert {name for name, found in labels.items() if found["app"] in servers["values"]} == {"prefect", "mlflow"}
    [source] = policies["servers"]["ingress"][0]["from"]
    wanted = source["podSelector"]["matchLabels"].items()
    assert {name for name, found in labels.items() if wanted <= found.items()} == {"worker", "gpu-worker"}
