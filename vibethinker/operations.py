"""Settings of what surrounds a run: who is told, who approves, where tasks run and outputs are kept.

None of them changes what a step computes, so none is in a fingerprint.
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import field_validator

from vibethinker.settings import Settings, setting


class Notifications(Settings):
    """Who hears of a run. Addresses are secrets, so settings only name where they are kept.

    A webhook of Slack's comes from SLACK_WEBHOOK_URL, else from the Prefect block `slack_block`; whatever else apprise
    can reach (e-mail by mailto://, for example) from the addresses in the variable `apprise_variable`.
    """

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
            raise ValueError("has no place for credentials or options: set them in the environment")
        if url and (not parts.scheme or (parts.scheme == "file" and parts.netloc)):
            raise ValueError("is no address: write s3://bucket/prefix, or file:///folder")
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
