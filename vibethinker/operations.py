"""Settings of what surrounds a run: who is told, who approves, where tasks run and outputs are kept.

None of them changes what a step computes, so none is in a fingerprint.
"""

from __future__ import annotations

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
    free_worker: bool = setting(
        False, "leave the worker meanwhile (suspend) instead of staying on it (pause); deployments only", execution=True
    )
    hours: float = setting(24.0, "how long it waits; then the run fails", unit="h", gt=0, execution=True)
