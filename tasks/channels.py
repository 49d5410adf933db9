"""Where messages go: the channels that settings name, each found by `vibethinker.plugins`. Slack's webhook and apprise
are here. Secrets are taken out of every text.

Prefect's own block for Slack refuses addresses of this machine's network; prefect_slack's posts to them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Protocol

from tasks.messages import Message, escape
from vibethinker import plugins
from vibethinker.errors import ConfigurationError
from vibethinker.operations import Notifications
from vibethinker.redaction import redact

WEBHOOK_VARIABLE = "SLACK_WEBHOOK_URL"
POST_SECONDS = 3  # for Slack to answer
SLACK = "slack"
TITLES = {SLACK: "Slack"}  # of channels that are called otherwise in sentences


class Channel(Protocol):
    """One way to tell people. It is made by a function of Notifications, which gives None where nothing is set up."""

    def described(self) -> str:
        """It, without its addresses."""
        ...

    def secrets(self) -> Sequence[str]:
        """What no message may contain, such as addresses."""
        ...

    def send(self, message: Message) -> str | None:
        """Post a message, within seconds; why that failed, or None. What is raised counts as a failure too."""
        ...


class Slack:
    """A webhook of Slack's, as a prefect_slack.SlackWebhook."""

    def __init__(self, webhook: Any) -> None:
        self._webhook = webhook

    def described(self) -> str:
        """See `Channel`."""
        return "Slack"

    def secrets(self) -> list[str]:
        """See `Channel`."""
        return [self._webhook.url.get_secret_value()]

    def send(self, message: Message) -> str | None:
        """See `Channel`."""
        client = self._webhook.get_client(sync_client=True)
        client.timeout, client.retry_handlers = POST_SECONDS, []
        answer = client.send(text=escape(message.plain()), blocks=message.blocks(), unfurl_links=False)
        return None if answer.status_code == 200 else f"status {answer.status_code}: {str(answer.body)[:100]}"


class Apprise:
    """Addresses that apprise can reach."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = list(addresses)

    def described(self) -> str:
        """See `Channel`."""
        return f"{len(self._addresses)} addresses by apprise"

    def secrets(self) -> list[str]:
        """See `Channel`."""
        return self._addresses

    def send(self, message: Message) -> str | None:
        """See `Channel`."""
        from apprise import Apprise as Library

        told = Library()
        unknown = sum(not told.add(address) for address in self._addresses)
        sent = told.notify(title=message.title, body=message.plain()) if len(told) else True
        if unknown:
            return f"{unknown} of its addresses can't be read"
        return None if sent else "an address of its failed"


class _Broken:
    """A channel that could not be made, and says so with each message: the others must be heard."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def described(self) -> str:
        return f"nowhere ({self._error})"

    def secrets(self) -> list[str]:
        return []

    def send(self, message: Message) -> str | None:
        raise self._error


class Channels:
    """Where messages go, by the channels' names."""

    def __init__(self, some: dict[str, Channel] | None = None) -> None:
        self._some = some or {}

    @classmethod
    def at_hand(cls, settings: Notifications) -> Channels:
        """The channels that the environment names, for which nobody has to be asked."""
        found = {name: _made(name, settings) for name in settings.channels}
        return cls({name: channel for name, channel in found.items() if channel is not None})

    @classmethod
    def kept(cls, settings: Notifications) -> Channels:
        """Slack's by the block that the server keeps, if that is asked for and there is one; asks the server."""
        block = kept_webhook(settings) if SLACK in settings.channels else None
        return cls({} if block is None else {SLACK: Slack(block)})

    @classmethod
    def of(cls, settings: Notifications) -> Channels:
        """Those at hand, and where Slack is none of them the one that is kept; may ask the server."""
        found = cls.at_hand(settings)
        return found if found.has_slack else found | cls.kept(settings)

    def __or__(self, other: Channels) -> Channels:
        return Channels({**self._some, **other._some})

    def __len__(self) -> int:
        return len(self._some)

    @property
    def has_slack(self) -> bool:
        """Whether Slack is among them."""
        return SLACK in self._some

    def described(self) -> str:
        """Them, without their addresses."""
        return " and ".join(channel.described() for channel in self._some.values())

    def secrets(self) -> list[str]:
        """What no message may contain."""
        return [secret for channel in self._some.values() for secret in channel.secrets()]

    def send(self, message: Message) -> list[str]:
        """Post to all of them; returns a sentence for each that failed."""
        message, failures = message.redacted(self.secrets()), []
        for name, channel in self._some.items():
            try:
                reason = channel.send(message)
            except Exception as error:  # of whatever library carries the message
                reason = type(error).__name__ + (f": {lines[0]}" if (lines := str(error).splitlines()) else "")
            if reason:
                failures.append(
                    redact(f"{TITLES.get(name, name)} did not take the message {message.title!r} ({reason}).",
                           self.secrets())
                )  # fmt: skip
        return failures


def _made(name: str, settings: Notifications) -> Channel | None:
    try:
        return plugins.load(plugins.NOTIFICATIONS, name)(settings)
    except Exception as error:  # whatever a plugin does; it is told with each message
        return _Broken(error)


def slack(settings: Notifications) -> Slack | None:
    """The webhook that the environment names."""
    from pydantic import SecretStr

    address = os.environ.get(WEBHOOK_VARIABLE)
    return Slack(slack_block()(url=SecretStr(address))) if address else None


def apprise(settings: Notifications) -> Apprise | None:
    """The addresses that the environment names."""
    addresses = os.environ.get(settings.apprise_variable, "").split()
    return Apprise(addresses) if addresses else None


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
