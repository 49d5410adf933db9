"""The store of replies: lossless, durable, charged once, shared by processes."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from vibethinker.errors import ConfigurationError, DataError, InfrastructureError
from vibethinker.generation.chat import Reply, request_key
from vibethinker.generation.replies import ReplyStore, Spending

PRICE = Spending(10, 20, 0.5, 1)


@pytest.fixture
def store(tmp_path):
    with ReplyStore(tmp_path / "replies.sqlite") as store:
        yield store


@pytest.mark.parametrize("text", ["", "x" * 100_000, "a\0b", "\ud800 alone", "½ 数学 😀\r\n", "\ufeff"])
def test_a_reply_comes_back_as_it_was(store, text):
    reply = Reply("k", text, True, 3, 4)
    store.put("scope", reply, PRICE)
    assert store.get("k") == reply
    assert store.get("K") is None


def test_what_is_put_twice_is_charged_once_and_the_first_stays(store):
    for text in ("first", "second"):
        store.put("scope", Reply("k", text, False, 3, 4), PRICE)
    assert store.get("k").text == "first"
    assert store.spent("scope") == PRICE
    assert store.spent("another") == Spending()


def test_a_reservation_ends_with_its_charge_and_charges_once(store):
    worst = Spending(100, 200, 5.0, 1, 1, 1)
    first, second = store.reserve("scope", worst), store.reserve("scope", worst)
    assert store.reserved("scope") == worst + worst
    for _ in range(2):
        store.put("scope", Reply("k", "", False, 3, 4), PRICE, first)
        store.charge("scope", Spending(requests=1), second)
    assert store.reserved("scope") == Spending()
    assert store.spent("scope") == PRICE + Spending(requests=1)


def test_an_answer_that_another_process_had_already_is_paid_all_the_same(store):
    store.put("other", Reply("k", "", False, 3, 4), PRICE)
    store.put("scope", Reply("k", "", False, 3, 4), PRICE, store.reserve("scope", PRICE))
    assert store.spent("scope") == store.spent("other") == PRICE


def test_what_a_crash_left_reserved_is_charged_by_the_next_to_ask(store):
    worst = Spending(100, 200, 5.0, 1, 0, 1)
    store.reserve("scope", worst)
    store.reserve("other", worst)
    with store.claimed("scope"):
        assert store.spent("scope") == worst
        store.reserve("scope", worst)
    assert store.spent("scope") == worst + worst
    assert store.reserved("scope") == Spending()
    assert store.reserved("other") == worst


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT", "COMMIT"])
def test_a_signal_right_after_any_statement_leaves_no_transaction_open(store, monkeypatch, statement):
    connection, waiting = store._connection, [statement]

    class Interrupted:
        in_transaction = property(lambda self: connection.in_transaction)

        def execute(self, text, *values):
            done = connection.execute(text, *values)
            if waiting and text.startswith(waiting[0]):
                waiting.clear()
                raise KeyboardInterrupt
            return done

    monkeypatch.setattr(store, "_connection", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        store.put("scope", Reply("k", "", False, 3, 4), PRICE)
    kept = statement == "COMMIT"
    assert (store.get("k") is not None) == kept
    store.put("scope", Reply("k", "", False, 3, 4), PRICE)
    assert store.spent("scope") == PRICE


def test_one_process_at_a_time_asks_for_a_scope(store, tmp_path):
    with ReplyStore(tmp_path / "replies.sqlite") as other, store.claimed("scope"):
        with pytest.raises(InfrastructureError, match="Another process"), other.claimed("scope"):
            pass
        with other.claimed("another"):
            pass
    with store.claimed("scope"):
        pass


WRITER = """
import sys
from pathlib import Path
from vibethinker.generation.chat import Reply
from vibethinker.generation.replies import ReplyStore, Spending
with ReplyStore(Path(sys.argv[1])) as store:
    for n in range(60):
        store.put("scope", Reply(str(n), "x" * 5000, False, 1, 1), Spending(1, 1, 0.0, 1))
        if n == 20:
            print("written", flush=True)
"""


def test_processes_share_the_file_and_a_killed_one_leaves_it_whole(tmp_path):
    path = tmp_path / "new" / "replies.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert writers[0].stdout.readline() == "written\n"
    os.kill(writers[0].pid, signal.SIGKILL)
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers[1:]] == [0, 0]
    with ReplyStore(path) as store:
        assert store.spent("scope") == Spending(60, 60, 0.0, 60)
        assert all(len(store.get(str(n)).text) == 5000 for n in range(60))


def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path):
    text, other = tmp_path / "notes.txt", tmp_path / "other.sqlite"
    text.write_text("not a database, but long enough to look like one" * 100)
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    for path in (text, other):
        before = path.read_bytes()
        with pytest.raises(DataError, match="move it away"):
            ReplyStore(path)
        assert path.read_bytes() == before
    with pytest.raises(ConfigurationError, match="can't be opened"):
        ReplyStore(text / "replies.sqlite")


def test_a_request_is_named_by_all_that_its_reply_depends_on():
    messages = [{"role": "user", "content": "½ + \ud800"}]
    given = ["model", "place", messages, 1, 1, 100, 0, {}]
    key = request_key(*given)
    assert key == request_key("model", "place", ({"content": "½ + \ud800", "role": "user"},), 1.0, 1.0, 100, 0, {})
    assert len(key) == 64
    changes = ["other", "other", [], 0.5, 0.5, 101, 1, {"min_p": 0.1}]
    changed = {request_key(*given[:n], change, *given[n + 1 :]) for n, change in enumerate(changes)}
    assert len(changed | {key}) == 9
