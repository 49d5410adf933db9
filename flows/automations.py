"""What Prefect's server does by itself for runs whose process can't any more, and the block that it posts by.

A deployment's flow run sends heartbeats, where its worker's environment has PREFECT_FLOWS_HEARTBEAT_FREQUENCY. When
none has come for LOST_SECONDS and no end either, its machine is gone: the first automation changes its state to
Crashed. So many seconds, since a server that was away has heard nothing either: started again, it crashes runs whose
last heartbeat is older before their processes, which try again only now and then, have reached it. The second one
posts of it, and of runs that a worker could not even start; of every other end the run's own hooks tell
(`flows.hooks`), so that nobody hears twice.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from prefect.automations import Automation, EventTrigger, Posture, ResourceSpecification
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.settings import PREFECT_UI_URL

from tasks.channels import slack_block
from vibethinker.errors import ConfigurationError

FLOWS = ["vibethinker", "vibethinker-*"]  # names of this project's flows
LOST_SECONDS = 300.0  # ten heartbeats; of a server that is away for less than 210 s none comes too late
LEFT = "vibethinker.flow-run.left"  # event: a suspended run's process has ended, so that no heartbeat follows
CRASH, POST = "vibethinker: crash runs without heartbeats", "vibethinker: tell of runs that are gone"
LOST = "No heartbeat came from this run"  # by which the second automation knows what the first one did
# What Prefect's workers say of a flow run whose process never came to be, or whose pod is gone: it has no hooks.
UNHEARD = ["Failed to submit flow run*", "Flow run could not*", "No active or succeeded pods found*"]
SUBJECT = "{{ flow_run.name }} crashed"
# JSON as Prefect's templates write it has no quote of the shell's.
BODY = """{{ flow_run.state.message }}
Flow: {{ flow.name }}
PAGE
{% if deployment.name %}Go on by Retry in Prefect's UI, or by
```
prefect deployment run '{{ flow.name }}/{{ deployment.name }}'\
{% for name, value in flow_run.parameters.items() if value is not none %} --param '{{ name }}={{ value | tojson }}'\
{% endfor %}
```
{% else %}Go on by starting it again with the same parameters.
{% endif %}What was published and saved is reused."""


def register(block: str, lost_seconds: float | None = None) -> list[str]:
    """Create the automations on the server, or bring them up to date; returns their names.

    One that is as it should be isn't touched: a changed one waits anew, and so for ever for runs that are gone already,
    as all of a machine's are when it is started again. Its tags, and whether it is switched on, stay as they are.

    Args:
        block: name of the `prefect_slack.SlackWebhook` block that is posted by; without it nothing is posted.
        lost_seconds: without a heartbeat, after which a run counts as gone; at least 10. None: as the server has it,
            else LOST_SECONDS.
    """
    there = {name: known(name) for name in (CRASH, POST)}
    kept = [within.total_seconds() for one in there[CRASH] if (within := getattr(one.trigger, "within", None))]
    wanted = [_crash(lost_seconds or next(iter(kept), LOST_SECONDS))]
    if (document := _document(block)) is not None:
        wanted.append(_post(document))
    for automation in wanted:
        for superfluous in there[automation.name][1:]:  # two that registered at once
            superfluous.delete()
        if not there[automation.name]:
            automation.create()
            continue
        before = there[automation.name][0]
        automation.id, automation.enabled, automation.tags = before.id, before.enabled, before.tags
        if automation.model_dump() != before.model_dump():
            automation.update()
    return [automation.name for automation in wanted]


def save_webhook(address: str, name: str) -> None:
    """Keep a webhook of Slack's on the server, encrypted there, in the place of what it had.

    Raises:
        ConfigurationError: prefect-slack isn't installed.
    """
    from pydantic import SecretStr

    slack_block()(url=SecretStr(address)).save(name, overwrite=True)


def _crash(seconds: float) -> Automation:
    # Names of the states in which no process is to be expected; an end may have a name of its own.
    ends = ("Completed", "Failed", "Cancelled", "Crashed", "TimedOut", "Rejected")
    others = ("Suspended", "Scheduled", "AwaitingRetry")
    return Automation(
        name=CRASH,
        description="Runs whose machine is gone, by their heartbeats.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", LEFT, *(f"prefect.flow-run.{state}" for state in (*ends, *others))},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=_of_ours(),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"{LOST} for {seconds:g} s: its process or its machine is gone.",
            )
        ],
    )


def _post(document: Any) -> Automation:
    # The server needn't know where its UI is reached; whoever registers this does.
    page = f"{(PREFECT_UI_URL.value() or '').rstrip('/')}/runs/flow-run/{{{{ flow_run.id }}}}"
    return Automation(
        name=POST,
        description="Slack messages about runs that could not tell of their end themselves.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=ResourceSpecification(
                {"prefect.resource.id": ["prefect.flow-run.*"], "prefect.state-message": [f"{LOST}*", *UNHEARD]}
            ),
            match_related=_of_ours(),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[SendNotification(block_document_id=document, subject=SUBJECT, body=BODY.replace("PAGE", page))],
    )


def _of_ours() -> ResourceSpecification:
    return ResourceSpecification({"prefect.resource.role": ["flow"], "prefect.resource.name": FLOWS})


def known(name: str) -> list[Automation]:
    """Those of this name on the server."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return [Automation(**found.model_dump()) for found in client.read_automations_by_name(name=name)]


def _document(block: str) -> Any:
    """The id of a block of Slack's; None where there is none."""
    try:
        return slack_block().load(block)._block_document_id
    except (ValueError, ConfigurationError):
        return None
