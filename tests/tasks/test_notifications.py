"""Messages in Slack's form, told once, not too often, and without harm when they can't be sent."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks import channels, notifications, quiet
from tasks.channels import Channels
from tasks.messages import Message
from tasks.notifications import claim, tell, tell_owed
from tests.slack import Slack
from tests.waiting import until
from vibethinker.operations import Notifications

pytestmark = pytest.mark.slow

SETTINGS = Notifications(quiet_seconds=0)
FULL = Message(
    kind="failure",
    title="tiny-1 failed in signal-1",
    text="The loss became NaN <at once> & stayed so.",
    fields=[("Step", "signal-1"), ("Reason", "diverged")],
    excerpt="line 1\nline 2 with ``` in it",
    command="vibethinker run --config /w/runs/tiny-1/config.yaml",
    links=[("Prefect", "http://127.0.0.1:4200/runs/flow-run/1"), ("Report", "/w/runs/tiny-1/report.html")],
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, slack: Slack) -> Iterator[None]:
    monkeypatch.setenv("SLACK_WEBHOOK_URL", slack.url)
    monkeypatch.delenv("VIBETHINKER_APPRISE_URLS", raising=False)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):  # nobody is there: the webhook needs nobody
        yield


def test_a_message_has_slack_s_form(slack: Slack) -> None:
    assert Channels.of(SETTINGS).send(FULL) == []
    [post] = slack.posts
    header, text, fields, excerpt, command, context = post["blocks"]
    assert header["text"] == {"type": "plain_text", "text": "tiny-1 failed in signal-1"}
    assert text["text"]["text"] == "The loss became NaN &lt;at once&gt; &amp; stayed so."
    assert [f["text"] for f in fields["fields"]] == ["*Step*\nsignal-1", "*Reason*\ndiverged"]
    assert excerpt["text"]["text"] == "```\nline 1\nline 2 with ''' in it\n```"
    assert "```\nvibethinker run --config /w/runs/tiny-1/config.yaml\n```" in command["text"]["text"]
    assert "<http://127.0.0.1:4200/runs/flow-run/1|Prefect>" in context["elements"][0]["text"]
    for part in (FULL.title, "vibethinker run --config", "line 1", "diverged", "report.html"):
        assert part in post["text"]


def test_what_is_too_long_for_slack_is_cut_where_it_matters_least(slack: Slack) -> None:
    lines = "\n".join(f"line {i} & more" for i in range(1000))
    Channels.of(SETTINGS).send(Message("failure", "t" * 400, "x" * 9000, [("a", "y" * 9000)] * 20, lines, "c" * 9000))
    blocks = slack.posts[0]["blocks"]
    texts = [block["text"]["text"] for block in blocks if "text" in block]
    assert len(texts[0]) <= 150
    assert all(len(text) <= 3000 for text in texts[1:])
    assert "line 999" in texts[2]
    [fields] = [block["fields"] for block in blocks if "fields" in block]
    assert len(fields) <= 10
    assert all(len(field["text"]) <= 2000 for field in fields)


def test_no_secret_leaves(slack: Slack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "open&sesame")
    bad = f"open&sesame {slack.url} hf_abcdefghijklmnop"
    message = Message("failure", bad, bad, [("a", bad)], bad, bad, [("b", bad)])
    assert Channels.of(SETTINGS).send(message) == []
    for secret in ("sesame", "hook-of-the-test", "hf_abc"):
        assert secret not in slack.texts()[0]


def test_apprise_s_addresses_are_posted_to(slack: Slack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIBETHINKER_APPRISE_URLS", f"json://{slack.address} nonsense")
    [failure] = Channels.of(SETTINGS).send(FULL)
    assert "1 of its addresses can't be read" in failure
    assert "hook-of-the-test" not in failure
    [by_apprise] = [post for post in slack.posts if "blocks" not in post]
    assert by_apprise["title"] == FULL.title
    assert FULL.command in by_apprise["message"]


def test_a_name_is_told_once_whoever_tells_it(slack: Slack, tmp_path: Path) -> None:
    said: list[str] = []
    threads = [
        threading.Thread(
            target=tell, args=(FULL, SETTINGS), kwargs={"say": said.append, "name": "a", "folder": tmp_path}
        )
        for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tell(FULL, SETTINGS, say=said.append, name="b", folder=tmp_path)
    assert (len(slack.posts), said) == (2, [])
    assert not claim(tmp_path, "a")


@pytest.fixture
def left_out(slack: Slack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Two of three messages about tiny came too soon; for which processes were to be started, and after how long."""
    started: list[float] = []
    monkeypatch.setattr(notifications, "start_later", lambda workspace, settings, seconds: started.append(seconds))
    for number, about in enumerate(("tiny", "tiny", "tiny", "other")):
        about_it = replace(FULL, title=f"{about}-{number} failed with hf_abcdefghijklmnop")
        tell(about_it, Notifications(quiet_seconds=600), say=pytest.fail, workspace=tmp_path, about=about)
    assert [text["text"].split()[0] for text in slack.posts] == ["tiny-0", "other-3"]
    return started


def test_what_comes_too_soon_is_told_with_the_next_one(slack: Slack, left_out: list[float], tmp_path: Path) -> None:
    [seconds] = left_out
    assert 590 < seconds <= 600
    tell(FULL, Notifications(quiet_seconds=0.01), say=pytest.fail, workspace=tmp_path, about="tiny")
    _, _, last = slack.texts()
    assert "2 more since" in last
    assert "tiny-1 failed" in last and "tiny-2 failed" in last
    assert "hf_abc" not in last + (tmp_path / quiet.FILE).read_text()
    tell(None, Notifications(quiet_seconds=0.01), say=pytest.fail, workspace=tmp_path)
    assert len(slack.posts) == 3


def test_what_came_too_soon_is_told_once_at_the_end_of_other_runs(
    slack: Slack, left_out: list[float], tmp_path: Path
) -> None:
    tell(None, Notifications(quiet_seconds=600), say=pytest.fail, workspace=tmp_path)
    assert len(slack.posts) == 2
    ends = [
        threading.Thread(
            target=tell,
            args=(None, Notifications(quiet_seconds=0.01)),
            kwargs={"say": pytest.fail, "workspace": tmp_path},
        )
        for _ in range(4)
    ]
    for end in ends:
        end.start()
    for end in ends:
        end.join()
    _, _, post = slack.posts
    assert post["blocks"][0]["text"]["text"].startswith("2 more failures of tiny since ")
    assert "tiny-1 failed" in post["text"] and "tiny-2 failed" in post["text"]


@pytest.mark.parametrize(("status", "delay"), [(500, 0.0), (200, 2.0)])
@pytest.mark.parametrize("message", [None, FULL])
def test_what_was_left_out_is_owed_again_where_slack_is_away(
    slack: Slack,
    left_out: list[float],
    tmp_path: Path,
    message: Message | None,
    status: int,
    delay: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(notifications, "SEND_SECONDS", 1.0 if delay else 6.0)
    settings, said = Notifications(quiet_seconds=0.01), list[str]()

    def since() -> float:
        return json.loads((tmp_path / quiet.FILE).read_text())["tiny failure"]["since"]

    began = since()
    slack.status, slack.delay = status, delay
    tell(message, settings, say=said.append, workspace=tmp_path, about="tiny")
    assert len(said) == 1
    assert since() == began
    until(lambda: len(left_out) == 2)  # another process waits
    slack.status, slack.delay = 200, 0.0
    until(lambda: quiet.is_owed(tmp_path, settings.quiet_seconds))
    tell(None, settings, say=pytest.fail, workspace=tmp_path)
    assert slack.posts[-1]["text"].startswith("2 more failures of tiny since ")
    assert "tiny-1 failed" in slack.posts[-1]["text"] and "tiny-2 failed" in slack.posts[-1]["text"]


def waiting(workspace: Path) -> list[psutil.Process]:
    """The processes that are to tell later."""
    return [one for one in psutil.process_iter(["cmdline"]) if str(workspace) in (one.info["cmdline"] or ())]


def test_what_came_too_soon_is_told_by_a_process_of_its_own(
    slack: Slack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks.py").write_text("raise SystemExit('a file of the user has this name too')")
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        about_it = replace(FULL, title=f"tiny-{number} failed")
        tell(about_it, Notifications(quiet_seconds=1), say=pytest.fail, workspace=tmp_path, about="tiny")
    assert len(waiting(tmp_path)) == 1
    _, post = slack.until(2)
    assert "2 more failures of tiny since" in post["text"]
    until(lambda: not waiting(tmp_path))
    assert len(slack.posts) == 2


def test_asked_to_end_it_tells_at_once_and_what_nobody_takes_is_still_owed(slack: Slack, tmp_path: Path) -> None:
    settings = Notifications(quiet_seconds=600)
    for number in range(2):
        tell(replace(FULL, title=f"tiny-{number} failed"), settings, say=pytest.fail, workspace=tmp_path, about="tiny")
    slack.status = 500
    [process] = waiting(tmp_path)
    until(lambda: caught(process))
    process.terminate()
    until(lambda: not waiting(tmp_path))
    assert len(slack.posts) == 2
    slack.status = 200
    tell(replace(FULL, title="tiny-2 failed"), settings, say=pytest.fail, workspace=tmp_path, about="tiny")
    [process] = waiting(tmp_path)  # that one ended, so another waits
    until(lambda: caught(process))
    process.terminate()
    until(lambda: not waiting(tmp_path))
    assert "2 more failures of tiny since" in slack.posts[2]["text"]


def caught(process: psutil.Process) -> bool:
    """Whether it has begun to listen to SIGTERM."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) & 1 << (signal.SIGTERM - 1))


@pytest.mark.parametrize(("status", "delay"), [(500, 0.0), (200, 20.0)])
def test_a_slack_that_fails_or_hangs_is_a_warning_within_seconds(
    slack: Slack, tmp_path: Path, status: int, delay: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "POST_SECONDS", 1)
    slack.status, slack.delay = status, delay
    said: list[str] = []
    began = time.monotonic()
    tell(FULL, SETTINGS, say=said.append, name="a", folder=tmp_path)
    assert time.monotonic() - began < 5
    [sentence] = said
    assert sentence.startswith("Slack did not take the message 'tiny-1 failed in signal-1'")
    assert "hook-of-the-test" not in sentence


def test_a_slack_that_answers_by_the_drop_holds_nobody_up(
    slack: Slack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "SEND_SECONDS", 0.5)
    slack.delay = 2.0  # within the time for one answer
    said: list[str] = []
    began = time.monotonic()
    tell(FULL, SETTINGS, say=said.append, folder=tmp_path)
    assert time.monotonic() - began < 2
    assert "was not taken within" in said[0]


def test_without_a_channel_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLACK_WEBHOOK_URL")
    said: list[str] = []
    with temporary_settings({PREFECT_API_URL: None}):
        tell(FULL, SETTINGS, say=said.append, name="a", folder=tmp_path, workspace=tmp_path)
    assert (said, list(tmp_path.iterdir())) == ([], [])


def test_a_server_that_is_away_when_the_webhook_is_looked_for_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLACK_WEBHOOK_URL")
    monkeypatch.setattr(notifications, "SEND_SECONDS", 3.0)
    said: list[str] = []
    began = time.monotonic()
    tell(FULL, SETTINGS, say=said.append, name="a", folder=tmp_path)
    assert time.monotonic() - began < 5
    assert len(said) == 1


def test_a_server_that_is_away_keeps_no_mail_back(
    slack: Slack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLACK_WEBHOOK_URL")
    monkeypatch.setenv("VIBETHINKER_APPRISE_URLS", f"json://{slack.address}")
    monkeypatch.setattr(notifications, "SEND_SECONDS", 3.0)
    said: list[str] = []
    tell(FULL, SETTINGS, say=said.append, name="a", folder=tmp_path)
    [post] = slack.posts
    assert post["title"] == FULL.title
    assert len(said) == 1  # of Slack


def test_a_server_that_went_with_its_run_keeps_nothing_back_that_is_told_later(
    slack: Slack, left_out: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLACK_WEBHOOK_URL")
    tell_owed(tmp_path, Notifications(), 0.0)  # of nobody's: goes on being owed
    monkeypatch.setenv("VIBETHINKER_APPRISE_URLS", f"json://{slack.address}")
    tell_owed(tmp_path, Notifications(), 0.0)
    assert slack.posts[-1]["title"].startswith("2 more failures of tiny since ")


def test_a_damaged_note_of_the_last_messages_is_none(slack: Slack, tmp_path: Path) -> None:
    (tmp_path / quiet.FILE).write_text("{")
    said: list[str] = []
    tell(FULL, Notifications(), say=said.append, workspace=tmp_path)
    assert (len(slack.posts), said) == (1, [])
    assert json.loads((tmp_path / quiet.FILE).read_text())
