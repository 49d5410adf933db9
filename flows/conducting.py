"""What an experiment's flow does around its runs: which are to be made, on what, and what became of them.

Each run is an ordinary one of the workspace, by the pipeline's flow within the experiment's: with a folder, a page in
MLflow and hooks of its own, tagged by the experiment, so that all of a run's tools know it. What two runs share the
first makes, and the second finds published or waits for by the step's lock. One that completed isn't started again,
and one whose training diverged is a result; any other failure ends the experiment, since it would meet the next run.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from uuid import UUID

import click
import httpx
from prefect import Task, tags, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.futures import PrefectConcurrentFuture
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.display import Lines
from flows.pipeline import pipeline
from flows.registration import POOL
from tasks import logs, session
from vibethinker import config as configuration
from vibethinker import preflight
from vibethinker.artifacts import check_workspace
from vibethinker.errors import DivergedError
from vibethinker.experiments import design as designs
from vibethinker.experiments.design import Cell, Experiment
from vibethinker.experiments.study import Study

POLL_SECONDS = 1.0


class Conducting:
    """An experiment whose runs are being made; `result` is there once it has ended: result.json."""

    def __init__(self, experiment: Experiment, study: Study, sharing: session.Sharing) -> None:
        self.experiment, self.study, self._sharing = experiment, study, sharing
        self.result: dict[str, Any] = {}
        self.rounds = experiment.design.rounds
        self._stopping = threading.Event()
        self._sessions: set[session.Session] = set()

    def run(self, seeds: Sequence[int]) -> None:
        """Make the runs of these seeds, seed by seed, as many at once as the design allows."""
        cells = [cell for seed in seeds for cell in self.study.going(seed) if not self._ended(cell)]
        if self.experiment.design.at_once == 1:
            for cell in cells:
                self._make(cell)
        elif cells:
            self._make_side_by_side(cells)

    def look(self, after: int) -> None:
        """Once this many seeds are made, give up the arms that have no hope."""
        for arm in self.study.look(after):
            self._say(f"{arm} is given up after {after} seeds: no difference worth having is left to hope for")

    def _ended(self, cell: Cell) -> bool:
        if self.study.diverged(cell):
            return True
        run_id = self.study.finished(cell)
        if run_id:
            self.study.note(cell, run_id, "completed")
        return run_id is not None

    def _make_side_by_side(self, cells: list[Cell]) -> None:
        """Each as a task, since Prefect takes flows that threads begin for each other, but not those that tasks do."""
        waiting, going = list(cells), dict[PrefectConcurrentFuture[None], Cell]()
        with ThreadPoolTaskRunner(max_workers=self.experiment.design.at_once) as runner:
            try:
                while going or (waiting and not self._stopping.is_set()):
                    while cell := self._next(waiting, going.values()):
                        waiting.remove(cell)
                        going[runner.submit(self._as_task(cell), {})] = cell
                    # The threads' own futures are asked: a task's state would be the server's, which may be away.
                    wait([future.wrapped_future for future in going], POLL_SECONDS, FIRST_COMPLETED)
                    for future in [one for one in going if one.wrapped_future.done()]:
                        del going[future]
                        future.result()
            except BaseException:
                self._stopping.set()
                for current in list(self._sessions):
                    current.stopping.set()
                wait([future.wrapped_future for future in going])
                raise

    def _next(self, waiting: Sequence[Cell], going: Collection[Cell]) -> Cell | None:
        """The run to begin now, if there is a place: none that would wait for what another one makes. Begun sooner,
        it would only hold the place of one that can do something."""
        if self._stopping.is_set() or len(going) == self.experiment.design.at_once:
            return None
        return next((cell for cell in waiting if not self.study.lacking(cell, going)), None)

    def _as_task(self, cell: Cell) -> Task[[], None]:
        def make() -> None:
            self._make(cell)

        return task(make, name=f"{cell.arm}-{cell.seed}", cache_policy=NO_CACHE, persist_result=False)

    def _make(self, cell: Cell) -> None:
        if self._stopping.is_set():
            return
        plan, config, id = cell.plan, cell.config, self.experiment.id
        preflight.check(plan)
        tier = self._tier if config.runs_code() else None
        named = {"vibethinker.experiment": id, "vibethinker.arm": cell.arm, "vibethinker.seed": str(cell.seed)}
        self._say(f"{cell.title} begins")
        with (
            tags(f"experiment:{id}", f"arm:{cell.arm}"),
            session.opened(plan, Lines(plan, run=cell.title), tier=tier, sharing=self._sharing, tags=named) as current,
        ):
            self._sessions.add(current)
            if self._stopping.is_set():  # while this one opened
                current.stopping.set()
            self.study.note(cell, current.run.id, "running")
            try:
                pipeline(profile=config.profile, workspace=str(plan.workspace))
            except DivergedError as error:
                self.study.note(cell, current.run.id, "diverged", str(error))
                self._say(f"{cell.title} diverged, which is a result: {error}")
            except Exception as error:
                self._stopping.set()  # no other run begins
                self.study.note(cell, current.run.id, "failed", str(error))
                raise
            except BaseException:
                self.study.note(cell, current.run.id, "interrupted")
                raise
            else:
                self.study.note(cell, current.run.id, "completed")
            finally:
                self._sessions.discard(current)

    @cached_property
    def _tier(self) -> str:
        """Where programs run: the same for all runs, and trying takes a moment."""
        return preflight.try_sandbox(self.experiment.cells[0].config)

    def _say(self, text: str) -> None:
        get_run_logger().info(text)
        click.echo(text, err=True)


@contextmanager
def conducting(design: dict[str, Any], workspace: str | None) -> Iterator[Conducting]:
    """The experiment of this design for the `with` block.

    Raises:
        ConfigurationError, DataError: the design is wrong.
        VibeThinkerError: the first failure of a run, but for divergence.
    """
    logs.tell_sentences()
    folder = configuration.workspace(workspace)
    check_workspace(folder)
    made = designs.make(design, folder)
    study = Study(made, design)
    sharing = session.Sharing(made.cells[0].config, made.folder / "worker.log", _warn)
    try:
        _label(made)
        conducted = Conducting(made, study, sharing)
        try:
            yield conducted
        except BaseException as error:
            study.end("failed" if isinstance(error, Exception) else "interrupted")
            raise
        conducted.result = study.end("completed")
    finally:
        try:
            sharing.hosts.close(made.cells[0].config.execution.stop_seconds)
        finally:
            study.close()


def _warn(text: str) -> None:
    click.echo(f"Warning: {text}", err=True)


def _label(made: Experiment) -> None:
    """Give the flow run the experiment's id as its name, and the tags by which it is found."""
    found = {*flow_run.get_tags(), POOL, f"profile:{made.design.profile}", f"experiment:{made.id}"}
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run.get_id()), name=made.id, tags=sorted(found))
    except (PrefectHTTPStatusError, httpx.HTTPError) as error:
        get_run_logger().warning("The experiment goes on without its name and tags: %s", error)
