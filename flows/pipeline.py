"""The whole recipe, and each of its phases, as Prefect flows.

A phase's flow runs what its steps need and nothing after them. What is published already is reused, so running the
phases one by one does the same work as running the whole.
"""

from __future__ import annotations

import time
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.hooks import HOOKS
from flows.parameters import NOTHING, Overrides, Profile, Refresh, Replaced, Workspace
from flows.running import Running, running
from tasks import session
from tasks.recipe import (
    evaluate_model,
    fuse_specialists,
    prepare_base,
    prepare_data,
    probe_diversity,
    run_signal_stage,
    sample_solutions,
    select_traces,
    train_distilled,
    train_specialist,
    write_report,
)
from vibethinker import __version__


def run_name() -> str:
    """The run's id, or profile and date until the run is open."""
    current = session.current()
    return current.run.id if current else f"{flow_run.get_parameters()['profile']}-{time.strftime('%Y-%m-%d %H:%M')}"


# Tasks wait in threads for what they need; how many of them compute at once is up to the session's slots.
THREADS = ThreadPoolTaskRunner(max_workers=64)


def spectrum(run: Running) -> None:
    """Phases 0 and 1: widen the set of correct solutions that the model can produce."""
    run.start(prepare_data)
    run.start(prepare_base)
    run.start(train_specialist)  # in parallel, one a domain
    run.start(sample_solutions)  # of the training problems, if a second stage is to train on the hard ones
    run.start(train_specialist)
    run.start(probe_diversity)  # chooses each domain's checkpoint by Pass@K
    run.start(fuse_specialists)


def signal(run: Running) -> None:
    """Phase 2: make the correct solutions likely, stage after stage."""
    run.approval("signal")  # if the configuration wants one
    run.start(run_signal_stage)


def distillation(run: Running) -> None:
    """Phase 3, if the configuration has one: a student learns from what the stages' models solve."""
    run.start(sample_solutions)
    run.start(select_traces)  # by how likely the student finds them
    run.start(train_distilled)


def measurement(run: Running) -> None:
    """Measure base, specialists, fused model and every stage's model alike, and report."""
    run.start(evaluate_model)
    run.start(write_report)


def whole_recipe(run: Running) -> None:
    """From a spectrum of solutions to a signal."""
    spectrum(run)
    signal(run)
    distillation(run)
    measurement(run)
    run.approval("promotion")


@flow(name="vibethinker", flow_run_name=run_name, version=__version__, task_runner=THREADS, **HOOKS)
def pipeline(
    profile: Profile = "tiny",
    config: Overrides = NOTHING,
    workspace: Workspace = "",
    refresh: Refresh = (),
    replaced: Replaced = NOTHING,
) -> dict[str, Any]:
    """Train a small reasoning model by the whole recipe and report what it achieved."""
    with running("report", profile, config, workspace, refresh, replaced) as run:
        whole_recipe(run)
    return run.outcome


@flow(name="vibethinker-data", flow_run_name=run_name, version=__version__, task_runner=THREADS, **HOOKS)
def data_phase(profile: Profile = "tiny", config: Overrides = NOTHING, workspace: Workspace = "") -> dict[str, Any]:
    """Phase 0 alone: problems and verified traces."""
    with running("data", profile, config, workspace) as run:
        run.start(prepare_data)
    return run.outcome


@flow(name="vibethinker-spectrum", flow_run_name=run_name, version=__version__, task_runner=THREADS, **HOOKS)
def spectrum_phase(profile: Profile = "tiny", config: Overrides = NOTHING, workspace: Workspace = "") -> dict[str, Any]:
    """Phase 1: specialists, diversity probing and fusion, with the data they need."""
    with running("fusion", profile, config, workspace) as run:
        spectrum(run)
    return run.outcome


@flow(name="vibethinker-signal", flow_run_name=run_name, version=__version__, task_runner=THREADS, **HOOKS)
def signal_phase(
    profile: Profile = "tiny",
    config: Overrides = NOTHING,
    workspace: Workspace = "",
    replaced: Replaced = NOTHING,
) -> dict[str, Any]:
    """Phase 2: the signal stages, from the fused model or from `replaced: {fusion: PATH}`."""
    with running("signal", profile, config, workspace, replaced=replaced) as run:
        spectrum(run)
        signal(run)
    return run.outcome


@flow(name="vibethinker-evaluation", flow_run_name=run_name, version=__version__, task_runner=THREADS, **HOOKS)
def evaluation_phase(
    profile: Profile = "tiny", config: Overrides = NOTHING, workspace: Workspace = ""
) -> dict[str, Any]:
    """The evaluations of every model of the recipe, with whatever they still need."""
    with running("evaluation", profile, config, workspace) as run:
        whole_recipe(run)
    return run.outcome
