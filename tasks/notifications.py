"""Messages about a run to Slack, and to whatever apprise can reach.

A message is told once: its name is claimed by a file in the run's folder before it is sent, whichever process of the
run is the first. Of one kind and profile one message is sent in `notifications.quiet_seconds`; what was left out is
told in one message by whoever is the first after that: the next message of that kind, the end of another run, or a
process that is started to wait for it (`tasks.later`). Sending has SEND_SECONDS in a thread of its own, so that neither
Slack nor a server that is asked for the webhook holds a run up; what fails is a warning in the run's log. Secrets are
taken out of every text.

Prefect's own block for Slack refuses addresses of this machine's network; prefect_slack's posts to them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tasks import quiet
from tasks.messages import Message, escape, owed_message, with_owed
from vibethinker.errors import ConfigurationError
from vibethinker.operations import Notifications
from vibethinker.redaction import redact

WEBHOOK_VARIABLE = "SLACK_WEBHOOK_URL"
POST_SECONDS = 3  # for Slack to answer
SEND_SECONDS = 6.0  # for everything, the look for the webhook included
TOLD = "told"  # of a run's folder


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
        return found if found.webhook is not None else cls(_kept_webhook(settings), found.addresses)

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


def tell(
    message: Message | None,
    settings: Notifications,
    *,
    say: Callable[[str], None],
    name: str | None = None,
    folder: Path | None = None,
    workspace: Path | None = None,
    about: str = "",
) -> None:
    """Send a message unless it was told already or comes too soon, and whatever was left out and may be told now;
    returns within SEND_SECONDS and raises nothing.

    Args:
        message: what to tell; None: only what was left out.
        settings: who is told, and how often.
        say: gets a sentence for each failure.
        name: what the message is of, in the run: it is told once by this name; without `folder` always.
        folder: of the run.
        workspace: in which rate limits are kept; without one there are none.
        about: the deployment or profile; a rate limit is for one of them and one kind of message.
    """
    done = threading.Event()
    limited = workspace if workspace is not None and workspace.is_dir() and settings.quiet_seconds > 0 else None
    title = message.title if message else "about what was left out"

    def news() -> list[Message]:
        """What is to be sent."""
        sent = []
        if message is not None and (folder is None or not name or claim(folder, name)):
            sent += _unless_too_soon(message, settings, limited, about)
        return sent + [owed_message(owed) for owed in quiet.take(limited, settings.quiet_seconds)] if limited else sent

    def attempt() -> None:
        try:
            channels = Channels.at_hand(settings)
            sent = news() if channels else None
            for one in sent or ():
                for sentence in channels.send(one):
                    say(sentence)
            if channels.webhook is not None or sent == []:
                return
            # Only now, since the server may be away: that keeps no mail back.
            try:
                kept = Channels(_kept_webhook(settings))
            except Exception as error:
                say(redact(f"Prefect's server can't be asked for Slack's webhook ({type(error).__name__}: {error})."))
                return
            for one in (news() if sent is None else sent) if kept else ():
                for sentence in kept.send(one.redacted(channels.secrets())):
                    say(sentence)
        except Exception as error:
            say(redact(f"The message {title!r} could not be sent ({type(error).__name__}: {error})."))
        finally:
            done.set()

    if message is None and not (limited and quiet.is_owed(limited, settings.quiet_seconds)):
        return
    threading.Thread(target=copy_context().run, args=(attempt,), name="notifications", daemon=True).start()
    if not done.wait(SEND_SECONDS):
        say(f"The message {title!r} was not taken within {SEND_SECONDS:g} s.")


def _unless_too_soon(message: Message, settings: Notifications, workspace: Path | None, about: str) -> list[Message]:
    """The message, with what is owed of its kind; nothing where it is left out, which another process then tells."""
    if workspace is None:
        return [message]
    due, owed, wait = quiet.ask(workspace, about, message.kind, redact(message.title), settings.quiet_seconds)
    if wait is not None:
        start_later(workspace, settings, wait)
    return [with_owed(message, owed)] if due else []


def start_later(workspace: Path, settings: Notifications, seconds: float) -> None:
    """Start a process that tells in so many seconds what is owed then, if nobody has: this one may have ended."""
    words = [str(workspace), settings.model_dump_json(), f"{seconds:.1f}"]
    subprocess.Popen(
        [sys.executable, "-m", "tasks.later", *words], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def tell_owed(workspace: Path, settings: Notifications, seconds: float) -> None:
    """Tell what is owed of all kinds of which nothing was told for `seconds`; what nobody takes goes on being owed."""
    channels = Channels.of(settings)
    for owed in quiet.take(workspace, seconds) if channels else ():
        if len(channels.send(owed_message(owed))) == len(channels):
            quiet.put_back(workspace, owed)


def claim(folder: Path, name: str) -> bool:
    """Whether nobody has told this yet in this run; from now on somebody has."""
    (folder / TOLD).mkdir(parents=True, exist_ok=True)
    try:
        (folder / TOLD / name).open("x").close()
    except FileExistsError:
        return False
    return True


def slack_block() -> Any:
    """The class of the block that keeps a webhook.

    Raises:
        ConfigurationError: prefect-slack isn't installed.
    """
    if find_spec("prefect_slack") is None:
        raise ConfigurationError("Slack needs prefect-slack: install the extra `slack` (vibethinker[slack]).")
    from prefect_slack import SlackWebhook

    return SlackWebhook


def _kept_webhook(settings: Notifications) -> Any:
    """The block's webhook; None if there is no such block."""
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value() or find_spec("prefect_slack") is None:  # else Prefect starts a server to be asked
        return None
    try:
        return slack_block().load(settings.slack_block)
    except ValueError:  # there is no such block
        return None
