"""A notification: each message as JSON to an address of one's own. Used by naming `webhook` in
`notifications.channels`, with the address in EXAMPLE_WEBHOOK_URL.
"""

import os
from typing import Any

import httpx

from vibethinker.operations import Notifications

SECONDS = 3.0


class Webhook:
    """See `tasks.channels.Channel`."""

    def __init__(self, address: str) -> None:
        self._address = address

    def described(self) -> str:
        """Where it posts to, without the address."""
        return "a webhook"

    def secrets(self) -> list[str]:
        """The address, which may hold a key."""
        return [self._address]

    def send(self, message: Any) -> str | None:
        """Post the message; why that failed, or None."""
        told = {"kind": message.kind, "title": message.title, "text": message.plain()}
        answer = httpx.post(self._address, json=told, timeout=SECONDS)
        return None if answer.is_success else f"status {answer.status_code}"


def webhook(settings: Notifications) -> Webhook | None:
    """The channel, where the environment has its address."""
    address = os.environ.get("EXAMPLE_WEBHOOK_URL")
    return Webhook(address) if address else None
