"""What a teacher is asked for: domains, labels and traces, by one path whoever it is. [1.5B, 3B]

The teacher is a model on this machine or a server's; the student itself is one too, which makes rejection sampling.
Each problem is asked `data.teacher.samples` times, which take turns with the temperatures and then with the styles.
Every reply is kept in a store before it is used, so that what was paid for is never asked again: a server's in the
workspace, for all runs; a local model's with the step. Replies are drafts like the solutions of files: they become
traces only if their final answer verifies, and a problem's own gold is never replaced.

Left out: tools, several turns, and models that answer with anything but text.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, zip_longest
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vibethinker.data import domains as classification
from vibethinker.data.golds import has_gold
from vibethinker.data.judging import fits
from vibethinker.data.prompts import conversation_ids, messages
from vibethinker.data.schema import Problem
from vibethinker.data.settings import DataSettings, Server, Style
from vibethinker.data.spool import Kept, Spool
from vibethinker.data.traces import FATES, Draft, Traces
from vibethinker.data.votes import majority
from vibethinker.errors import ConfigurationError
from vibethinker.generation.chat import Chat, Reply, Request, request_key
from vibethinker.generation.replies import ReplyStore
from vibethinker.settings import Prompts
from vibethinker.steps import StepContext
from vibethinker.verification import Verifier

_BATCH = 256  # problems
_WORD_TOKENS = 4096  # in which a domain is named, thoughts included

Tell = Callable[[str], None]


class Teaching:
    """One step's dealings with its teacher; a context manager."""

    def __init__(self, context: StepContext, spool: Spool, data: DataSettings, tell: Tell) -> None:
        self._context, self._spool, self._data, self._tell = context, spool, data, tell
        self._teacher = data.teacher
        self._prompts = Prompts.model_validate(context.settings["prompts"])
        self._domains: Sequence[str] = context.settings["domains"]
        self._seed: int = context.settings["seed"]
        server = self._teacher.server
        self._place = server.url if server else "here"
        self._extra = dict(server.extra) if server else {}
        path = Path(context.execution["replies"]) if server else context.checkpoints / "replies.sqlite"
        self._store = ReplyStore(path)
        self._scope = _scope(context.settings)
        self._chat: Chat | None = None
        self._close: Callable[[], None] | None = None

    # ---- what is asked for ----

    def label_domains(self) -> None:
        """Have the teacher name the domain of the problems that keywords don't decide."""

        def request(kept: Kept) -> list[Request]:
            asked = ({"role": "user", "content": classification.question(kept.problem.problem, self._domains)},)
            return [self._request(asked, 0.0, kept.problem, 0, min(_WORD_TOKENS, self._teacher.max_tokens))]

        self._ask("domains", lambda: self._spool.kept_out("undecided"), request)
        # Those that it decides stop being kept out, so a resumed pass begins with what is left.
        for kept in self._spool.kept_out("undecided"):
            reply = self._reply(request(kept)[0])
            domain = classification.parse(reply.text, self._domains) if reply else None
            with self._spool.batch():
                self._decide(kept, domain)

    def _decide(self, kept: Kept, domain: str | None) -> None:
        spool, otherwise = self._spool, self._data.classifier.otherwise
        if domain is not None and not fits(kept.problem, domain):
            domain = None
        spool.count("classifier", "all", "by_teacher" if domain else "otherwise" if otherwise else "left_undecided")
        if (domain := domain or otherwise) is None:
            spool.drop(kept.n, "unmapped")
            spool.remove("unmapped", kept.problem, kept.origin)
            return
        problem = replace(kept.problem, domain=domain)
        spool.count("domain", domain, "rows")
        spool.keep(kept.n, problem, None if has_gold(problem) else "no_gold")

    def vote(self, verifier: Verifier) -> None:
        """Label the problems without gold that may be trained on by what most samples answer."""
        share = self._teacher.votes.share
        if self._spool.mark("voters") is None:
            with self._spool.batch():
                self._spool.set_mark("voters", {domain: self._lacking(domain) for domain in self._domains})
        voters = self._spool.mark("voters")

        def chosen() -> Iterator[Kept]:
            for domain in self._domains:
                yield from islice(self._spool.unlabelled(domain), voters[domain])

        self._ask("votes", chosen, self._requests)
        if self._spool.mark("voted"):
            return
        with self._spool.batch():
            # Read before they are changed, since a labelled one is no longer kept out.
            kept = chosen()
            while batch := list(islice(kept, _BATCH)):
                samples = [[self._whole(request) for request in self._requests(one)] for one in batch]
                labels = majority(samples, [one.problem.problem for one in batch], share, verifier)
                for one, label in zip(batch, labels, strict=True):
                    self._label(one, label)
                self._tell("counting votes")
            self._spool.set_mark("voted", True)

    def _lacking(self, domain: str) -> int | None:
        """How many more problems of a domain can be trained on; None where there is no limit."""
        limit = self._data.max_problems
        return None if limit is None else max(0, limit - self._spool.size(domain, "train"))

    def _label(self, kept: Kept, label: str | None) -> None:
        if label is None:
            self._spool.drop(kept.n, "no_majority")
            self._spool.remove("no_majority", kept.problem, kept.origin)
            return
        self._spool.count("domain", kept.problem.domain, "majority_labels")
        self._spool.keep(kept.n, replace(kept.problem, answer=label, answer_source="majority"))

    def write_traces(self, traces: Traces) -> None:
        """Ask for solutions of the training problems, and verify them."""
        if self._spool.mark("asked") is None:
            with self._spool.batch():
                self._spool.choose_asked(lacking=self._teacher.ask == "lacking")
                self._spool.set_mark("asked", True)
        # Domain by domain, a budget that doesn't suffice would leave the last ones without a trace.
        self._ask("traces", self._in_turns, self._requests)
        for domain in self._domains:
            traces.make(f"replies-{domain}", self._asked(domain), self._drafts, by_teacher=True)

    def _in_turns(self) -> Iterator[Kept]:
        """The problems that are asked about, one of each domain after the other."""
        rounds = zip_longest(*map(self._asked, self._domains))
        return (kept for some in rounds for kept in some if kept is not None)

    def _asked(self, domain: str) -> Iterator[Kept]:
        return (kept for kept in self._spool.split(domain, "train") if self._spool.is_asked(kept.n))

    def _drafts(self, kept: Kept) -> list[Draft]:
        drafts, seen = [], set()
        for request, style in zip(self._requests(kept), self._styles(), strict=False):
            reply = self._reply(request)
            if reply is None:
                continue
            unusable = "truncated" if reply.truncated else "duplicate" if reply.text in seen else None
            seen.add(reply.text)
            name = Path(str(self._teacher.model)).name
            drafts.append(Draft(kept.problem, reply.text, name, _told(request, style), unusable=unusable))
        return drafts

    # ---- how ----

    def _styles(self) -> Iterator[Style]:
        """The style of each sample, without end."""
        styles = self._teacher.styles or (Style(name="own"),)
        turn = len(self._teacher.temperatures)
        number = 0
        while True:
            yield styles[number // turn % len(styles)]
            number += 1

    def _requests(self, kept: Kept) -> list[Request]:
        """All samples that a problem is asked for; always the same."""
        temperatures, limit = self._teacher.temperatures, self._teacher.max_tokens
        numbered = zip(range(self._teacher.samples), self._styles(), strict=False)
        return [
            self._request(
                self._conversation(kept.problem, style), temperatures[i % len(temperatures)], kept.problem, i, limit
            )
            for i, style in numbered
        ]

    def _conversation(self, problem: Problem, style: Style) -> tuple[dict[str, str], ...]:
        changes: dict[str, str] = {}
        if style.system is not None:
            changes["system"] = style.system
        if style.suffix is not None:
            changes |= {"math_suffix": style.suffix, "code_suffix": style.suffix}
        return tuple(messages(problem, self._prompts.model_copy(update=changes)))

    def _request(
        self, conversation: tuple[dict[str, str], ...], temperature: float, problem: Problem, number: int, limit: int
    ) -> Request:
        teacher = self._teacher
        told = f"{self._seed}/{number}/{problem.problem}".encode()
        seed = int.from_bytes(hashlib.sha256(told).digest()[:4], "big") >> 1
        top_p = teacher.top_p if temperature else 1.0
        key = request_key(str(teacher.model), self._place, conversation, temperature, top_p, limit, seed, self._extra)
        return Request(key, conversation, temperature, top_p, limit, seed)

    def _ask(
        self, what: str, problems: Callable[[], Iterable[Kept]], requests: Callable[[Kept], list[Request]]
    ) -> None:
        """Have a reply to every request in the store, once."""
        mark = f"asked for {what}"
        if self._spool.mark(mark) or next(iter(problems()), None) is None:
            return
        replies = 0

        def progress(done: int) -> None:
            self._tell(f"{done} requests to the teacher, for {what}")

        def replied(request: Request, reply: Reply) -> None:
            """The store has it."""
            nonlocal replies
            replies += 1

        from vibethinker.generation.server import BudgetError

        try:
            self._engine().ask((r for kept in problems() for r in requests(kept)), replied, progress)
        except BudgetError as error:
            if self._teacher.budget.then == "stop":
                raise
            self._context.emit.warning(f"{error}. The run goes on with what there is, {replies} replies for {what}.")
        with self._spool.batch():
            self._spool.set_mark(mark, True)

    def _reply(self, request: Request) -> Reply | None:
        return self._store.get(request.key)

    def _whole(self, request: Request) -> str:
        reply = self._reply(request)
        return "" if reply is None or reply.truncated else reply.text

    def _engine(self) -> Chat:
        if self._chat is None:
            teacher = self._teacher
            if teacher.server is not None:
                from vibethinker.generation.server import ServerChat

                server = teacher.server.model_copy(update=dict(self._context.execution["server"]))
                key = server_key(server, self._context.execution)
                self._chat = ServerChat(server, teacher.budget, str(teacher.model), self._store, self._scope, key)
            else:
                self._chat = self._local()
        return self._chat

    def _local(self) -> Chat:
        from vibethinker.generation.local import LocalChat
        from vibethinker.generation.opening import open_engine

        folder = model_folder(str(self._teacher.model), self._context)
        engine = open_engine(folder, execution={**self._context.execution, "engine": self._teacher.engine})
        self._close = engine.close

        def encode(requests: Sequence[Request]) -> list[list[int]]:
            return conversation_ids(engine.tokenizer, [request.messages for request in requests], self._prompts)

        return LocalChat(engine, encode, self._store, self._scope)

    def report(self) -> dict[str, Any]:
        """What the data card says of the teacher."""
        counts, spent = self._spool.counts("teacher", "all"), self._store.spent(self._scope)
        return {
            "model": Path(str(self._teacher.model)).name,
            "engine": self._teacher.engine,
            "samples": self._teacher.samples,
            "requests": spent.requests,
            "retries": spent.retries,
            "lost": spent.lost,
            "replies": sum(counts.values()),
            **{name: counts.get(name, 0) for name in FATES},
            "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens,
            "usd": round(spent.usd, 6),
            "majority_labels": sum(self._spool.counts("domain", d).get("majority_labels", 0) for d in self._domains),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._close is not None:
            self._close()
        self._store.close()


def _scope(settings: Mapping[str, Any]) -> str:
    """What a budget is spent for: the step whatever its budget is, so that raising it doesn't forget what is spent."""
    data = settings["data"]
    asked = {**data, "bad_rows": None, "teacher": {**data["teacher"], "budget": None}}
    return hashlib.sha256(json.dumps([settings["seed"], asked], sort_keys=True).encode()).hexdigest()


def server_key(server: Server, execution: Any) -> str | None:
    """The key of a server: a Prefect secret that the flow has read, else the environment's.

    Raises:
        ConfigurationError: a secret is named, but nobody has read it.
    """
    if server.key_secret is None:
        return os.environ.get(server.key_variable) or None
    secret = execution.get("secrets", {}).get(server.key_secret)
    if secret is None:
        raise ConfigurationError(
            f"data.teacher.server.key_secret {server.key_secret!r} is a Prefect block, which only a flow run reads: "
            f"use `vibethinker run`, or leave it unset and set {server.key_variable}."
        )
    return secret


def _told(request: Request, style: Style) -> dict[str, Any]:
    return {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_tokens,
        "seed": request.seed,
        "style": style.name,
    }


def model_folder(name: str, context: StepContext) -> Path:
    """The teacher as a complete model folder, made the way the recipe's base is, once.

    Raises:
        ConfigurationError: there is no such model, or its folder is incomplete.
    """
    from vibethinker.models import run_base

    if name == "embedded":
        raise ConfigurationError("data.teacher.model can't be `embedded`: name a folder, a .gguf file or a hub id.")
    folder, partial = context.checkpoints / "teacher", context.checkpoints / "teacher.partial"
    if folder.is_dir():
        return folder
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        run_base(replace(context, settings={"base_model": {"source": name}}, inputs={}, output=partial))
    except ConfigurationError as error:  # it speaks of base_model.source
        raise ConfigurationError(f"The teacher, data.teacher.model, can't be used: {error}") from None
    partial.rename(folder)
    return folder
