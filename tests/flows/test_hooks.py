"""What is told of each way in which a flow run ends, from what is left of it on the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from prefect import State, flow
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from prefect.states import Cancelling, Completed, Crashed, Failed

from flows import hooks, pipeline
from tests.slack import Slack
from vibethinker.artifacts import Store
from vibethinker.config import load
from vibethinker.errors import DivergedError, OutOfMemoryError, VibeThinkerError
from vibethinker.plan import build, states
from vibethinker.runs import Run

UI = "http://prefect.example"


@flow(name="vibethinker")
def stub() -> None:
    """Never called."""


@pytest.fixture
def begun(tmp_path: Path) -> Run:
    """A run of which data and base are finished and a specialist runs."""
    plan = build(load("micro", environ={}), tmp_path)
    run = Run.begin(plan, fresh=True)
    run.create(states(plan, Store(tmp_path)))
    run.update("data", "done")
    run.update("base", "done")
    run.update("specialist-algebra", "running")
    lines = [f"{n} begun\r{n} ended" for n in range(40)]
    run.log("specialist-algebra").write_text("\n".join([*lines, "the last words, hf_abcdefghijklmnop", ""]))
    run.close()
    return run


@pytest.fixture
def end(slack: Slack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FlowRun]:
    """End a flow run of the given run's folder, if any, in a state."""
    monkeypatch.setenv("SLACK_WEBHOOK_URL", slack.url)
    monkeypatch.setattr("tasks.notifications.quiet.ask", lambda *limits: (True, None, None))

    def ended(
        state: State, run: Run | None = None, again: FlowRun | None = None, count: int = 1, **values: object
    ) -> FlowRun:
        flow_run = again or FlowRun(
            id=uuid4(), flow_id=uuid4(), name="lively-otter",
            parameters={"profile": "micro", "workspace": str(tmp_path), "config": None}, **values,
        )  # fmt: skip
        if run:
            monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__ID", str(flow_run.id))
            monkeypatch.setenv("PREFECT__RUNTIME__FLOW_RUN__RUN_COUNT", str(count))
            hooks.remember(run.folder, "http://user@mlflow.example/#/experiments/1/runs/2")
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_UI_URL: UI}):
            hooks.ended(stub, flow_run, state)
        return flow_run

    return ended


def failed(run: Run, error: VibeThinkerError) -> State:
    run.update("specialist-algebra", "failed", error=error)
    run.finish("failed")
    return Failed(message=f"Flow run encountered an exception: {type(error).__name__}: {error}")


def test_a_failure_names_step_class_log_links_and_the_way_on(
    slack: Slack, begun: Run, end: Callable[..., FlowRun]
) -> None:
    flow_run = end(failed(begun, OutOfMemoryError("The memory ran out: lower the micro-batch.")), begun)
    [post] = slack.posts
    [said] = slack.texts()
    assert post["blocks"][0]["text"]["text"] == f"{begun.id} failed in specialist-algebra"
    for part in (
        "*Step*\\nspecialist-algebra", "*Reason*\\nout of memory", "*Steps finished*\\n2 of 19",
        "The memory ran out: lower the micro-batch.", f"<{UI}/runs/flow-run/{flow_run.id}|Prefect>",
        "mlflow.example/#/experiments/1/runs/2|MLflow>", "39 ended", "the last words",
    ):  # fmt: skip
        assert part in said
    assert f"Go on by:\n```\n{begun.resume_command}\n```" in [b["text"]["text"] for b in post["blocks"] if "text" in b]
    assert "hf_abc" not in said
    assert "begun" not in said


def test_divergence_is_told_as_such_with_its_evidence(slack: Slack, begun: Run, end: Callable[..., FlowRun]) -> None:
    folder = begun.plan.workspace / "checkpoints" / "evidence"
    error = DivergedError(f"The loss became NaN at update 3 (evidence is in {folder}): lower the learning rate.")
    end(failed(begun, error), begun)
    [said] = slack.texts()
    assert f"{begun.id} diverged in specialist-algebra" in said
    assert f"*Evidence*\\n{folder}" in said


def test_an_end_is_told_once_and_the_end_of_a_retry_again(
    slack: Slack, begun: Run, end: Callable[..., FlowRun]
) -> None:
    state = failed(begun, OutOfMemoryError("The memory ran out."))
    flow_run = end(state, begun)
    end(Crashed(message="Process exited with status code: 1."), begun, again=flow_run)
    assert len(slack.posts) == 1
    end(state, begun, again=flow_run, count=2)
    assert len(slack.posts) == 2


@pytest.mark.parametrize(
    ("state", "title", "reason"),
    [
        (Crashed(message="Process exited with status code: -9."), "crashed in specialist-algebra", "crashed"),
        (Crashed(message="Execution was aborted by a termination signal."), "crashed in specialist-algebra", "crashed"),
        (Cancelling(message="Flow run was cancelled."), "was cancelled in specialist-algebra", "cancelled"),
        (Failed(name="Rejected", message="The signal phase was rejected."), "was not approved", "rejected"),
    ],
)
def test_other_ends_are_told_with_their_class(
    slack: Slack, begun: Run, end: Callable[..., FlowRun], state: State, title: str, reason: str
) -> None:
    end(state, begun)
    [said] = slack.texts()
    assert f"{begun.id} {title}" in said
    assert f"*Reason*\\n{reason}" in said
    assert begun.resume_command in slack.posts[0]["text"]


@pytest.mark.parametrize(
    ("step", "of_its_own", "shown"),
    [("specialist-algebra", True, True), ("specialist-algebra", False, False), ("data", True, False)],
)
def test_of_a_killed_process_only_logs_whose_keys_are_known_are_shown(
    begun: Run, monkeypatch: pytest.MonkeyPatch, step: str, of_its_own: bool, shown: bool
) -> None:
    begun.update("specialist-algebra", "waiting")
    begun.update(step, "running")
    begun.log(step).write_text("the last words, a-key-of-the-run")
    begun.log("worker").write_text("the last words of the worker")
    flow_run = FlowRun(id=uuid4(), flow_id=uuid4())
    if of_its_own:
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(flow_run.id))
        monkeypatch.setenv("A_KEY", "a-key-of-the-run")
    killed = Crashed(message="Process exited with status code: -9.")
    told = hooks.message(stub, flow_run, killed, begun.plan.workspace, begun.folder).redacted()
    assert told.title.endswith(f"crashed in {step}")
    assert told.excerpt == ("the last words, [hidden]" if shown else "")


def test_ctrl_c_and_success_are_told_to_nobody(slack: Slack, begun: Run, end: Callable[..., FlowRun]) -> None:
    end(Crashed(message="Execution was aborted by an interrupt signal."), begun)
    end(Completed(), begun)
    assert not slack.posts


def test_success_is_told_where_that_is_wanted(slack: Slack, tmp_path: Path, end: Callable[..., FlowRun]) -> None:
    plan = build(load("micro", overrides=["notifications.success=true"], environ={}), tmp_path)
    run = Run.begin(plan, fresh=True)
    run.create(states(plan, Store(tmp_path)))
    run.finish("completed")
    run.close()
    end(Completed(), run)
    [said] = slack.texts()
    assert f"{run.id} is finished" in said
    assert "Go on by" not in said


def test_a_run_that_failed_before_it_began_is_started_anew(slack: Slack, end: Callable[..., FlowRun]) -> None:
    deployment = uuid4()
    end(
        Failed(message="Flow run encountered an exception: ConfigurationError: There is no setting 'x'."),
        deployment_id=deployment,
    )
    [said] = slack.texts()
    assert "lively-otter failed" in said
    assert "*Reason*\\nconfiguration" in said
    assert "There is no setting 'x'." in said
    assert f"prefect deployment run --id {deployment} --param" in slack.posts[0]["text"]
    assert "config=null" not in said


def test_every_flow_has_the_hooks() -> None:
    flows = [pipeline.pipeline, pipeline.data_phase, pipeline.spectrum_phase, pipeline.signal_phase]
    for one in [*flows, pipeline.evaluation_phase]:
        for kind in ("failure", "crashed", "cancellation", "completion"):
            assert getattr(one, f"on_{kind}_hooks") == [hooks.ended]


def test_a_damaged_note_is_none(slack: Slack, begun: Run, end: Callable[..., FlowRun]) -> None:
    end(Crashed(message="Process exited with status code: -9."), begun)
    (begun.folder / hooks.NOTE).write_text("{")
    end(Crashed(message="Process exited with status code: -9."))
    assert "lively-otter crashed" in slack.texts()[1]
    assert json.loads((begun.folder / "summary.json").read_text())["status"] == "running"
