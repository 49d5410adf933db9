"""An experiment as a Prefect flow: arms over seeds, each a run of the recipe as a flow of its own within this one."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.runtime import flow_run

from flows.conducting import conducting
from flows.parameters import Workspace
from vibethinker import __version__


def run_name() -> str:
    """The experiment's name until its id is known."""
    return str(flow_run.get_parameters()["design"].get("name", "experiment"))


@flow(name="vibethinker-experiment", flow_run_name=run_name, version=__version__)
def experiment(design: dict[str, Any], workspace: Workspace = "") -> dict[str, Any]:
    """Compare arms with a control by a design that is declared before the first run.

    Args:
        design: what an experiment's file holds, see docs/experiments.md.
        workspace: of outputs, runs and experiments.
    """
    with conducting(design, workspace) as conducted:
        for after, seeds in conducted.rounds:
            conducted.run(seeds)  # every arm that hasn't been given up; what runs share is made once
            conducted.look(after)  # arms without hope are given up, by the rule that the design states
    return conducted.result
