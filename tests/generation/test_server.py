"""Each way in which a server answers or fails to, over real HTTP on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime

import pytest

import vibethinker.generation.wire
from tests.generation.asking import KEY, request
from tests.generation.fake_openai import Exchange, answer, failing, in_turn, saying
from vibethinker.data.settings import Budget, Server
from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.generation.replies import Spending
from vibethinker.generation.server import ServerChat
from vibethinker.generation.wire import retry_after, whole_characters

pytestmark = pytest.mark.slow

CONTEXT = {"error": {"message": "too long", "code": "context_length_exceeded", "type": "invalid_request_error"}}
VLLM_CONTEXT = {"object": "error", "message": "This model's maximum context length is 64 tokens.", "code": 400}


@pytest.mark.parametrize(
    ("text", "message", "ended", "expected", "truncated"),
    [
        ("four", {}, "stop", "four", False),
        ("fo", {}, "length", "fo", True),
        ("", {}, None, "", False),
        ("four", {"reasoning_content": "2+2"}, "stop", "<think>\n2+2\n</think>\n\nfour", False),
        ("four", {"reasoning": "2+2", "reasoning_content": ""}, "stop", "<think>\n2+2\n</think>\n\nfour", False),
        ("four", {"reasoning": "2+2", "content": None}, "length", "<think>\n2+2\n</think>\n\n", True),
        ("four", {"content": None}, "content_filter", "", True),
        ("\ud800 \0 😀", {}, "stop", "\ufffd \0 😀", False),
        (f"your key is {KEY}", {}, "stop", "your key is [key]", False),
    ],
)
def test_what_a_reply_is_made_of(asker, text, message, ended, expected, truncated):
    def behave(exchange: Exchange) -> None:
        completion = exchange.completion(text, **message)
        completion["choices"][0]["finish_reason"] = ended
        exchange.send(completion)

    asker.fake.behave = behave
    assert asker([request("q")], retries=0) == {"q": expected}
    assert asker.replies[0][1].truncated == truncated


@pytest.mark.parametrize("usage", [None, "none", {"prompt_tokens": 3}, {"prompt_tokens": -1, "completion_tokens": 1e9}])
def test_tokens_that_the_server_does_not_count_are_estimated(asker, usage):
    asker.fake.behave = lambda exchange: exchange.send(exchange.completion("eight ch") | {"usage": usage})
    asker([request("12345")])
    assert asker.spent == Spending(2, 2, 0.0, 1)
    assert asker.statistics.estimated == 1


def without(*path):
    """A completion that lacks the last of these, or has another value there."""

    def behave(exchange: Exchange) -> None:
        place = completion = exchange.completion()
        *parents, (name, value) = path
        for parent in parents:
            place = place[parent]
        place[name] = value
        exchange.send(completion)

    return behave


def charged_then(last):
    def behave(exchange: Exchange) -> None:
        exchange.completion()
        last(exchange)

    return behave


@pytest.mark.parametrize(
    ("behaviour", "cause", "lost"),
    [
        *((failing(status, b"no"), str(status), 0) for status in (408, 409, 425, 429, 500, 502, 503, 529)),
        (failing(503, b"x" * 200_000), "503", 0),
        (saying(b"<html><body>Welcome to the hotel's network</body></html>"), "garbage", 1),
        (saying(b""), "garbage", 1),
        (saying(b"[" * 100_000), "garbage", 1),
        (saying(b"[1]"), "garbage", 1),
        (saying(b'{"choices": [{"message": {"content": "\xff\xfe"}}]}'), "garbage", 1),
        (lambda exchange: exchange.send(exchange.completion("x" * 3_000_000)), "garbage", 1),
        (without(("choices", [])), "garbage", 0),
        (without(("choices", None)), "garbage", 0),
        (without("choices", 0, ("message", "text")), "garbage", 0),
        (without("choices", 0, "message", ("content", None)), "garbage", 0),
        (without("choices", 0, "message", ("content", [{"text": "a"}])), "garbage", 0),
        (without("choices", 0, "message", ("reasoning", {"text": "a"})), "garbage", 0),
        (without("choices", 0, ("finish_reason", "abort")), "garbage", 0),
        (lambda exchange: exchange.send(json.dumps(exchange.completion()).encode()[:-9]), "garbage", 1),
        (lambda exchange: exchange.send(b"not gzip", Content_Encoding="gzip"), "dropped", 1),
        (charged_then(Exchange.drop), "dropped", 1),
        (lambda exchange: exchange.send_half(exchange.completion()), "dropped", 1),
        (charged_then(Exchange.stall), "timeout", 1),
    ],
)
def test_a_try_that_brings_nothing_is_repeated(asker, monkeypatch, behaviour, cause, lost):
    monkeypatch.setattr(vibethinker.generation.wire, "_LARGEST", 2 << 20)
    asker.fake.behave = in_turn(behaviour, answer)
    budget = Budget(input_price=1, output_price=1)
    assert asker([request("q")], budget, timeout=1 if cause == "timeout" else 10) == {"q": "the answer to q"}
    assert asker.statistics.retries == {cause: 1}
    assert asker.statistics.lost == asker.spent.lost == lost
    assert (asker.spent.requests, asker.spent.retries) == (2, 1)
    billed = asker.fake.billed
    if not lost:
        assert (asker.spent.prompt_tokens, asker.spent.completion_tokens) == billed
    assert sum(billed) <= asker.spent.tokens <= sum(billed) + lost * 300
    assert asker.spent.usd == pytest.approx(asker.spent.tokens / 1e6)


def test_a_server_that_is_not_there_costs_nothing(asker):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(InfrastructureError, match=r"in 3 tries .last: ConnectError.*0 replies are kept"):
        asker([request("q")], url=f"http://127.0.0.1:{port}/v1")
    assert asker.spent == Spending(requests=3, retries=2)
    assert asker.statistics.retries == {"connection": 2}


def test_when_retries_are_used_up_what_is_under_way_is_kept_and_the_next_run_goes_on(asker):
    given_up = threading.Event()

    def behave(exchange: Exchange) -> None:
        if exchange.prompt == "bad":
            exchange.send({"error": f"CUDA error, key {KEY}"}, 500, Connection="close")
            exchange.gone()
            if exchange.attempt == 2:
                given_up.set()
            return
        if exchange.prompt == "slow":
            given_up.wait(20)
        answer(exchange)

    requests = [request(prompt) for prompt in ("one", "two", "bad", "slow", *map(str, range(50)))]
    asker(requests[:2])
    asker.fake.behave = behave
    with pytest.raises(InfrastructureError, match=r"3 tries \(last: status 500: CUDA error, key \[key\]\): 3 replies"):
        asker(requests, concurrency=2)
    kept = {r.messages[0]["content"] for r, _ in asker.replies}
    assert kept == {"one", "two", "slow"}
    first, asker.fake.behave = len(asker.fake.seen), answer
    assert len(asker(requests)) == len(requests)
    assert not kept & set(asker.asked()[first:])


@pytest.mark.parametrize(
    ("behaviour", "told"),
    [
        (failing(400, {"error": {"message": "bad\n  field\x1b[31m"}}), r"status 400: bad field\[31m"),
        (failing(401, {"error": {"message": f"Incorrect key: {KEY}."}}), r"401: Incorrect key: \[key\].*MY_KEY"),
        (failing(402, {"error": {"message": "Insufficient Balance"}}), "402.*account"),
        (failing(403, b"<html>no</html>"), "403"),
        (
            failing(404, {"error": {"message": "no such model"}}),
            r"404: no such model: look at data\.teacher\.server\.url",
        ),
        (failing(422, {"detail": [{"loc": ["body"], "input": "long prompt " * 999}]}), r"422.{200,260}…: mend"),
        (failing(429, {"error": {"message": "pay", "code": "insufficient_quota"}}), "429: pay: top up"),
        (failing(307, b"", Location=f"http://elsewhere/?{KEY}"), r"307.*where it sends to, http://elsewhere/\?\[key\]"),
    ],
)
def test_what_every_request_would_meet_ends_the_run(asker, behaviour, told):
    asker.fake.behave = behaviour
    with pytest.raises(ConfigurationError, match=told) as caught:
        asker([request(f"q{n}") for n in range(20)], concurrency=1, key_variable="MY_KEY")
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)
    assert asker.spent == Spending(requests=1)
    assert not asker.replies


@pytest.mark.parametrize(
    "refusal",
    [
        failing(400, CONTEXT),
        failing(400, VLLM_CONTEXT),
        failing(400, {"error": {"message": "no", "code": "content_filter"}}),
        failing(413, b"<html>413 Request Entity Too Large</html>"),
    ],
)
def test_a_request_that_the_server_refuses_has_no_reply_and_ends_nothing(asker, refusal):
    asker.fake.behave = lambda exchange: refusal(exchange) if exchange.prompt == "long" else answer(exchange)
    texts = asker([request(prompt) for prompt in ("long", "a", "long", "b")], concurrency=2)
    assert texts == {"a": "the answer to a", "b": "the answer to b"}
    assert asker.statistics.refused == 2
    assert asker.progress[-1] == 4
    assert (asker.spent.prompt_tokens, asker.spent.completion_tokens) == asker.fake.billed


def test_a_server_that_refuses_everything_is_set_up_wrong(asker):
    asker.fake.behave = failing(400, VLLM_CONTEXT)
    with pytest.raises(ConfigurationError, match=r"refused all of the first 64.*maximum context length"):
        asker([request(f"q{n}") for n in range(1000)])
    assert len(asker.fake.seen) <= 67


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "http://host:port/v1"}, "no address"),
        ({"url": "http://h:99999999/v1"}, "no address"),
        ({"url": f"http://{'h' * 70}/v1"}, "no address"),
        ({"extra": {"n": 2, "stream": True}}, "can't set n, stream"),
        ({"extra": {"since": datetime.now(UTC)}}, "JSON"),
    ],
)
def test_what_cannot_be_sent_is_found_before_anything_is(asker, settings, told):
    with pytest.raises(ConfigurationError, match=told):
        asker.chat(**settings)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(asker, key):
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY") as caught:
        ServerChat(Server(url=asker.fake.url), Budget(), "teacher", asker.store, "scope", key)
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        *((value, None) for value in (None, "", "soon", "nan", "inf", "Wed, 99 Oct 2026")),
    ],
)
def test_a_wait_is_named_in_seconds_or_by_a_date(value, seconds):
    assert retry_after(value, datetime(2026, 10, 21, 7, 28, tzinfo=UTC)) == seconds


@pytest.mark.parametrize("text", ["", "a\0b", "½ 数学 😀", "\ufeffa"])
def test_whole_characters_stay_and_halves_are_replaced(text):
    assert whole_characters(text) == text
    assert whole_characters(f"{text}\udc00{text}\ud800") == f"{text}\ufffd{text}\ufffd"


def test_the_key_is_written_and_told_nowhere(asker, caplog, tmp_path):
    caplog.set_level("DEBUG")
    for name in ("httpx", "httpcore", "asyncio"):
        caplog.set_level("DEBUG", name)
    echo = {"error": {"message": f"Authorization: Bearer {KEY}"}}
    asker.fake.behave = in_turn(
        failing(500, echo, X_Echo=KEY),
        lambda exchange: exchange.send(exchange.completion(f"Bearer {KEY}"), X_Echo=KEY),
    )
    assert asker([request("q")]) == {"q": "Bearer [key]"}
    errors = []
    for behaviour in (failing(500, echo), failing(401, echo), failing(400, f"Bearer {KEY}".encode()), Exchange.drop):
        asker.fake.behave = behaviour
        with pytest.raises((ConfigurationError, InfrastructureError)) as caught:
            asker([request("r")])
        errors += [str(caught.value), repr(caught.value), str(caught.value.__cause__)]
    assert KEY not in "".join([*errors, repr(asker.latest), repr(asker.statistics), caplog.text])
    assert not [record for record in caplog.records if record.name.startswith("http")]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(KEY.encode() in path.read_bytes() for path in files)


def test_the_interface_loads_neither_torch_nor_a_client():
    script = "import sys, vibethinker.generation.chat, vibethinker.generation.replies; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "httpx", "aiolimiter"} & set(modules)
