"""Many requests at once, over real HTTP on loopback: nothing lost, doubled, paid for twice or beyond the budget."""

from __future__ import annotations

import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

import vibethinker.generation.pacing
import vibethinker.generation.server
from tests.generation.asking import KEY, request
from tests.generation.fake_openai import Exchange, answer, chaos
from vibethinker.data.settings import Budget
from vibethinker.errors import PreemptedError
from vibethinker.generation.chat import Reply, Request
from vibethinker.generation.replies import ReplyStore, Spending
from vibethinker.generation.server import BudgetError

pytestmark = pytest.mark.slow


def test_each_request_has_its_reply_and_as_many_are_under_way_as_may_be(asker):
    together, barrier = threading.Event(), threading.Barrier(4, action=lambda: together.set())

    def wait_for_all(exchange: Exchange) -> None:
        if not together.is_set():
            barrier.wait(20)
        answer(exchange)

    asker.fake.behave = wait_for_all
    extra = {"min_p": 0.1, "seed": None}
    texts = asker([request(f"q{n}") for n in range(30)], extra=extra)
    assert texts == {f"q{n}": f"the answer to q{n}" for n in range(30)}
    assert asker.fake.most == 4
    assert max(asker.progress) == 30 and asker.progress == sorted(asker.progress)
    seen = asker.fake.seen[0]
    assert seen.headers["Authorization"] == f"Bearer {KEY}"
    assert seen.body == {
        "model": "teacher", "messages": [{"role": "user", "content": seen.prompt}], "temperature": 0.7, "top_p": 0.9,
        "max_tokens": 40, "min_p": 0.1,
    }  # fmt: skip
    assert (asker.spent.prompt_tokens, asker.spent.completion_tokens) == asker.fake.billed
    assert asker.spent.requests == asker.statistics.requests == asker.statistics.replies == 30


def test_what_is_in_the_store_is_not_asked_again(asker):
    requests = [request(f"q{n}") for n in range(6)]
    first = asker(requests[:4])
    again = asker([*requests, request("q0", seed=1)], scope="another run")
    assert first.items() <= again.items()
    assert Counter(asker.asked()) == {"q0": 2, "q1": 1, "q2": 1, "q3": 1, "q4": 1, "q5": 1}
    assert (asker.statistics.from_store, asker.statistics.replies) == (4, 3)


def test_the_same_request_under_way_twice_is_asked_once(asker):
    asker([request("q")] * 9)
    assert asker.asked() == ["q"]
    assert len(asker.replies) == 9


def test_requests_are_taken_only_as_they_can_be_sent(asker):
    taken, ahead = 0, []

    def endless():
        nonlocal taken
        for n in range(200):
            taken += 1
            yield request(f"q{n}")

    asker.chat().ask(endless(), lambda *_: ahead.append(taken - len(ahead)))
    assert len(ahead) == 200 and max(ahead) <= 5


def test_replies_from_the_store_do_not_keep_new_ones_waiting(asker):
    asker([request("kept")])

    def requests() -> Iterator[Request]:
        yield request("new")
        for _ in range(100_000):
            if asker.store.get(request("new").key) is not None:
                return
            yield request("kept")

    texts = asker(requests(), concurrency=2)
    assert texts.keys() == {"kept", "new"}
    assert asker.statistics.from_store < 100_000


def test_a_wait_that_the_server_asks_for_holds_back_everyone(asker):
    turned_away = threading.Event()

    def behave(exchange: Exchange) -> None:
        if exchange.prompt == "q0" and exchange.attempt == 0:
            exchange.send(b"", 429, Retry_After="0.7", Connection="close")
            exchange.gone()
            turned_away.set()
        elif exchange.prompt == "q1":
            turned_away.wait(20)
            answer(exchange)
        else:
            answer(exchange)

    asker.fake.behave = behave
    asker([request(f"q{n}") for n in range(6)], concurrency=2)
    first, second, *rest = asker.fake.seen
    assert {first.prompt, second.prompt} == {"q0", "q1"}
    limited = next(e for e in (first, second) if e.prompt == "q0")
    assert len(rest) == 5
    assert min(e.arrived for e in rest) - limited.arrived >= 0.69


def test_one_that_is_turned_away_while_others_are_served_only_waits(asker):
    def behave(exchange: Exchange) -> None:
        if exchange.prompt == "q" and exchange.attempt < 6:
            served = len(asker.replies)
            while len(asker.replies) == served and not exchange.fake.closing.wait(0.005):
                pass
            exchange.send(b"", 429)
        else:
            answer(exchange)

    def requests() -> Iterator[Request]:
        yield request("q")
        others = itertools.count()
        while not any(r.messages[0]["content"] == "q" for r, _ in asker.replies):
            yield request(f"other {next(others)}")

    asker.fake.behave = behave
    asker.chat(retries=0).ask(requests(), asker.replied)
    assert asker.statistics.retries == {"429": 6}


def test_limits_a_minute_are_kept_and_larger_requests_still_come_through(asker, monkeypatch):
    monkeypatch.setattr(vibethinker.generation.pacing, "_MINUTE", 0.4)
    begun = time.monotonic()
    asker([request(f"q{n}") for n in range(5)], requests_per_minute=6)
    assert asker.fake.seen[4].arrived - begun >= 4 * 0.4 / 6
    # A reply of up to 40 tokens with a limit of 30; what the short replies leave of it is the next ones'.
    begun = time.monotonic()
    asker([request(f"r{n}") for n in range(3)], tokens_per_minute=30)
    assert asker.fake.seen[5].arrived - begun >= 0.5
    assert len(asker.fake.seen) == 8


def test_chaos_neither_loses_nor_doubles_a_reply_and_all_costs_are_counted(asker):
    asker.fake.behave = chaos(seed=7, share=0.3)
    requests = [request(f"problem {n // 2}", seed=n % 2) for n in range(300)]
    budget = Budget(input_price=3, output_price=15)
    asker(requests, budget, concurrency=8, timeout=2, retries=30)
    assert Counter(r.key for r, _ in asker.replies) == Counter(r.key for r in requests)
    assert all(reply.text == f"the answer to {r.messages[0]['content']}" for r, reply in asker.replies)
    assert asker.fake.most <= 8
    # Whatever arrived whole did so once a request.
    assert Counter(json.dumps(e.body) for e in asker.fake.seen if e.whole).most_common(1)[0][1] == 1
    statistics, spent = asker.statistics, asker.spent
    assert {"429", "500", "503", "dropped", "garbage", "timeout"} <= set(statistics.retries)
    assert statistics.requests == spent.requests == len(asker.fake.seen) == 300 + statistics.retries.total()
    assert spent == Spending(
        statistics.prompt_tokens, statistics.completion_tokens, pytest.approx(statistics.usd), statistics.requests,
        statistics.retries.total(), statistics.lost,
    )  # fmt: skip
    # Lost ones are charged by what they may cost at worst, which the server's charge doesn't exceed.
    prompt, completion = asker.fake.billed
    assert statistics.lost > 10
    assert prompt <= spent.prompt_tokens <= prompt + statistics.lost * 200
    assert completion <= spent.completion_tokens <= completion + statistics.lost * 40
    assert spent.usd == pytest.approx((spent.prompt_tokens * 3 + spent.completion_tokens * 15) / 1e6)


PROCESS = """
import sys
from pathlib import Path
from vibethinker.data.settings import Budget, Server
from vibethinker.generation.chat import Request
from vibethinker.generation.replies import ReplyStore
from vibethinker.generation.server import ServerChat
requests = (Request(f"key {n}", ({"role": "user", "content": f"key {n}"},), 1.0, 1.0, 40, 0) for n in range(80))
with ReplyStore(Path(sys.argv[1])) as store:
    chat = ServerChat(Server(url=sys.argv[2], concurrency=6), Budget(), "teacher", store, "scope", sys.argv[3])
    chat.ask(requests, lambda request, reply: print(request.key, reply.text, sep=": "))
"""


def test_a_killed_process_goes_on_where_it_was_and_its_costs_are_not_forgotten(asker, tmp_path):
    path, enough = tmp_path / "crash" / "replies.sqlite", threading.Event()

    def slow(exchange: Exchange) -> None:
        if len(asker.fake.seen) > 40:
            enough.set()
            exchange.completion()
            exchange.gone()
        else:
            answer(exchange)

    asker.fake.behave = slow
    command = [sys.executable, "-c", PROCESS, str(path), asker.fake.url, KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert enough.wait(60)
        process.send_signal(signal.SIGKILL)
    stored = sqlite3.connect(path)
    kept = {key for (key,) in stored.execute("SELECT key FROM replies")}
    stored.close()
    first = len(asker.fake.seen)
    assert 30 <= len(kept) <= 40
    asker.fake.behave = answer
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert sorted(output.splitlines()) == sorted(f"key {n}: the answer to key {n}" for n in range(80))
    assert not kept & set(asker.asked()[first:])
    with ReplyStore(path) as store:
        spent, (prompt, completion) = store.spent("scope"), asker.fake.billed
    assert 1 <= spent.lost <= 6
    # Some may have been killed between their reservation and their sending.
    assert 0 <= spent.requests - len(asker.fake.seen) <= 6
    assert prompt <= spent.prompt_tokens and completion <= spent.completion_tokens


@pytest.mark.parametrize("budget", [{"tokens": 1500}, {"usd": 0.02, "input_price": 5, "output_price": 20}])
@pytest.mark.parametrize("behaviour", [answer, chaos(seed=3, share=0.3)])
def test_a_budget_is_never_exceeded_and_a_larger_one_goes_on(asker, budget, behaviour):
    def cost() -> float:
        prompt, completion = asker.fake.billed
        return (prompt * 5 + completion * 20) / 1e6 if "usd" in budget else prompt + completion

    cap, name = budget.get("usd") or budget["tokens"], "usd" if "usd" in budget else "tokens"
    asker.fake.behave = behaviour
    requests = [request(f"q{n:03}") for n in range(150)]
    settings = {"concurrency": 8, "timeout": 2, "retries": 30}
    with pytest.raises(BudgetError, match=r"of [\d.,]+ (tokens|USD) are spent.*raise data.teacher.budget"):
        asker(requests, Budget(**budget), **settings)
    assert cost() <= getattr(asker.spent, name) <= cap
    # What is left doesn't suffice for one more.
    assert getattr(asker.spent, name) >= cap - (300 if name == "tokens" else 300 * 20 / 1e6)
    first, kept = len(asker.fake.seen), {r.key for r, _ in asker.replies}
    assert 0 < len(kept) < 150
    assert asker.statistics.unasked == 150 - len(kept)

    # Without more money, all that there is is handed over, wherever it stands among the requests.
    asker.replies.clear()
    with pytest.raises(BudgetError):
        asker(requests[::-1], Budget(**budget), **settings)
    assert {r.key for r, _ in asker.replies} == kept and len(asker.fake.seen) == first

    asker.replies.clear()
    asker(requests, Budget(**budget | {name: 40 * cap}), **settings)
    assert Counter(r.key for r, _ in asker.replies) == Counter(r.key for r in requests)
    assert not kept & {request(e.prompt).key for e in asker.fake.seen[first:]}


def test_what_a_reply_leaves_of_its_reservation_is_there_for_those_who_wait(asker):
    worst = 300
    requests = [request(f"q{n}") for n in range(4)]
    assert len(asker(requests, Budget(tokens=worst))) == 4
    assert asker.fake.most == 1


def test_an_error_of_the_callers_ends_everything_and_what_was_sent_is_charged(asker):
    def behave(exchange: Exchange) -> None:
        if exchange.prompt == "q0":
            answer(exchange)
        else:
            exchange.completion()
            exchange.stall()

    def replied(request: Request, reply: Reply) -> None:
        raise ZeroDivisionError

    asker.fake.behave = behave
    with pytest.raises(ZeroDivisionError):
        asker.chat().ask([request(f"q{n}") for n in range(20)], replied)
    assert asker.store.get(request("q0").key) is not None
    assert asker.store.reserved("scope") == Spending()
    assert asker.spent.lost == asker.spent.requests - 1 <= 4
    assert sum(asker.fake.billed) <= asker.spent.tokens


@pytest.mark.parametrize("calls", [0, 50])
def test_a_step_that_is_asked_to_stop_stops_asking(asker, calls):
    """The signal comes while the loop waits, or while it is busy with its own callbacks."""

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        raise PreemptedError("The step was asked to stop.")

    once = threading.Lock()

    def behave(exchange: Exchange) -> None:
        if len(asker.fake.seen) > calls:
            if once.acquire(blocking=False):
                os.kill(os.getpid(), signal.SIGUSR1)
            exchange.stall()
        else:
            answer(exchange)

    asker.fake.behave = behave
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(PreemptedError):
            asker([request(f"q{n}") for n in range(100)])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert asker.store.reserved("scope") == Spending()
    assert len(asker.replies) <= calls


def test_what_a_signal_raises_in_the_loops_own_callbacks_is_not_swallowed(asker):
    def replied(request: Request, reply: Reply) -> None:
        import asyncio

        def handler() -> None:
            raise PreemptedError("The step was asked to stop.")

        asyncio.get_running_loop().call_soon(handler)

    with pytest.raises(PreemptedError):
        asker.chat().ask([request(f"q{n}") for n in range(1000)], replied)
    assert len(asker.fake.seen) < 100


def test_progress_is_a_sign_of_life_while_the_server_thinks(asker, monkeypatch):
    monkeypatch.setattr(vibethinker.generation.server, "_HEARTBEAT_SECONDS", 0.02)
    alive = threading.Event()

    def behave(exchange: Exchange) -> None:
        alive.wait(20)
        answer(exchange)

    asker.fake.behave = behave
    heard: list[int] = []
    asker.chat().ask([request("q")], asker.replied, lambda done: (heard.append(done), len(heard) > 3 and alive.set()))
    assert heard[:3] == [0, 0, 0] and heard[-1] == 1


def test_asking_works_in_any_thread(asker):
    thread = threading.Thread(target=asker, args=([request("q")],))
    thread.start()
    thread.join()
    assert len(asker.replies) == 1
