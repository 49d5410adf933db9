"""`vibethinker notify`: the webhook and the automations on Prefect's server, and a message to try them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import click
from pydantic import ValidationError

from flows.server import deliver
from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.messages import explain
from vibethinker.operations import Notifications

VARIABLE = "SLACK_WEBHOOK_URL"
BLOCK = Notifications().slack_block


@click.group()
def notify() -> None:
    """Messages about runs, to Slack and by apprise.

    Example: vibethinker notify test
    """


@notify.command()
@click.option("--webhook-variable", default=VARIABLE, show_default=True, help="Environment variable with the webhook.")
@click.option("--block", default=BLOCK, show_default=True, help="Prefect block to keep it in.")
def setup(webhook_variable: str, block: str) -> None:
    """Keep Slack's webhook on Prefect's server, and register the automations that tell of runs whose machine is gone.

    Example: SLACK_WEBHOOK_URL=https://hooks.slack.com/… vibethinker notify setup
    """
    address = os.environ.get(webhook_variable, "")
    if urlsplit(address).scheme not in ("http", "https") or not urlsplit(address).hostname:
        said = "is no address" if address else "is not set"
        raise ConfigurationError(f"{webhook_variable} {said}: set it to the webhook that Slack's app settings show.")
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise ConfigurationError(
            "There is no Prefect server to keep it: start one by `vibethinker up`, and name it by PREFECT_API_URL."
        )
    from flows import automations

    with _heard():
        automations.save_webhook(address, block)
        names = automations.register(block)
    click.echo(f"The webhook at {urlsplit(address).hostname} is kept in the block {block}.")
    for name in names:
        click.echo(f"Registered the automation {name!r}.")


@notify.command()
@click.option("--block", default=BLOCK, show_default=True, help="Prefect block that keeps the webhook.")
@click.option("--apprise-variable", default=Notifications().apprise_variable, show_default=True,
              help="Environment variable with apprise URLs.")  # fmt: skip
@click.option("--channel", "channels", multiple=True, default=Notifications().channels, show_default=True,
              help="A channel to post to, a plugin's too; may be repeated.")  # fmt: skip
def test(block: str, apprise_variable: str, channels: tuple[str, ...]) -> None:
    """Post a message to every channel that is set up; exits 1 if one of them fails.

    Example: vibethinker notify test
    """
    from tasks.channels import Channels
    from tasks.messages import Message

    try:
        settings = Notifications(slack_block=block, apprise_variable=apprise_variable, channels=channels)
    except ValidationError as error:
        raise ConfigurationError(explain(error, Notifications)) from None
    with _heard():
        found = Channels.of(settings)
    if not found:
        raise InfrastructureError(
            f"There is nowhere to post to: set {VARIABLE}, run `vibethinker notify setup`, or name addresses in "
            f"{apprise_variable}."
        )
    failures = found.send(Message("test", "vibethinker can be heard", "Messages about runs will arrive here."))
    if failures:
        raise InfrastructureError(" ".join(failures))
    click.echo(f"Posted to {found.described()}.")
    deliver()


@contextmanager
def _heard() -> Iterator[None]:
    """A server that doesn't take a request is a sentence.

    Raises:
        InfrastructureError: which.
    """
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        yield
    except (httpx.HTTPError, PrefectHTTPStatusError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InfrastructureError(f"Prefect's server didn't answer ({reason}): see that it runs.") from error
