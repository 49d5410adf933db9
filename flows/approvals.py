"""Where a run asks somebody before it goes on: before the signal phase, and before its model is registered.

The flow run waits, and Prefect's UI shows what there is to decide on above a form. A yes is kept in the run's folder,
so that a run which goes on after a crash doesn't ask again; after a no, or none at all, the run fails with a sentence,
and the same command asks anew.

`vibethinker run` pauses. A deployment's run is suspended: its process ends, which frees the worker, and Prefect starts
the flow again with the answer; what was published before is reused. It can't pause, since Prefect's server takes a
paused run's place in its deployment's concurrency limit back, and the process, which goes on renewing it, ends itself
within minutes.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.events import emit_event
from prefect.exceptions import FlowPauseTimeout, Pause
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.input.actions import filter_flow_run_input
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from prefect.states import Running
from pydantic import Field

from flows.automations import LEFT
from flows.hooks import links, remember
from tasks.messages import Message
from tasks.notifications import tell
from tasks.session import Session
from vibethinker.artifacts import write_json
from vibethinker.errors import RejectedError
from vibethinker.estimates import estimate
from vibethinker.plan import role_of
from vibethinker.reporting import text
from vibethinker.reporting.highlights import score

Gate = Literal["signal", "promotion"]

ANSWERS = "approvals.json"  # of a run's folder
HERE = "Prefect"  # what `links` calls the page on which somebody is asked
LOOK_SECONDS = 2  # how often a paused run asks whether it was answered
INPUTS = 200  # of a flow run, of which a question has three: more than anybody asks
ASKED = {"signal": "the signal phase", "promotion": "the registration of the final model in MLflow"}


class Approval(RunInput):
    """The form that Prefect's UI shows."""

    approve: bool = Field(description="Go on? Without it the run ends here.")
    by: str = Field("", description="Who decides.")
    note: str = Field("", description="Why; kept in the run's folder.")


class Waits(BaseException):
    """Nothing more can be done before there is an answer: on its way out the flow closes what it has open, and `left`
    suspends the flow run. No Exception, which somebody might take for the end of the run."""

    def __init__(self, form: type[Approval], seconds: int, key: str) -> None:
        super().__init__(key)
        self.form, self.seconds, self.key = form, seconds, key


def ask(gate: Gate, session: Session) -> None:
    """Return once somebody has approved; at once if that happened in an earlier process of this run.

    Raises:
        RejectedError: somebody said no, or nobody said anything in time.
        Waits: this process has to end before somebody is asked.
    """
    run, asked = session.run, session.config.approvals
    answers = _answers(run.folder).get(gate, [])
    if any(answer["approve"] for answer in answers):
        return

    def note(approve: bool, by: str, why: str) -> None:
        given = {"approve": approve, "by": by, "note": why, "time": time.time()}
        write_json(run.folder / ANSWERS, {**_answers(run.folder), gate: [*answers, given]})

    # A question is another one after a no, and in another process.
    question = f"{gate}-{len(answers)}"
    suspended = deployment.id is not None
    try:
        answer = (suspended and _given(question)) or _asked(gate, session, question, suspended)
    except FlowPauseTimeout:
        note(False, "", "Nobody answered in time.")
        # From an expired pause Prefect lets a run go only into a state of its own, with words of its own.
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(UUID(flow_run.get_id()), Running(), force=True)
        raise RejectedError(
            f"Nobody approved {ASKED[gate]} within {asked.hours:g} h (approvals.hours): start the run again to be "
            "asked again."
        ) from None
    note(answer.approve, answer.by, answer.note)
    by = f" by {answer.by}" if answer.by else ""
    why = f" ({answer.note.strip().rstrip('.')})" if answer.note.strip() else ""
    if not answer.approve:
        raise RejectedError(f"{_upper(ASKED[gate])} was rejected{by}{why}: start the run again to be asked again.")
    get_run_logger().info("%s was approved%s%s", _upper(ASKED[gate]), by, why)


def _asked(gate: Gate, session: Session, question: str, suspended: bool) -> Approval:
    """Ask, and wait for what is said."""
    summary = session.run.save()
    remember(session.run.folder, session.tracker and session.tracker.url)  # by now it knows the run's own page
    seconds, key = max(1, round(session.config.approvals.hours * 3600)), f"{question}-{flow_run.run_count}"
    text = f"Approve {ASKED[gate]} of `{session.run.id}`?\n\n" + details(gate, session, summary)
    form = Approval.with_initial_data(description=text)
    _announce(gate, session, summary, f"{flow_run.get_id()}-{key}")
    if suspended:
        raise Waits(form, seconds, key)
    return pause_flow_run(wait_for_input=form, timeout=seconds, key=key, poll_interval=LOOK_SECONDS)


def _given(question: str) -> Approval | None:
    """What was said to a process of this flow run that has ended."""
    found = filter_flow_run_input(key_prefix=f"suspended-{question}-", limit=INPUTS)
    return next((Approval.load_from_flow_run_input(one) for one in found if one.key.endswith("-response")), None)


def left(kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
    """The last that a flow does, on its way out by this error: suspend the flow run if it waits for an answer.

    Only now, since from then on somebody may answer, and the next process needs what this one had open; and since
    Prefect sends heartbeats until its flow has returned. One that came after the state Suspended would have the server
    wait for the next, and crash the run (`flows.automations`), so an event says that none is to be expected.

    Raises:
        Pause: the flow run is suspended; its process ends without a word more.
    """
    try:
        if isinstance(error, Waits):
            suspend_flow_run(wait_for_input=error.form, timeout=error.seconds, key=error.key)
    except Pause:
        _tell_left()
        raise
    if isinstance(error, Pause):  # somebody else has suspended it
        _tell_left()


def _tell_left() -> None:
    current = FlowRunContext.get()
    assert current and current.flow_run
    emit_event(
        LEFT,
        resource={"prefect.resource.id": f"prefect.flow-run.{current.flow_run.id}"},
        related=[
            {
                "prefect.resource.id": f"prefect.flow.{current.flow_run.flow_id}",
                "prefect.resource.role": "flow",
                "prefect.resource.name": current.flow.name if current.flow else "",
            }
        ],
    )


def _announce(gate: Gate, session: Session, summary: Mapping[str, Any], name: str) -> None:
    """Say that the run waits: to whoever watches it, and once by this name to whoever is told of runs."""
    run, asked = session.run, session.config.approvals
    places = links(str(flow_run.get_id()), session.plan.workspace, run.folder)
    told = Message(
        kind="approval",
        title=f"{run.id} waits for approval: {gate}",
        text=f"Somebody has to approve {ASKED[gate]} in Prefect's UI (Resume) within {asked.hours:g} h.",
        fields=[("Gate", gate), ("Machine", socket.gethostname())],
        excerpt=details(gate, session, summary, plain=True),
        links=places,
    )
    # Nobody may miss that a run waits, so no rate limit: there is no workspace to keep one in.
    tell(told, session.config.notifications, say=get_run_logger().warning, name=name, folder=run.folder)
    [*_, step] = (s for s in session.plan.steps if role_of(s) == {"signal": "signal", "promotion": "report"}[gate])
    where = dict(places).get(HERE, "Prefect's UI")
    session.display.event(step, {"event": "waiting", "text": f"waits for approval in {where}"})


def details(gate: Gate, session: Session, summary: Mapping[str, Any], plain: bool = False) -> str:
    """What somebody has to know to decide, in Markdown or as plain lines."""
    run = session.run
    places = [place for place in links(str(flow_run.get_id()), session.plan.workspace, run.folder) if place[0] != HERE]
    if gate == "promotion":
        return text.achieved(summary) if plain else text.markdown(summary, places)
    header, *rows = _scores(summary)
    cost = _cost(session)
    if plain:
        shown = [header, *rows] if rows else []
        widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in shown]
        return "\n".join([*lines, cost, *(f"warning: {warning}" for warning in summary["warnings"])])
    warnings = [f"- warning: {warning}" for warning in summary["warnings"]]
    scores = [text.SCORES, text.table(header, rows)] if rows else []
    return "\n\n".join(part for part in [*scores, cost, "\n".join(warnings), text.linked(places)] if part) + "\n"


def _scores(summary: Mapping[str, Any]) -> Iterator[list[str]]:
    """A header, and a row a model and set of problems: the average and the best of k, as percentages with intervals.
    The newest model comes first, since that is what goes on, and specialists last."""
    models = sorted(reversed(summary["models"]), key=lambda model: model["id"].startswith("specialist-"))  # noqa: C414 - stable
    sets = [(model["id"], *scores) for model in models for scores in model["scores"].items()]
    names = list(dict.fromkeys(name for _, _, metrics in sets for name in metrics))
    columns = [name for name in names if name.startswith("avg@")][:1]
    columns += [name for name in names if name.startswith("pass@")][-1:]
    yield ["model", "problems", *columns]
    for model, problems, metrics in sets:
        yield [model, problems, *(score(metrics[name]) if name in metrics else "" for name in columns)]


def _cost(session: Session) -> str:
    """The estimate for the signal stages that aren't published yet."""
    plan, estimates = session.plan, estimate(session.plan)
    ids = [s.id for s in plan.steps if role_of(s) == "signal" and session.found[s.id].state != "cached"]
    of = [estimates[i] for i in ids]
    tokens = sum(e["trained_tokens"] + e["generated_tokens"] for e in of)
    times = [e["seconds"] for e in of if e["seconds"] is not None]
    time = text.duration(sum(times)) if len(times) == len(of) else "an unknown time"
    prices = [e["usd"] for e in of if e["usd"] is not None]
    usd = f", {sum(prices):,.2f} USD" if prices and len(prices) == len(of) else ""
    return f"Estimate for {', '.join(ids)}: {tokens:,} tokens, {time}{usd}."


def _answers(folder: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        return json.loads((folder / ANSWERS).read_text())
    except (OSError, ValueError):
        return {}


def _upper(words: str) -> str:
    return words[0].upper() + words[1:]
