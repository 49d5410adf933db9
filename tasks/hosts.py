"""The worker hosts of this process: one an interpreter and environment, started when the first step needs it.

A run has its own. The runs of an experiment share them, since a host's imports take longer than a small step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from vibethinker import hardware
from vibethinker.config import Config
from vibethinker.errors import PreemptedError
from vibethinker.redaction import clean
from vibethinker.worker.host import Host

Key = tuple[str | None, tuple[tuple[str, str], ...], bool]


class Hosts:
    """Hosts that write into `log`; `warn` is told what the user should read."""

    def __init__(self, log: Path, warn: Callable[[str], None]) -> None:
        self._log, self._warn = log, warn
        self._starting = threading.Lock()
        self._hosts: dict[Key, Host] = {}
        self._closed = False

    def of(self, config: Config) -> Host:
        """The host for steps of this configuration; a new one where the last one's server has died, so that a retry can
        succeed.

        Raises:
            PreemptedError: they have been closed.
        """
        worker, fork = config.worker, hardware.can_fork(config)
        key = worker.python, tuple(sorted(worker.env.items())), fork
        with self._starting:
            if self._closed:
                raise PreemptedError("The run was stopped.")
            if key not in self._hosts or not self._hosts[key].alive:
                self._hosts[key] = Host(self._log, python=worker.python, env=worker.env, fork=fork)
            return self._hosts[key]

    def close(self, seconds: float) -> None:
        """End all hosts and every child; those that run get so long to save what they have. Interrupted once more
        meanwhile, it ends them at once."""
        with self._starting:
            self._closed = True
            try:
                for host in self._hosts.values():
                    host.leave(seconds)
            finally:
                for host in self._hosts.values():
                    host.close()
                if self._hosts:
                    self._clean()

    def _clean(self) -> None:
        try:
            clean(self._log)
        except OSError as error:  # how the run has ended matters more
            self._warn(f"Secrets may be in {self._log}, which could not be written without them ({error}).")
