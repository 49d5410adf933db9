"""One try of one request over HTTP: what is sent to an OpenAI-compatible server, and what its answers mean.

The key is sent as a bearer token and is nowhere else: not in messages, replies, representations or log records. That
is also why redirects are not followed, and why httpx and httpcore log nothing of these requests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeGuard

import httpx

from vibethinker.data.settings import Server
from vibethinker.errors import ConfigurationError
from vibethinker.generation.chat import Request

_LARGEST = 64 << 20  # bytes of an answer
_LARGEST_PROBLEM = 64 << 10  # bytes read of what comes with an error
_SHOWN = 200  # characters of a server's message
_CONNECT_SECONDS = 30.0
# uvicorn, which most servers run on, drops connections that were idle for 5 s; a request sent just then is lost.
_IDLE_SECONDS = 2.0
_TRANSIENT = frozenset({408, 409, 425, 429})
# Fields that decide what is paid for, or how the answer is read.
_OWN = frozenset({"best_of", "max_tokens", "messages", "model", "n", "seed", "stream", "temperature", "top_p"})
_REFUSED_CODES = frozenset(
    {"content_filter", "content_policy_violation", "context_length_exceeded", "exceed_context_size_error"}
)
# Servers that give no such code: vLLM, SGLang, llama.cpp, Azure, OpenRouter and Anthropic's compatible one.
_REFUSED_TEXT = re.compile(
    r"context (?:length|size|window)|(?:prompt|input) is too long|token count exceeds|content (?:management )?policy"
    r"|input was flagged",
    re.I,
)
_CUT_SHORT = frozenset({"content_filter", "length", "max_tokens", "model_length"})
_ABORTED = frozenset({"abort", "error"})
_LONG_SECRET = 16  # characters; a shorter key, such as EMPTY, is a word that a reply may well hold


class Failed(Exception):
    """A try that brought no answer and may be repeated.

    Attributes:
        cause: what it is counted as: an HTTP status, `connection`, `timeout`, `dropped` or `garbage`.
        lost: whether the answer may have been charged for all that.
        wait: for how long the server asked to be left alone, in seconds.
        usage: prompt and completion tokens that the server says it charges.
    """

    def __init__(
        self, cause: str, text: str, lost: bool = False, wait: float | None = None, usage: tuple[int, int] | None = None
    ) -> None:
        super().__init__(text)
        self.cause, self.lost, self.wait, self.usage = cause, lost, wait, usage


class Refused(Exception):
    """The server won't answer this one request."""


@dataclass(frozen=True)
class Answer:
    """A chat completion: its text, whether it was cut short, and the prompt and completion tokens it counts."""

    text: str
    truncated: bool
    usage: tuple[int, int] | None


class Endpoint:
    """Where a model of a server is asked."""

    def __init__(self, server: Server, model: str, key: str | None) -> None:
        """Check the address, the key and the further fields.

        Raises:
            ConfigurationError: one of them can't be sent.
        """
        self._server, self._model = server, model
        try:
            url = httpx.URL(server.url)
            if not url.host.encode("idna") or not 0 < (url.port or 443) < 65536:
                raise ValueError("host or port can't be")
        except (ValueError, httpx.InvalidURL) as error:
            raise ConfigurationError(f"data.teacher.server.url is no address ({error}): mend it") from None
        self._url = url.copy_with(path=f"{url.path.rstrip('/')}/chat/completions")
        self.place = f"{url.scheme}://{url.netloc.decode('ascii')}"
        self._key = (key or "").strip()
        if not all("!" <= character <= "~" for character in self._key):
            raise ConfigurationError(
                f"The server's key holds a blank or a character outside ASCII: set it anew in {self._key_place()}"
            )
        self._secrets = [secret for secret in (self._key, url.password) if secret]
        if own := sorted(_OWN & {name for name, value in server.extra.items() if value is not None}):
            raise ConfigurationError(
                f"data.teacher.server.extra can't set {', '.join(own)}: data.teacher has settings of its own, and only "
                "null, which leaves a field out, is taken here"
            )
        try:
            json.dumps(server.extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"data.teacher.server.extra holds what JSON can't ({error}): mend it") from None

    def __repr__(self) -> str:
        return f"Endpoint({self.place!r}, {self._model!r})"

    def client(self) -> httpx.AsyncClient:
        """Connections to the server, through the environment's proxies if it names any; silences the calling task."""
        _asking.set(True)
        timeout = httpx.Timeout(None, connect=min(_CONNECT_SECONDS, self._server.timeout / 2))
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=self._server.concurrency, keepalive_expiry=_IDLE_SECONDS
        )
        headers = {"Content-Type": "application/json", "User-Agent": "vibethinker"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits, follow_redirects=False)

    def longest(self, request: Request) -> int:
        """Tokens that the reply may have at most."""
        other = self._server.extra.get("max_completion_tokens")
        return max(request.max_tokens, other) if isinstance(other, int) else request.max_tokens

    async def ask(self, client: httpx.AsyncClient, request: Request) -> Answer:
        """Send the request and read the answer, in at most the server's `timeout`.

        Raises:
            Failed: there is none, and another try may bring one.
            Refused: there is none to this request.
            ConfigurationError: there would be none to any request.
        """
        try:
            async with (
                asyncio.timeout(self._server.timeout),
                client.stream("POST", self._url, content=self._body(request)) as response,
            ):
                body = await self._read(response)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError) as error:
            raise Failed("connection", self._described(error)) from None
        except TimeoutError:
            raise Failed("timeout", f"no answer in {self._server.timeout:g} s", lost=True) from None
        except httpx.RequestError as error:
            raise Failed("dropped", self._described(error), lost=True) from None
        if response.is_success:
            answer = read_answer(body)
            return Answer(self._scrubbed(answer.text, _LONG_SECRET), answer.truncated, answer.usage)
        raise self._problem(response.status_code, response.headers, body)

    def _body(self, request: Request) -> bytes:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [dict(message) for message in request.messages],
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
        } | self._server.extra
        sent = {name: value for name, value in body.items() if value is not None}
        return whole_characters(json.dumps(sent, ensure_ascii=False)).encode()

    async def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if response.is_success and len(body) > _LARGEST:
                raise Failed("garbage", f"an answer of more than {_LARGEST >> 20} MiB", lost=True)
            if not response.is_success and len(body) > _LARGEST_PROBLEM:
                break
        return bytes(body)

    def _problem(self, status: int, headers: Mapping[str, str], body: bytes) -> Exception:
        message, codes = _message(body)
        text = f"status {status}: {self._one_line(message)}" if message.strip() else f"status {status}"
        if status in (400, 403, 413, 422) and (
            status == 413 or codes & _REFUSED_CODES or _REFUSED_TEXT.search(message)
        ):
            return Refused(text)
        unpaid = "insufficient_quota" in codes
        if (status in _TRANSIENT and not unpaid) or status >= 500:
            return Failed(str(status), text, wait=retry_after(headers.get("retry-after"), datetime.now(UTC)))
        if status in (401, 403):
            mend = f"set its key in {self._key_place()}"
        elif status == 402 or unpaid:
            mend = "top up the account"
        elif status == 404:
            mend = "look at data.teacher.server.url, which ends with /v1 as a rule, and data.teacher.model"
        elif 300 <= status < 400:
            mend = f"set data.teacher.server.url to where it sends to, {self._one_line(headers.get('location', ''))}"
        else:
            mend = "mend data.teacher to what the server takes"
        return ConfigurationError(f"{self.place} won't answer, {text}: {mend}.")

    def _key_place(self) -> str:
        block = f" or the Prefect Secret block {self._server.key_secret}" if self._server.key_secret else ""
        return f"the environment variable {self._server.key_variable}{block}"

    def _described(self, error: Exception) -> str:
        return self._one_line(f"{type(error).__name__} {error}")

    def _one_line(self, text: str) -> str:
        line = "".join(c for c in " ".join(self._scrubbed(text).split()) if c.isprintable())
        return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}…"

    def _scrubbed(self, text: str, shortest: int = 1) -> str:
        for secret in self._secrets:
            if len(secret) >= shortest:
                text = text.replace(secret, "[key]")
        return text


def read_answer(body: bytes) -> Answer:
    """The first choice of a chat completion.

    Raises:
        Failed: it is none; what it says of its cost is in `usage`, and it counts as lost if it says nothing.
    """
    usage = None
    try:
        completion = json.loads(body)
        usage = _usage(completion.get("usage"))
        choice = completion["choices"][0]
        message, ended = choice["message"], str(choice.get("finish_reason"))
        content, thoughts = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    except (ValueError, RecursionError, AttributeError, LookupError, TypeError):
        raise Failed("garbage", "what came isn't a chat completion", lost=usage is None, usage=usage) from None
    if content is None and (thoughts or ended in _CUT_SHORT):
        content = ""
    if not isinstance(content, str) or not isinstance(thoughts, str | None) or ended in _ABORTED:
        raise Failed("garbage", "the chat completion holds no whole text", lost=usage is None, usage=usage)
    text = f"<think>\n{thoughts}\n</think>\n\n{content}" if thoughts else content
    return Answer(whole_characters(text), ended in _CUT_SHORT, usage)


def whole_characters(text: str) -> str:
    """The text with each lone surrogate, which no UTF-8 can hold, replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds from `now` that a Retry-After header names, as a number or a date; None where it names none."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return None
        seconds = (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _usage(value: Any) -> tuple[int, int] | None:
    if not isinstance(value, dict):
        return None
    prompt, completion = value.get("prompt_tokens"), value.get("completion_tokens")
    return (prompt, completion) if _is_count(prompt) and _is_count(completion) else None


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40


def _message(body: bytes) -> tuple[str, set[str]]:
    """What an error's body says, and the codes it gives the error."""
    text = body.decode("utf-8", "replace")
    try:
        problem = json.loads(text)
    except (ValueError, RecursionError):
        return text, set()
    if isinstance(problem, dict):
        problem = problem.get("error") or problem
    if not isinstance(problem, dict):
        return str(problem), set()
    message = problem.get("message") or problem.get("detail") or text
    return str(message), {str(problem.get(name)) for name in ("code", "type")}


_asking: ContextVar[bool] = ContextVar("asking", default=False)


class _Silence(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _asking.get()


# A logger's filter sees no record of the loggers below it.
for _name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy", "httpcore.socks"):
    logging.getLogger(_name).addFilter(_Silence())
