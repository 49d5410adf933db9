"""Messages about a run to Slack, and to whatever apprise can reach.

A message is told once: its name is claimed by a file in the run's folder before it is sent, whichever process of the
run is the first. Of one kind and profile one message is sent in `notifications.quiet_seconds`; the next one says how
many were left out. Sending has SEND_SECONDS in a thread of its own, so that neither Slack nor a server that is asked
for the webhook holds a run up; what fails is a warning in the run's log. Secrets are taken out of every text.

Prefect's own block for Slack refuses addresses of this machine's network; prefect_slack's posts to them.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vibethinker import locks
from vibethinker.artifacts import write_json
from vibethinker.errors import ConfigurationError
from vibethinker.operations import Notifications
from vibethinker.redaction import redact

WEBHOOK_VARIABLE = "SLACK_WEBHOOK_URL"
POST_SECONDS = 3  # for Slack to answer
SEND_SECONDS = 6.0  # for everything, the look for the webhook included
TOLD, QUIET = "told", "notifications.json"  # of a run's folder; of a workspace
# Slack's limits, in characters, less some for the marks around a text.
HEADER, FIELD, SECTION, CONTEXT = 150, 2000, 2900, 2900


@dataclass(frozen=True)
class Message:
    """What is told: `title` in one line, `text` in a sentence or more, and what there is to look at.

    `kind` is what rate limits count (failure, crash, cancellation, diverged, approval, success, test). `excerpt` is
    shown as it is, such as the last lines of a log; `links` are pairs of a name and an address or a path; `command` is
    the one that resumes.
    """

    kind: str
    title: str
    text: str
    fields: Sequence[tuple[str, str]] = ()
    excerpt: str = ""
    command: str = ""
    links: Sequence[tuple[str, str]] = ()

    def redacted(self, secrets: Sequence[str] = ()) -> Message:
        """The message without secrets; see `vibethinker.redaction`."""

        def shown(pairs: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
            return tuple((name, redact(value, secrets)) for name, value in pairs)

        texts = {name: redact(getattr(self, name), secrets) for name in ("title", "text", "excerpt", "command")}
        return replace(self, **texts, fields=shown(self.fields), links=shown(self.links))

    def plain(self) -> str:
        """The message without Slack's form, for its fallback and for mails."""
        lines = [self.title, self.text, *(f"{name}: {value}" for name, value in (*self.fields, *self.links))]
        lines += ["", self.excerpt] if self.excerpt else []
        lines += ["", "Go on by:", f"  {self.command}"] if self.command else []
        return "\n".join(lines)

    def blocks(self) -> list[dict[str, Any]]:
        """The message in Slack's Block Kit."""
        made: list[dict[str, Any]] = [
            {"type": "header", "text": {"type": "plain_text", "text": _cut(self.title, HEADER)}}
        ]
        made.append(_section(_escape(_cut(self.text, SECTION))))
        if self.fields:
            cells = [f"*{_escape(name)}*\n{_escape(_cut(value, FIELD - 100))}" for name, value in self.fields[:10]]
            made.append({"type": "section", "fields": [{"type": "mrkdwn", "text": cell} for cell in cells]})
        if self.excerpt:
            made.append(_section(_code(self.excerpt, keep_end=True)))
        if self.command:
            made.append(_section("Go on by:\n" + _code(self.command)))
        if self.links:
            text = "  ·  ".join(_link(name, where) for name, where in self.links)
            made.append({"type": "context", "elements": [{"type": "mrkdwn", "text": _cut(text, CONTEXT)}]})
        return made


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

    def __bool__(self) -> bool:
        return self.webhook is not None or bool(self.addresses)

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
        answer = client.send(text=_escape(message.plain()), blocks=message.blocks(), unfurl_links=False)
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
    message: Message,
    settings: Notifications,
    *,
    say: Callable[[str], None],
    name: str | None = None,
    folder: Path | None = None,
    workspace: Path | None = None,
    about: str = "",
) -> None:
    """Send a message unless it was told already or comes too soon; returns within SEND_SECONDS and raises nothing.

    Args:
        message: what to tell.
        settings: who is told, and how often.
        say: gets a sentence for each failure.
        name: what the message is of, in the run: it is told once by this name; without `folder` always.
        folder: of the run.
        workspace: in which rate limits are kept; without one there are none.
        about: the deployment or profile; a rate limit is for one of them and one kind of message.
    """
    done = threading.Event()

    def news() -> Message | None:
        """What is to be sent, if it wasn't told already and doesn't come too soon."""
        if folder is not None and name and not claim(folder, name):
            return None
        due, left_out = _due(workspace, f"{about} {message.kind}", settings.quiet_seconds)
        return _with(message, left_out) if due else None

    def attempt() -> None:
        try:
            channels = Channels.at_hand(settings)
            sent = news() if channels else None
            if sent is not None:
                for sentence in channels.send(sent):
                    say(sentence)
            if channels.webhook is not None or (channels and sent is None):
                return
            # Only now, since the server may be away: that keeps no mail back.
            try:
                kept = Channels(_kept_webhook(settings))
            except Exception as error:
                say(redact(f"Prefect's server can't be asked for Slack's webhook ({type(error).__name__}: {error})."))
                return
            if kept and (sent := sent or news()) is not None:
                for sentence in kept.send(sent.redacted(channels.secrets())):
                    say(sentence)
        except Exception as error:
            say(redact(f"The message {message.title!r} could not be sent ({type(error).__name__}: {error})."))
        finally:
            done.set()

    threading.Thread(target=copy_context().run, args=(attempt,), name="notifications", daemon=True).start()
    if not done.wait(SEND_SECONDS):
        say(f"The message {message.title!r} was not taken within {SEND_SECONDS:g} s.")


def claim(folder: Path, name: str) -> bool:
    """Whether nobody has told this yet in this run; from now on somebody has."""
    (folder / TOLD).mkdir(parents=True, exist_ok=True)
    try:
        (folder / TOLD / name).open("x").close()
    except FileExistsError:
        return False
    return True


def _due(workspace: Path | None, key: str, quiet: float) -> tuple[bool, int]:
    """Whether enough time has passed since the last one of this key, and how many were left out since then."""
    if workspace is None or not workspace.is_dir() or quiet <= 0:
        return True, 0
    with locks.held(workspace / "locks" / "notifications"):
        path = workspace / QUIET
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        last, now = known.get(key, {"at": 0.0, "left_out": 0}), time.time()
        due = not 0 <= now - last["at"] < quiet  # a clock that was set back is no reason to be silent
        known[key] = {"at": now, "left_out": 0} if due else {**last, "left_out": last["left_out"] + 1}
        write_json(path, known)
    return due, last["left_out"] if due else 0


def _with(message: Message, left_out: int) -> Message:
    if not left_out:
        return message
    note = ("Left out", f"{left_out} more of this kind, soon after the last one")
    return replace(message, fields=(*message.fields, note))


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


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def _code(text: str, keep_end: bool = False) -> str:
    """A code block; what is too long loses its beginning, if its end is what matters, or else its end."""
    shown = _escape(text).replace("```", "'''")
    shown = "…" + shown[-SECTION:] if keep_end and len(shown) > SECTION else _cut(shown, SECTION)
    return f"```\n{shown}\n```"


def _link(name: str, where: str) -> str:
    address = where.startswith(("http://", "https://"))
    return (
        f"<{_escape(where).replace('|', '%7C')}|{_escape(name)}>" if address else f"{_escape(name)}: `{_escape(where)}`"
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _escape(text: str) -> str:
    """What Slack reads as marks of its own."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
