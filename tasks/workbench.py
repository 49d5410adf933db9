"""Runs steps in child processes of one worker host: what a run's session and a worker of a Ray cluster have in common.

Who computes next, and on what, has been decided before; here are the policies that don't count as retries.
"""

from __future__ import annotations

import math
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vibethinker.artifacts import Store
from vibethinker.config import Config
from vibethinker.errors import PreemptedError, VibeThinkerError
from vibethinker.execution import execution_settings
from vibethinker.memory import Memory, run_within
from vibethinker.needs import memory_need, place_of, shared_by
from vibethinker.plan import Step
from vibethinker.worker.host import Event, Host
from vibethinker.workload import work_of

from . import secrets
from .hosts import Hosts

LEAVE_SECONDS = 5.0  # beyond execution.stop_seconds, after which the worker's server kills a step
PREEMPTIONS = 10  # of one step; more than that is a step that ends itself


class Workbench:
    """The worker host of one run in this process, and how its steps are asked for.

    Args:
        base: the fingerprint of the plan's base model, if it makes one.
        revision: of the code, for manifests.
        warn: told what the user should read.
        hosts: those that several runs share, and somebody else ends; None for its own.
    """

    def __init__(
        self,
        config: Config,
        workspace: Path,
        run_id: str,
        *,
        base: str | None,
        revision: str | None,
        warn: Callable[[str], None],
        hosts: Hosts | None = None,
    ) -> None:
        self.config, self.workspace, self.run_id = config, workspace, run_id
        self.memory, self._warn = Memory(workspace, warn), warn
        self.stopping = threading.Event()
        self.revision, self._base = revision, base
        self._own = Hosts(self._logs / "worker.log", warn) if hosts is None else None
        self._hosts = hosts or self._own

    def execute(
        self, step: Step, inputs: Mapping[str, str], gpu: str | None, cores: int, hear: Callable[[Event], None]
    ) -> dict[str, Any]:
        """Run a step in a child process. One that runs out of memory is run again with less at once (see
        `vibethinker.memory`), a preempted one as it is, up to PREEMPTIONS times.

        Args:
            inputs: step id → fingerprint of what the step reads.
            gpu: CUDA_VISIBLE_DEVICES; None on a CPU, empty for a step beside the GPUs.

        Raises:
            VibeThinkerError: of the child's class.
        """
        self.check_going()
        place = place_of(gpu or None, shared_by(self.config, step))
        need = memory_need(self.config, step.settings, self._architecture(), place)

        work = work_of(self.config, step, self._architecture(), place if place.is_gpu else None)

        def attempt(execution: dict[str, Any]) -> dict[str, Any]:
            return self._unless_preempted(self._request(step, inputs, execution, gpu) | {"work": work}, hear)

        return run_within(
            attempt,
            need,
            self._execution(step, gpu, cores),
            self.memory,
            lambda text: hear({"event": "warning", "text": text}),
        )

    @property
    def leave_seconds(self) -> float:
        """How long steps that are asked to stop are waited for."""
        return self.config.execution.stop_seconds + LEAVE_SECONDS

    def check_going(self) -> None:
        """Raise PreemptedError once the run is being stopped."""
        if self.stopping.is_set():
            raise PreemptedError("The run was stopped.")

    def host(self) -> Host:
        """The worker's host; see `Hosts.of`."""
        self.check_going()
        return self._hosts.of(self.config)

    def close(self) -> None:
        """End the run's own worker host and every child of it; see `Hosts.close`."""
        self.stopping.set()
        if self._own is not None:
            self._own.close(self.leave_seconds)

    @property
    def _logs(self) -> Path:
        return self.workspace / "runs" / self.run_id / "logs"

    def _unless_preempted(self, request: dict[str, Any], hear: Callable[[Event], None]) -> dict[str, Any]:
        for _ in range(PREEMPTIONS):
            try:
                return self._in_time(request, hear)
            except PreemptedError:
                if self.stopping.is_set():
                    raise
                hear({"event": "warning", "text": "The step was preempted; running it again."})
        return self._in_time(request, hear)

    def _in_time(self, request: dict[str, Any], hear: Callable[[Event], None]) -> dict[str, Any]:
        """Run a child; one that takes too long is asked to save and leave, as if the run were being stopped."""
        seconds, began = self.config.execution.timeout_seconds or math.inf, time.monotonic()

        def late() -> bool:
            return time.monotonic() - began > seconds

        try:
            return self.host().run(request, hear, lambda: self.stopping.is_set() or late())
        except PreemptedError:
            if self.stopping.is_set() or not late():
                raise
            raise VibeThinkerError(
                f"The step {request['step']} was stopped after {seconds:g} s (execution.timeout_seconds): raise that, "
                "and run the same command again to go on from what it saved."
            ) from None

    def _architecture(self) -> dict[str, Any] | None:
        """Words of the config.json of the recipe's model: the configuration's, else the published base's."""
        if (words := self.config.architecture()) or self._base is None:
            return words
        return Store(self.workspace).model_words("base", self._base)

    def _request(
        self, step: Step, inputs: Mapping[str, str], execution: dict[str, Any], gpu: str | None
    ) -> dict[str, Any]:
        vllm = execution["vllm"]
        part = execution["gpu_share"]  # of steps that share a GPU, each has its part
        vllm = {**vllm, "memory": vllm["memory"] * part, "shared_memory": vllm["shared_memory"] * part}
        return {
            "workspace": str(self.workspace),
            "run_id": self.run_id,
            "revision": self.revision,
            "step": step.id,
            "kind": step.kind,
            "fingerprint": step.fingerprint,
            "settings": step.settings,
            "inputs": {role: [i, inputs[i]] for role, i in step.inputs.items()},
            "execution": execution | {"vllm": vllm, "secrets": secrets.of_step(step, self.config)},
            "gpu": gpu,
            "log": str(self._logs / f"{step.id}.log"),
            "stall_seconds": self.config.execution.stall_seconds,
            "stop_seconds": self.config.execution.stop_seconds,
        }

    def _execution(self, step: Step, gpu: str | None, cores: int) -> dict[str, Any]:
        threads = self.config.execution.threads or cores
        execution = execution_settings(self.config, threads, step.outside, self.workspace)
        execution["gpu_share"] = 1 / shared_by(self.config, step)
        return execution if gpu != "" else execution | {"device": "cpu"}


def revision() -> str | None:
    """The commit of the code that runs, `+` appended if files differ from it; None outside a clone."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # an installed copy may lie in a clone of something else
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
