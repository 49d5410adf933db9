"""What is told about a run, in Slack's form and as plain lines, and what stands for messages that were left out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tasks.quiet import Owed
from vibethinker.redaction import redact

# Slack's limits, in characters, less some for the marks around a text.
HEADER, FIELD, SECTION, CONTEXT = 150, 2000, 2900, 2900
# Others take an s.
MANY = {"budget": "pauses by a budget", "crash": "crashes", "diverged": "divergences", "success": "successes"}


@dataclass(frozen=True)
class Message:
    """What is told: `title` in one line, `text` in a sentence or more, and what there is to look at.

    `kind` is what rate limits count (failure, crash, cancellation, diverged, approval, budget, success, test).
    `excerpt` is shown as it is, such as the last lines of a log; `links` are pairs of a name and an address or a path;
    `command` is the one that resumes.
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
        made.append(_section(escape(_cut(self.text, SECTION))))
        if self.fields:
            cells = [f"*{escape(name)}*\n{escape(_cut(value, FIELD - 100))}" for name, value in self.fields[:10]]
            made.append({"type": "section", "fields": [{"type": "mrkdwn", "text": cell} for cell in cells]})
        if self.excerpt:
            made.append(_section(_code(self.excerpt, keep_end=True)))
        if self.command:
            made.append(_section("Go on by:\n" + _code(self.command)))
        if self.links:
            text = "  ·  ".join(_link(name, where) for name, where in self.links)
            made.append({"type": "context", "elements": [{"type": "mrkdwn", "text": _cut(text, CONTEXT)}]})
        return made


def with_owed(message: Message, owed: Owed | None) -> Message:
    """The message with what was left out of its kind before it."""
    if owed is None:
        return message
    note = ("Left out before", f"{owed.number} more since {_clock(owed)}: {', '.join(_titles(owed))}")
    return replace(message, fields=(*message.fields, note))


def owed_message(owed: Owed) -> Message:
    """The message that stands for those that were left out."""
    what = owed.kind if owed.number == 1 else MANY.get(owed.kind, f"{owed.kind}s")
    return Message(
        kind=owed.kind,
        title=f"{owed.number} more {what} of {owed.about} since {_clock(owed)}",
        text="Too soon after another one to be told each by itself (notifications.quiet_seconds).",
        excerpt="\n".join(_titles(owed)),
    )


def _clock(owed: Owed) -> str:
    return time.strftime("%H:%M:%S", time.localtime(owed.since))


def _titles(owed: Owed) -> list[str]:
    return [*owed.titles, *(["…"] if owed.number > len(owed.titles) else [])]


def _section(text: str) -> dict[str, Any]:
    return {"type": "section", "text": {"type": "mrkdwn", "text": text}}


def _code(text: str, keep_end: bool = False) -> str:
    """A code block; what is too long loses its beginning, if its end is what matters, or else its end."""
    shown = escape(text).replace("```", "'''")
    shown = "…" + shown[-SECTION:] if keep_end and len(shown) > SECTION else _cut(shown, SECTION)
    return f"```\n{shown}\n```"


def _link(name: str, where: str) -> str:
    address = where.startswith(("http://", "https://"))
    return f"<{escape(where).replace('|', '%7C')}|{escape(name)}>" if address else f"{escape(name)}: `{escape(where)}`"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def escape(text: str) -> str:
    """What Slack reads as marks of its own."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
