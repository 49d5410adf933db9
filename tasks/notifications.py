"""Messages about a run to Slack, and to whatever apprise can reach.

A message is told once: its name is claimed by a file in the run's folder before it is sent, whichever process of the
run is the first. Of one kind and profile one message is sent in `notifications.quiet_seconds`; what was left out is
told in one message by whoever is the first after that: the next message of that kind, the end of another run, or a
process that is started to wait for it (`tasks.later`). Sending has SEND_SECONDS in a thread of its own, so that neither
Slack nor a server that is asked for the webhook holds a run up; what fails is a warning in the run's log.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path

from tasks import quiet
from tasks.channels import Channels
from tasks.messages import Message, owed_message, with_owed
from tasks.quiet import Owed
from vibethinker.operations import Notifications
from vibethinker.redaction import redact

SEND_SECONDS = 6.0  # for everything, the look for the webhook included
TOLD = "told"  # of a run's folder


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
    news = _News(limited, settings)

    def gather() -> None:
        """Find what is to be sent."""
        if message is not None and (folder is None or not name or claim(folder, name)):
            news.add(message, about)
        news.add_owed()

    def deliver() -> None:
        channels = Channels.at_hand(settings)
        if channels:
            gather()
            for sentence in news.sent_to(channels):
                say(sentence)
        if channels.has_slack or (channels and not news):
            return
        # Only now, since the server may be away: that keeps no mail back.
        try:
            kept = Channels.kept(settings)
        except Exception as error:  # of Prefect's client; no run fails for a message
            say(redact(f"Prefect's server can't be asked for Slack's webhook ({type(error).__name__}: {error})."))
            return
        if kept and not channels:
            gather()
        for sentence in news.sent_to(kept, channels.secrets()) if kept else ():
            say(sentence)

    def attempt(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # this thread has nobody else to tell it
            say(redact(f"The message {title!r} could not be sent ({type(error).__name__}: {error})."))

    def whole() -> None:
        attempt(deliver)
        attempt(news.end)
        done.set()

    if message is None and not (limited and quiet.is_owed(limited, settings.quiet_seconds)):
        return
    threading.Thread(target=copy_context().run, args=(whole,), name="notifications", daemon=True).start()
    if not done.wait(SEND_SECONDS):
        say(f"The message {title!r} was not taken within {SEND_SECONDS:g} s.")
        attempt(news.end)


class _News:
    """What is to be sent. What was left out before, and nobody takes in time, goes on being owed: else it would be lost
    where a channel is away, or with this process."""

    def __init__(self, workspace: Path | None, settings: Notifications) -> None:
        self._workspace, self._settings = workspace, settings
        self._all: list[tuple[Message | None, Owed | None]] = []
        self._untold: list[Owed] = []
        self._ended, self._lock = False, threading.Lock()

    def __len__(self) -> int:
        return len(self._all)

    def add(self, message: Message, about: str) -> None:
        """The message, with what is owed of its kind; where it comes too soon it is left out."""
        if self._workspace is None:
            self._all.append((message, None))
            return
        seconds = self._settings.quiet_seconds
        due, owed, wait = quiet.ask(self._workspace, about, message.kind, redact(message.title), seconds)
        self._tell_later(wait)
        if due:
            self._keep(message, owed)

    def add_owed(self) -> None:
        """What is owed of all kinds."""
        for owed in quiet.take(self._workspace, self._settings.quiet_seconds) if self._workspace else ():
            self._keep(None, owed)

    def sent_to(self, channels: Channels, secrets: Sequence[str] = ()) -> Iterator[str]:
        """Post it, without these secrets; yields a sentence for each channel that failed."""
        for message, owed in self._all:
            with self._lock:
                owed = None if self._ended else owed
            if message is None and owed is None:
                continue
            shown = with_owed(message, owed) if message else owed_message(owed)
            failures = channels.send(shown.redacted(secrets))
            with self._lock:
                if owed in self._untold and len(failures) < len(channels):
                    self._untold.remove(owed)
            yield from failures

    def end(self) -> None:
        """Owe again what nobody has taken; from now on it isn't sent from here."""
        with self._lock:
            self._ended, untold, self._untold = True, self._untold, []
        for owed in untold:
            assert self._workspace
            self._tell_later(quiet.put_back(self._workspace, owed, self._settings.quiet_seconds))

    def _keep(self, message: Message | None, owed: Owed | None) -> None:
        with self._lock:
            self._all.append((message, owed))
            self._untold += [owed] if owed else []

    def _tell_later(self, seconds: float | None) -> None:
        """Have another process tell what is owed, if it is wanted in so many seconds."""
        if seconds is not None:
            assert self._workspace
            start_later(self._workspace, self._settings, seconds)


def start_later(workspace: Path, settings: Notifications, seconds: float) -> None:
    """Start a process that tells in so many seconds what is owed then, if nobody has: this one may have ended."""
    words = [str(workspace), settings.model_dump_json(), f"{seconds:.1f}"]
    subprocess.Popen(
        # -P: else Python looks for the module in the current folder first, where `tasks` may be the user's own.
        [sys.executable, "-P", "-m", "tasks.later", *words], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def tell_owed(workspace: Path, settings: Notifications, seconds: float) -> None:
    """Tell what is owed of all kinds of which nothing was told for `seconds`; what nobody takes goes on being owed."""
    channels = Channels.at_hand(settings)
    if not channels.has_slack:
        with suppress(Exception):  # a server that went with its run keeps no mail back
            channels |= Channels.kept(settings)
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
