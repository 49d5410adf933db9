"""Settings of how a run is carried out: on what its steps run, who is told, who approves, where outputs are kept.

None of them changes what a step computes, so none is in a fingerprint.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import parse_qs, urlsplit

from pydantic import field_validator

from vibethinker.fields import Settings, setting
from vibethinker.plugins import NOTIFICATIONS, Named

_SECRET = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS|WEBHOOK_URL)$", re.IGNORECASE)


class Worker(Settings):
    """The interpreter in which steps run, which needs no Prefect."""

    python: str | None = setting(None, "interpreter of the training environment; None is this one", execution=True)
    env: dict[str, str] = setting(dict, "environment variables added for it", execution=True)

    @field_validator("env")
    @classmethod
    def _holds_no_secret(cls, env: dict[str, str]) -> dict[str, str]:
        if found := next((name for name in env if _SECRET.search(name)), None):
            raise ValueError(
                f"worker.env.{found} would be recorded with the run: set it in the environment of the run, which its "
                "steps inherit"
            )
        return env


class Vllm(Settings):
    """How vLLM runs where it samples."""

    memory: float = setting(
        0.9, "share of the GPU's memory it takes where it has the GPU alone", gt=0, le=1, execution=True
    )
    shared_memory: float = setting(0.4, "share it takes beside a trainer, in signal stages", gt=0, lt=1, execution=True)
    sleep: bool = setting(
        False, "give its memory back while the trainer computes, and take it again; needed for long contexts",
        execution=True,
    )  # fmt: skip
    eager: bool = setting(False, "start without compiling: sooner ready, slower after", execution=True)


class TrainerCheckpoints(Settings):
    """The state of a training under way, from which a killed one goes on."""

    seconds: float = setting(
        60, "least time between two, more where saving takes over 2 % of it; 0: after each update", unit="s", ge=0,
        execution=True,
    )  # fmt: skip
    keep: int = setting(2, "newest ones that are kept", ge=1, execution=True)
    every: int | None = setting(
        None, "updates after which one is saved in any case, and kept until the step is done", ge=1, execution=True
    )


class Divergence(Settings):
    """When a training counts as diverged, what is kept then, and whether it may go back.

    A loss or gradient that is NaN or infinite always counts. The bounds are far from what sound trainings show: a false
    halt costs money too. None of these is in a fingerprint: they decide whether a training ends, and what it computes
    only where it would have ended; the manifest says so then, with the rates.
    """

    window: int = setting(
        20, "updates in a row that have to show a sign, and first updates whose means later ones are held to",
        unit="steps", ge=1, execution=True,
    )  # fmt: skip
    entropy: float | None = setting(
        0.02, "share of the entropy at first below which the policy has collapsed; None: never. Plain GRPO is known to "
        "fall to some hundredths and to go on learning", gt=0, lt=1, execution=True,
    )  # fmt: skip
    truncated: float | None = setting(
        0.9, "share of truncated rollouts from which lengths have run away, if it was below half of that at first; "
        "None: never", gt=0, le=1, execution=True,
    )  # fmt: skip
    repeating: float | None = setting(
        0.5, "share of rollouts ending in a loop from which repetition has run away, if it was below half of that at "
        "first; None: never", gt=0, le=1, execution=True,
    )  # fmt: skip
    all_wrong: int = setting(
        20, "updates in a row without a right rollout, where the accuracy before makes that no accident; 0: never",
        unit="steps", ge=0, execution=True,
    )  # fmt: skip
    all_right: int = setting(
        100, "updates in a row without a wrong rollout; 0: never. Many, since a small stage may end so",
        unit="steps", ge=0, execution=True,
    )  # fmt: skip
    rollbacks: int = setting(
        0, "how often a training may go back to its last healthy checkpoint instead of halting", ge=0, execution=True
    )
    rollback_rate: float = setting(
        0.5, "what all learning rates are multiplied by each time", gt=0, lt=1, execution=True
    )


class Execution(Settings):
    """How, never what."""

    device: Literal["auto", "cpu", "cuda"] = setting("auto", "where steps compute", execution=True)
    slots: int | None = setting(None, "steps that run at once; None: 2 on a CPU, one a GPU", ge=1, execution=True)
    threads: int | None = setting(None, "CPU threads a step; None: cores / slots", ge=1, execution=True)
    generation_batch: int | None = setting(
        None, "completions decoded at once; None: 1024 by vLLM, else 256", unit="sequences", ge=1, execution=True
    )
    engine: Literal["auto", "transformers", "vllm"] = setting(
        "auto", "what samples completions; auto is vLLM where it is installed and there is a GPU", execution=True
    )
    vllm: Vllm = setting(Vllm, "how vLLM runs", execution=True)
    gradient_checkpointing: bool | None = setting(
        None, "compute activations again in the backward pass; None: on a GPU where they would not fit", execution=True
    )
    steps_per_gpu: int = setting(
        1, "specialists, probes and evaluations (and signal stages, by `stages_share`) that share one GPU", ge=1,
        execution=True,
    )  # fmt: skip
    stages_share: bool = setting(
        False, "a signal stage takes one share of a GPU (one of `steps_per_gpu`) or one of the CPU's slots, and not "
        "all of them: for an experiment's runs side by side with a small model", execution=True,
    )  # fmt: skip
    processes: int = setting(
        1, "processes of one training step, each on a GPU of its own (or a part of the CPU)", ge=1, execution=True
    )
    nodes: int = setting(
        1, "machines over which those processes are spread evenly; the others run `vibethinker join`", ge=1,
        execution=True,
    )  # fmt: skip
    main_address: str | None = setting(
        None, "where the other machines reach this one; None: by its name", execution=True
    )
    sharding: Literal["ddp", "fsdp"] = setting(
        "ddp", "several processes: each holds the whole model (DDP), or a part of it (FSDP2)", execution=True
    )
    checkpoints: TrainerCheckpoints = setting(TrainerCheckpoints, "the state of a training under way", execution=True)
    divergence: Divergence = setting(Divergence, "when a training counts as diverged", execution=True)
    stall_seconds: float = setting(600, "silence after which a step counts as stalled", unit="s", gt=0, execution=True)
    timeout_seconds: float | None = setting(
        None, "most that one start of a step may take; it then saves what it has and the run fails", unit="s", gt=0,
        execution=True,
    )  # fmt: skip
    stop_seconds: float = setting(
        30, "most that a step that is asked to stop may take to save what it has; then it is killed. A large model "
        "needs more, and what stops the run must wait as long: Prefect's process worker kills a cancelled flow after "
        "30 s", unit="s", gt=0, execution=True,
    )  # fmt: skip
    retries: int = setting(3, "attempts after an infrastructure failure", ge=0, execution=True)
    retry_seconds: float = setting(
        15, "wait before the first of them, doubled each time, give or take a half at random", unit="s", ge=0,
        execution=True,
    )  # fmt: skip
    gpu: str | None = setting(None, "GPU that `plan` estimates for, for example `H100`", execution=True)
    price: float | None = setting(
        None, "price of one GPU, or of the machine where steps compute on its CPU", unit="USD an hour", ge=0,
        execution=True,
    )  # fmt: skip


class Tracking(Settings):
    """MLflow."""

    uri: str | None = setting(
        None, "tracking server; None: MLFLOW_TRACKING_URI, else SQLite in the workspace", execution=True
    )
    experiment: str = setting("vibethinker", "name of the experiment", execution=True)
    registered_model: str | None = setting(None, "registry name of the final model; None: vibethinker-<profile>")
    benchmark: str | None = setting(
        None, "evaluation set on which a model must beat the registry's champion to take its place; None: all of them",
        execution=True,
    )  # fmt: skip
    system_seconds: float = setting(
        10.0, "time between two samples of what the machine is doing; 0 is off", unit="s", ge=0, execution=True
    )

    @field_validator("uri")
    @classmethod
    def _holds_no_secret(cls, uri: str | None) -> str | None:
        parts = urlsplit(uri or "")
        if parts.password or "password" in parse_qs(parts.query):
            raise ValueError(
                "tracking.uri has a password, which would be recorded with the run: set MLFLOW_TRACKING_URI instead"
            )
        return uri


class Notifications(Settings):
    """Who hears of a run. Addresses are secrets, so settings only name where they are kept.

    A webhook of Slack's comes from SLACK_WEBHOOK_URL, else from the Prefect block `slack_block`; whatever else apprise
    can reach (e-mail by mailto://, for example) from the addresses in the variable `apprise_variable`.
    """

    channels: tuple[Annotated[str, Named(NOTIFICATIONS)], ...] = setting(
        ("slack", "apprise"), "where messages go, each where its address is at hand; a plugin's by its name",
        execution=True,
    )  # fmt: skip
    slack_block: str = setting(
        "vibethinker",
        "Prefect block (prefect_slack.SlackWebhook) that `vibethinker notify setup` makes",
        execution=True,
    )
    apprise_variable: str = setting(
        "VIBETHINKER_APPRISE_URLS", "environment variable with apprise URLs, separated by white space", execution=True
    )
    success: bool = setting(False, "tell of completed runs too, not only of what needs somebody", execution=True)
    quiet_seconds: float = setting(
        60, "least time between two messages of one kind about one profile; sooner ones are left out, approvals never",
        unit="s", ge=0, execution=True,
    )  # fmt: skip


class Approvals(Settings):
    """Where a run waits for somebody who looks at what it has achieved, in Prefect's UI."""

    signal: bool = setting(False, "wait before the signal phase, which costs most", execution=True)
    promotion: bool = setting(False, "wait before the final model is registered", execution=True)
    hours: float = setting(24.0, "how long it waits; then the run fails", unit="h", gt=0, execution=True)


class Budget(Settings):
    """What a run may spend, its earlier starts included, before it pauses: before a step that would exceed it by the
    plan's estimate, and within a step once it is spent. The same command with a larger budget goes on."""

    hours: float | None = setting(None, "time in which steps run; None: any", unit="h", gt=0, execution=True)
    usd: float | None = setting(None, "money, by execution.price; None: any", unit="USD", gt=0, execution=True)


class Storage(Settings):
    """Where outputs are kept beside the workspace, so that other machines can go on from them.

    Credentials are no settings: fsspec takes them from the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE,
    AWS_ENDPOINT_URL, an instance's role …).
    """

    url: str | None = setting(
        None, "address of the shared store, as fsspec writes it: s3://bucket/prefix, file:///mnt/store", execution=True
    )

    @field_validator("url")
    @classmethod
    def _holds_no_secret(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "")
        if "@" in parts.netloc or parts.query:
            raise ValueError("storage.url has no place for credentials or options: set them in the environment")
        if url and (not parts.scheme or (parts.scheme == "file" and parts.netloc)):
            raise ValueError(f"storage.url {url!r} is no address: write s3://bucket/prefix, or file:///folder")
        return url


class Ray(Settings):
    """The Ray cluster on which specialists, probes and evaluations run where `runner` is `ray`."""

    address: str | None = setting(
        None, "of a running cluster: host:6379, ray://host:10001, or `auto` on one of its machines; None: a cluster on "
        "this machine for the run's time",
        execution=True,
    )  # fmt: skip
    cpus: float = setting(1.0, "CPUs that a step takes of the cluster's; its threads", gt=0, execution=True)
    workspace: str | None = setting(
        None, "workspace on the cluster's machines, where they don't see the run's; needs storage.url", execution=True
    )


class Scaling(Settings):
    """What runs the steps of one run."""

    runner: Literal["threads", "ray"] = setting(
        "threads", "threads of the flow's process, on this machine; or tasks on a Ray cluster", execution=True
    )
    ray: Ray = setting(Ray, "the cluster", execution=True)
    leases: bool = setting(
        True, "lease this host's GPUs through Prefect's limits; off where Kubernetes or another scheduler gives a run "
        "GPUs of its own", execution=True,
    )  # fmt: skip
