"""A teacher on this machine: any `Engine` behind the `Chat` interface.

Requests are taken in groups of fixed size, each of which is generated whole, with a seed of its own: so a killed step
repeats the group it was in and ends with the same replies as one that was never killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from vibethinker.generation import Engine
from vibethinker.generation.chat import Reply, Request
from vibethinker.generation.replies import ReplyStore, Spending

_GROUP = 1024  # requests

Encode = Callable[[Sequence[Request]], list[list[int]]]


class LocalChat:
    """Asks an engine, and keeps its replies in a store.

    Args:
        engine: samples completions of token ids.
        encode: the prompts' token ids, chat template included.
        store, scope: where replies are kept, and under what their tokens are counted.
    """

    def __init__(self, engine: Engine, encode: Encode, store: ReplyStore, scope: str) -> None:
        self._engine, self._encode, self._store, self._scope = engine, encode, store, scope

    def ask(
        self,
        requests: Iterable[Request],
        replied: Callable[[Request, Reply], None],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """See `Chat.ask`."""
        done = 0
        rest = iter(requests)
        while group := list(islice(rest, _GROUP)):
            kept = {request.key: self._store.get(request.key) for request in group}
            if None in kept.values():

                def further(finished: int, done: int = done) -> None:
                    if progress:
                        progress(done + finished)

                self._generate(group, further)
                kept = {request.key: self._store.get(request.key) for request in group}
            for request in group:
                reply = kept[request.key]
                assert reply is not None
                replied(request, reply)
            done += len(group)
            if progress:
                progress(done)

    def _generate(self, group: Sequence[Request], progress: Callable[[int], None]) -> None:
        """Replies of a whole group; those that a killed process has kept already stay."""
        prompts = self._encode(group)
        finished = 0
        ways = dict.fromkeys((r.temperature, r.top_p, r.max_tokens) for r in group)
        for temperature, top_p, max_tokens in ways:
            chosen = [
                i
                for i, request in enumerate(group)
                if (request.temperature, request.top_p, request.max_tokens) == (temperature, top_p, max_tokens)
            ]

            def further(done: int, _: int, finished: int = finished) -> None:
                progress(finished + done)

            completions = self._engine.generate(
                [prompts[i] for i in chosen],
                samples=1,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=group[chosen[0]].seed,
                progress=further,
            )
            for i, (completion,) in zip(chosen, completions, strict=True):
                reply = Reply(group[i].key, completion.text, completion.truncated, len(prompts[i]), completion.tokens)
                spending = Spending(reply.prompt_tokens, reply.completion_tokens, 0.0, 1)
                self._store.put(self._scope, reply, spending)
            finished += len(chosen)
