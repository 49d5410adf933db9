"""The options that `run`, `plan` and others share: which configuration, which workspace, what takes whose place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from vibethinker import config as configuration
from vibethinker.config import Config
from vibethinker.errors import ConfigurationError
from vibethinker.plan import Plan, build
from vibethinker.settings import Sandbox

Function = TypeVar("Function", bound=Callable[..., Any])

workspace_option = click.option(
    "--workspace", metavar="DIR", help="Folder of artifacts and runs [VIBETHINKER_WORKSPACE, else ./workspace]."
)


def configuration_options(function: Function) -> Function:
    """--profile, --config and --set."""
    for option in (
        click.option("--set", "overrides", multiple=True, metavar="A.B=V", help="Override one setting; repeatable."),
        click.option("--config", "file", metavar="FILE", help="YAML file laid over the profile."),
        click.option("--profile", metavar="NAME", help="Profile to start from [tiny]."),
    ):
        function = option(function)
    return function


def plan_options(function: Function) -> Function:
    """All that determines a plan."""
    for option in (
        click.option("--from", "replaced", multiple=True, metavar="STEP=PATH",
                     help="A model folder that takes the place of a step's output; repeatable."),
        click.option("--refresh", multiple=True, metavar="STEP", help="Run a step again; repeatable."),
        workspace_option,
    ):  # fmt: skip
        function = option(function)
    return configuration_options(function)


def allowed_sandbox(config: Config, allow_unsafe: bool) -> Sandbox:
    """The sandbox of a command that runs programs; a profile's leave to do without isn't the user's."""
    said = config.sandbox.allow_unsafe and not configuration.load(config.profile).sandbox.allow_unsafe
    return config.sandbox.model_copy(update={"allow_unsafe": allow_unsafe or said})


def many_values(*options: str) -> type[click.Command]:
    """A command whose `options` take every value up to the next option, as in `--against A B`."""

    class Command(click.Command):
        def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
            spread: list[str] = []
            taking = None
            for arg in args:
                if arg in options:
                    taking = arg
                elif taking and not arg.startswith("-"):
                    spread += [taking, arg]
                else:
                    taking = None
                    spread.append(arg)
            return super().parse_args(ctx, spread)

    return Command


class Planned(NamedTuple):
    """What the options of `plan_options` amount to."""

    config: Config
    plan: Plan
    refresh: frozenset[str]


def planned(
    profile: str | None, file: str | None, overrides: tuple[str, ...], workspace: str | None,
    refresh: tuple[str, ...], replaced: tuple[str, ...],
) -> Planned:  # fmt: skip
    """The plan that the options describe.

    Raises:
        ConfigurationError, DataError: one sentence on what is wrong.
    """
    config = configuration.load(profile, file, overrides)
    folders = {}
    for text in replaced:
        step, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigurationError(f"--from takes STEP=PATH such as fusion=my-model, not {text!r}.")
        folders[step] = str(Path(path).expanduser().absolute())
    plan = build(config, configuration.workspace(workspace), folders)
    for step_id in refresh:
        plan[step_id]
    return Planned(config, plan, frozenset(refresh))
