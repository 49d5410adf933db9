"""Where messages go: Slack's webhook, and whatever apprise can reach. Secrets are taken out of every text.

Prefect's own block for Slack refuses addresses of this machine's network; prefect_slack's posts to them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from tasks.messages import Message, escape
from vibethinker.errors import ConfigurationError
from vibethinker.operations import Notifications
from vibethinker.redaction import redact

WEBHOOK_VARIABLE = "SLACK_WEBHOOK_URL"
POST_SECONDS = 3  # for Slack to answer


@dataclass
class Channels:
    """Where messages go: a webhook of Slack's and apprise's addresses, secrets all of them."""

    webhook: Any = None  # a prefect_slack.SlackWebhook
    addresses: list[str] = field(default_factory=list)

    @classmethod
    def at_hand(cls, settings: Notifications) -> Channels:
        """The channels that the environment names, for which nobody has to be asked."""
        from pydantic import SecretStr

        address = os.environ.get(WEBHOOK_VARIABLE)
        webhook = slack_block()(url=SecretStr(address)) if address else None
        return cls(webhook, os.environ.get(settings.apprise_variable, "").split())

    @classmethod
    def of(cls, settings: Notifications) -> Channels:
        """Them, and where they have no webhook the one of Prefect's block; may ask the server."""
        found = cls.at_hand(settings)
        return found if found.webhook is not None else cls(kept_webhook(settings), found.addresses)

    def __len__(self) -> int:
        return (self.webhook is not None) + bool(self.addresses)

    def described(self) -> str:
        """Them, without their addresses."""
        of = [f"{len(self.addresses)} addresses by apprise"] if self.addresses else []
        return " and ".join((["Slack"] if self.webhook is not None else []) + of)

    def secrets(self) -> list[str]:
        """What no message may contain."""
        return [*self.addresses, *([self.webhook.url.get_secret_value()] if self.webhook is not None else [])]

    def send(self, message: Message) -> list[str]:
        """Post to all of them; returns a sentence for each that failed."""
        message, failures = message.redacted(self.secrets()), []
        for name, post in (("Slack", self._slack), ("apprise", self._apprise)):
            try:
                reason = post(message)
            except Exception as error:
                reason = type(error).__name__ + (f": {lines[0]}" if (lines := str(error).splitlines()) else "")
            if reason:
                failures.append(
                    redact(f"{name} did not take the message {message.title!r} ({reason}).", self.secrets())
                )
        return failures

    def _slack(self, message: Message) -> str | None:
        if self.webhook is None:
            return None
        client = self.webhook.get_client(sync_client=True)
        client.timeout, client.retry_handlers = POST_SECONDS, []
        answer = client.send(text=escape(message.plain()), blocks=message.blocks(), unfurl_links=False)
        return None if answer.status_code == 200 else f"status {answer.status_code}: {str(answer.body)[:100]}"

    def _apprise(self, message: Message) -> str | None:
        if not self.addresses:
            return None
        from apprise import Apprise

        told = Apprise()
        unknown = sum(not told.add(address) for address in self.addresses)
        sent = told.notify(title=message.title, body=message.plain()) if len(told) else True
        if unknown:
            return f"{unknown} of its addresses can't be read"
        return None if sent else "an address of its failed"


def slack_block() -> Any:
    """The class of the block that keeps a webhook.

    Raises:
        ConfigurationError: prefect-slack isn't installed.
    """
    if find_spec("prefect_slack") is None:
        raise ConfigurationError("Slack needs prefect-slack: install the extra `slack` (vibethinker[slack]).")
    from prefect_slack import SlackWebhook

    return SlackWebhook


def kept_webhook(settings: Notifications) -> Any:
    """The block's webhook; None if there is no such block."""
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value() or find_spec("prefect_slack") is None:  # else Prefect starts a server to be asked
        return None
    try:
        return slack_block().load(settings.slack_block)
    except ValueError:  # there is no such block
        return None
