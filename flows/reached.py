"""The Prefect server that a command of this machine uses: the configured one, or one of its own for the time being.

Prefect is imported only after `reached` has been entered, since the server and the imports take 10 to 15 s each.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from flows.server import Server, configured_api, deliver, environment
from vibethinker.config import Config
from vibethinker.errors import BudgetError, InfrastructureError, VibeThinkerError

FULL = 1 << 20  # bytes free, below which a failure of the server's is the disk's
RETRIES = 8  # of a request to Prefect, the wait before each doubled, about 8 minutes in all


class Reached:
    """A server that answers after `wait`; `address` is the configured one's."""

    def __init__(self, config: Config, workspace: Path, stack: ExitStack) -> None:
        self._config, self._workspace, self._stack = config, workspace, stack
        self._home = workspace / "prefect"
        self.address, self._server = configured_api(), None
        if not self.address:
            self._server = Server(self._home, self._home / "server.log")
            stack.callback(self._server.close)
            os.environ.update(environment(self._home) | {"PREFECT_API_URL": self._server.url})

    def wait(self) -> None:
        """Return once a server of its own answers, and has the limits that the configuration needs."""
        if self._server:
            from tasks import session
            from tasks.leases import create_limits

            self._server.wait()
            self._server.give_way(session.GIVE_WAY)
            self._stack.enter_context(create_limits(self._config, self._home))

    @contextmanager
    def telling(self, what: str, resume: Callable[[], str]) -> Iterator[None]:
        """Tell of what ends the block how it goes on; what is the server's or the disk's fault becomes a sentence.

        Args:
            what: is run, as in `The run x`.
            resume: the command that goes on.
        """
        try:
            try:
                yield
            finally:
                if self._server:
                    deliver()
        except BudgetError as error:
            click.echo(f"{what} is paused. With a larger budget, go on by:\n  {resume()}", err=True)
            raise error
        except VibeThinkerError as error:
            click.echo(f"{what} failed. When the cause is mended, go on by:\n  {resume()}", err=True)
            raise error
        except Exception as error:  # whatever Prefect's client makes of a server or a disk that failed
            if reason := _of_the_disk(error, self._workspace):
                raise InfrastructureError(
                    f"The workspace {self._workspace} can't be written ({reason}): mend that, and go on by:\n"
                    f"  {resume()}"
                ) from error
            if not _of_the_server(error):
                raise
            reason = f"{type(error).__name__}: {str(error) or 'no message'}".splitlines()[0]
            where = f"at {self.address}" if self.address else "of the run's own"
            last = self._home / "server.log"
            mend = "see that it runs and answers" if self.address else f"its last words are in {last}"
            raise InfrastructureError(
                f"Prefect's server {where} failed the run ({reason}): {mend}, and go on by:\n  {resume()}"
            ) from error
        except KeyboardInterrupt:
            click.echo(f"{what} was interrupted. Go on by:\n  {resume()}", err=True)
            raise


@contextmanager
def reached(config: Config, workspace: Path) -> Iterator[Reached]:
    """A server for the `with` block, started now if it is to be this command's own."""
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", str(RETRIES))
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")  # the display tells the same
    logging.raiseExceptions = False  # else each line of log that a server doesn't take is told on the terminal
    with ExitStack() as stack:
        yield Reached(config, workspace, stack)


def _of_the_disk(error: Exception, workspace: Path) -> str | None:
    """Why the workspace can't be written, if that is the cause; a server whose disk is full fails without a reason."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        return error.strerror
    full = shutil.disk_usage(workspace).free < FULL
    return os.strerror(errno.ENOSPC) if full and _of_the_server(error) else None


def _of_the_server(error: Exception) -> bool:
    """Whether the server or the way to it is the cause; an unreachable one is a RuntimeError of Prefect's client."""
    import httpx
    from prefect.exceptions import PrefectHTTPStatusError

    of_client = isinstance(error, (PrefectHTTPStatusError, httpx.HTTPError))
    return of_client or str(error).startswith("Failed to reach API")
