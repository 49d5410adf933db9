"""The command line: a group whose commands live in `vibethinker.commands`, and in other packages by entry point.

An error that this project raises on purpose becomes one sentence on stderr and its exit code: 1 for a failed run or
check, 2 for bad usage or configuration.
"""

from __future__ import annotations

import errno
import importlib
import sys
from importlib import metadata
from typing import Any

import click

from vibethinker import __version__
from vibethinker.errors import VibeThinkerError

COMMANDS = {
    "plan": "vibethinker.commands.inspect:plan",
    "doctor": "vibethinker.commands.doctor:doctor",
    "status": "vibethinker.commands.inspect:status",
    "logs": "vibethinker.commands.inspect:logs",
    "report": "vibethinker.commands.inspect:report",
    "validate": "vibethinker.commands.inspect:validate",
    "gc": "vibethinker.commands.gc:gc",
    "join": "vibethinker.commands.join:join",
    "data": "vibethinker.commands.data:data",
    "train-specialist": "vibethinker.commands.train:train_specialist",
    "probe": "vibethinker.commands.probe:probe",
    "fuse": "vibethinker.commands.fuse:fuse",
    "signal": "vibethinker.commands.train:signal",
    "evaluate": "vibethinker.commands.evaluate:evaluate",
    "export": "vibethinker.commands.export:export",
    "compare": "vibethinker.commands.compare:compare",
    "generate": "vibethinker.commands.generate:generate",
    "grade": "vibethinker.commands.grade:grade",
}


class Group(click.Group):
    """Commands are imported when they are asked for, or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands of the library, after those that other packages add."""
        return [*sorted(e.name for e in _added()), *COMMANDS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of this name.

        Raises:
            click.UsageError: there is none.
        """
        for entry in _added():
            if entry.name == name:
                try:
                    return entry.load()
                except ModuleNotFoundError as error:
                    return _missing(name, error.name or "")
        if name not in COMMANDS:
            from vibethinker.messages import did_you_mean

            raise click.UsageError(f"There is no command {name!r}; {did_you_mean(name, self.list_commands(ctx))}.", ctx)
        module, _, attribute = COMMANDS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vibethinker")
def cli() -> None:
    """Train small reasoning models by the VibeThinker recipe.

    Example: vibethinker run --profile tiny
    """


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    try:
        code = cli.main(args=arguments, prog_name="vibethinker", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except VibeThinkerError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO):
            raise
        click.echo(f"Error: {error.filename or 'a file'} can't be written ({error.strerror}): make room, "
                   "see to the disk, or choose another folder.", err=True)  # fmt: skip
        sys.exit(2)
    if isinstance(code, int) and code:  # what a command's `Exit` becomes without click's standalone mode
        sys.exit(code)


def _added() -> list[Any]:
    return list(metadata.entry_points(group="vibethinker.commands"))


def _missing(name: str, module: str) -> click.Command:
    @click.command(name, short_help=f"(needs {module}, which isn't installed)",
                   context_settings={"ignore_unknown_options": True})  # fmt: skip
    @click.argument("arguments", nargs=-1)
    def missing(arguments: tuple[str, ...]) -> None:
        raise click.UsageError(
            f"`vibethinker {name}` needs {module}, which isn't installed: install vibethinker[service,train]."
        )

    return missing
