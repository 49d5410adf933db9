"""Prefect's process worker, which lets its flow runs save what they have before it ends.

Prefect's own kills them at once (SIGKILL), so that all since the last saved update is lost. This one takes its place
wherever a worker of the type `process` is started in this environment (see `flows.collection`), and asks them first, by
SIGTERM: when it is asked to end itself by SIGTERM or Ctrl-C, and when it can't go on. A second Ctrl-C kills them.
Left out: SIGKILL, and SIGHUP as its terminal closes, upon which flow runs go on without their worker (`down` ends
those that `up`'s worker has started).
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
from anyio.abc import TaskStatus
from prefect.client.schemas.objects import FlowRun
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker, ProcessWorkerResult

from flows.processes import LOOK_SECONDS, SAME_SECONDS, SAVE_SECONDS, SAVING, TELL_SECONDS, Process, known

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Type 'Worker' .* will be overridden")

    class Worker(ProcessWorker):
        """See the module."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._flows: set[Process] = set()  # of flow runs, until Prefect has noted how they ended
            self._asked: set[Process] = set()  # of them, those that have been asked to stop
            self._saving: asyncio.Task[None] | None = None
            self._first: float | None = None  # when it was asked to end
            self._leaving = False
            self._say: Callable[..., None] = print

        async def start(
            self, run_once: bool = False, with_healthcheck: bool = False, printer: Callable[..., None] = print
        ) -> None:
            """Serve the pool until asked to end.

            Its handlers take the place of Prefect's, by which a second SIGTERM kills the worker, and none ends one that
            a shell has started in the background.
            """
            loop, serving = asyncio.get_running_loop(), asyncio.current_task()
            if threading.current_thread() is threading.main_thread():  # others are sent no signals
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, self._hear, number, serving)
            self._say = printer
            await super().start(run_once, with_healthcheck, printer)

        async def run(
            self,
            flow_run: FlowRun,
            configuration: ProcessJobConfiguration,
            task_status: TaskStatus[int] | None = None,
        ) -> ProcessWorkerResult:
            """Run a flow in a process of its own, to its end."""
            begun = _Begun(task_status, self._flows)
            try:
                return await super().run(flow_run, configuration, begun)
            finally:
                begun.over()

        async def get_and_submit_flow_runs(self) -> list[FlowRun]:
            """Take what waits in the pool, and nothing more once asked to end."""
            return [] if self._saving else await super().get_and_submit_flow_runs()

        async def __aexit__(self, *exc_info: Any) -> None:
            self._leaving = True
            try:
                if exc_info[0] is not None:
                    with anyio.CancelScope(shield=True):
                        await self._saved()
            finally:
                await super().__aexit__(*exc_info)

        def _hear(self, number: int, serving: asyncio.Task[None]) -> None:
            now = time.monotonic()
            if self._first is None:
                self._first = now
                self._saved().add_done_callback(lambda _: self._leaving or serving.cancel())
            elif number == signal.SIGINT and now - self._first > SAME_SECONDS:
                self._tell(self._flows, signal.SIGKILL)

        def _saved(self) -> asyncio.Task[None]:
            """What is over once the flow runs are, in good time or not."""
            if self._saving is None:
                self._saving = asyncio.create_task(self._let_save())
            return self._saving

        async def _let_save(self) -> None:
            limit = time.monotonic() + SAVE_SECONDS
            over = limit + TELL_SECONDS
            if self._flows:  # ours that were sent the signal too are leaving by then, and heed no other
                await asyncio.sleep(SAME_SECONDS)
            while self._flows and (now := time.monotonic()) < over:
                living = {flow for flow in self._flows if flow.alive}
                if not living:
                    over = min(over, now + TELL_SECONDS)
                elif now < limit:
                    if not self._asked:
                        self._say(SAVING)
                    self._tell(living - self._asked, signal.SIGTERM)
                    self._asked |= living
                else:
                    self._say(f"Some didn't end in {SAVE_SECONDS:.0f} s and are killed.")
                    self._tell(living, signal.SIGKILL)
                    limit = over
                await asyncio.sleep(LOOK_SECONDS)

        def _tell(self, them: set[Process], number: int) -> None:
            for flow in them:
                if flow.alive:
                    with suppress(ProcessLookupError):
                        if number == signal.SIGKILL and os.getpgid(flow.pid) == flow.pid:
                            os.killpg(flow.pid, number)  # what other projects' flows have started would go on
                        else:
                            os.kill(flow.pid, number)


class _Begun(TaskStatus[int]):
    """Notes a flow run's process once Prefect tells that it was started."""

    def __init__(self, told: TaskStatus[int] | None, flows: set[Process]) -> None:
        self._told, self._flows, self._flow = told, flows, Process(0, "")

    def started(self, value: int = 0) -> None:
        self._flow = known(value)
        self._flows.add(self._flow)
        if self._told:
            self._told.started(value)

    def over(self) -> None:
        self._flows.discard(self._flow)
