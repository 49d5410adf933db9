"""Completions that are kept under what they were sampled from, so that none is sampled twice.

A completion's key is a hash of the model's files, the engine with its version and device, the prompt's tokens, the
sampling settings, the seed, and the indices of prompt and sample, which its random numbers come from. So a changed
model, prompt or setting is sampled anew; a completion that the engine's memory has cut off isn't kept; scoring again
what was sampled once loads no model; and what a killed process had sampled, but for its last seconds, is used by the
next one. Where the transformers engine goes on, the results have the bytes of a run that nothing happened to (see its
`generate`).

They lie in a file a model, of the same form as a teacher's replies. Left out: token ids and log-probabilities, which
scoring needs none of.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vibethinker import validation
from vibethinker.artifacts import content_digest, file_digest
from vibethinker.environment import versions
from vibethinker.errors import DataError
from vibethinker.generation import Completion, Ended, Engine, Progress
from vibethinker.generation.chat import Reply
from vibethinker.generation.opening import engine_name
from vibethinker.generation.replies import ReplyStore
from vibethinker.models.files import check_model_folder, is_adapter, positions
from vibethinker.models.loading import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vibethinker.generation.opening import Engines

_VERSION = 1  # of what a key is made of
_FLUSH_SECONDS, _FLUSH_COUNT = 2.0, 512
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".txt", ".model")

Place = tuple[int, int]  # index of the prompt, index of the sample


def model_digest(folder: Path, base: Path | None = None) -> str:
    """A hash over the files of a model folder that its completions depend on, wherever it lies; those of `base` too,
    where it is an adapter's. The digests of published files are read from their manifest."""
    own = content_digest({name: {"sha256": sha} for name, sha in _digests(folder).items()})
    return own if base is None else hashlib.sha256(f"{own}{model_digest(base)}".encode()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    folder = folder.absolute()
    for output in (folder, *folder.parents[:2]):
        manifest, reason = validation.read_manifest(output)
        if manifest is not None and not reason:
            inside = folder.relative_to(output).as_posix()
            prefix = "" if inside == "." else f"{inside}/"
            named = {n.removeprefix(prefix): e["sha256"] for n, e in manifest["files"].items() if n.startswith(prefix)}
            if found := {name: sha for name, sha in named.items() if _counts(name)}:
                return found
    return {p.name: file_digest(p) for p in sorted(folder.iterdir()) if p.is_file() and _counts(p.name)}


def _counts(name: str) -> bool:
    return "/" not in name and name.endswith(_MODEL_FILES) and name != validation.MANIFEST


def engine_label(execution: Mapping[str, Any]) -> str:
    """The engine that `execution` comes to here, with the versions that its numbers may depend on."""
    name, found = engine_name(execution), versions()
    libraries = ("vllm", "torch") if name == "vllm" else ("transformers", "torch")
    return f"{name} on {execution['device']}: " + ", ".join(
        f"{library} {found[library]}" for library in libraries if library in found
    )


@contextmanager
def sampler(
    engines: Engines,
    folder: Path,
    base: Path | None,
    execution: Mapping[str, Any],
    kept: Path | None,
    only_kept: bool = False,
) -> Iterator[KeptEngine]:
    """What samples a model's completions, and keeps them in a file of the folder `kept`, if there is one.

    Args:
        engines: opens the engine, with the model in `folder`, and an adapter's `base`.
        execution: of a `StepContext`, see `open_engine`.

    Raises:
        ConfigurationError: the folder is incomplete, or the store can't be used.
    """
    check_model_folder(folder)
    tokenizer = load_tokenizer(base if is_adapter(folder) and base is not None else folder)
    engine = engine_label(execution)
    if kept is None:
        yield KeptEngine(lambda: engines.at(folder, base), tokenizer, engine=engine)
        return
    digest = model_digest(folder, base if is_adapter(folder) else None)
    with ReplyStore(kept / f"{digest[:16]}.sqlite") as store:
        opened = lambda: engines.at(folder, base)  # noqa: E731
        yield KeptEngine(opened, tokenizer, store, digest, engine, only_kept, positions(base or folder))


class KeptEngine:
    """Samples by an engine, which is opened once something is lacking, and keeps what it samples.

    Args:
        opened: gives the engine.
        store: where completions are kept; None keeps none.
        model: see `model_digest`.
        engine: see `engine_label`.
        only_kept: sample nothing: score what there is, whichever engine has sampled it.
        positions: the longest sequence that the model allows, if it says so. A completion that ends before, and before
            max_tokens, was cut off for lack of memory, and isn't kept.

    Attributes:
        tokenizer: the model's.
        sampled, found: completions that were sampled, and that were there.
    """

    def __init__(
        self,
        opened: Callable[[], Engine],
        tokenizer: PreTrainedTokenizerBase,
        store: ReplyStore | None = None,
        model: str = "",
        engine: str = "",
        only_kept: bool = False,
        positions: int | None = None,
    ) -> None:
        self.tokenizer, self._positions = tokenizer, positions
        self._opened, self._store, self._model, self._engine = cache(opened), store, model, engine
        self._only_kept = only_kept
        self._waiting: list[Reply] = []
        self._flushed = 0.0
        self.sampled = self.found = self._sampled_before = 0

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        first: int = 0,
        progress: Progress | None = None,
        ended: Ended | None = None,
    ) -> list[list[Completion]]:
        """See `Engine.generate`; completions that were kept have no ids, and `ended` hears of all.

        Raises:
            DataError: only what was kept is wanted, and something lacks.
        """
        sampling = [max_tokens, float(temperature), float(top_p), seed]
        hashes = [hashlib.sha256(json.dumps(list(prompt)).encode()).hexdigest() for prompt in prompts]

        def keys(engine: str) -> dict[Place, str]:
            return {
                (i, s): _key([_VERSION, self._model, engine, digest, first + i, s, *sampling])
                for i, digest in enumerate(hashes)
                for s in range(samples)
            }

        engine, named = self._engine, keys(self._engine)
        known = self._look_up(named)
        if self._only_kept and self._store is not None and len(known) < len(named):
            for other in self._store.scopes():
                if len(there := self._look_up(keys(other))) > len(known):
                    engine, known = other, there
        if self._only_kept and len(known) < len(named):
            raise DataError(
                f"{len(named) - len(known)} of {len(named)} completions are not kept for this model, these prompts and "
                "settings: sample them first, by the same command without --rescore."
            )
        self._engine, self.found = engine, self.found + len(known)
        for (index, sample), completion in known.items():
            if ended:
                ended(index, sample, completion)
        fresh = self._sample(prompts, named, known, progress, ended, samples=samples, max_tokens=max_tokens,
                             temperature=temperature, top_p=top_p, seed=seed, first=first)  # fmt: skip
        return [[known.get((i, s)) or fresh[i, s] for s in range(samples)] for i in range(len(prompts))]

    @property
    def engine(self) -> str:
        """The engine that has sampled."""
        return self._engine

    def speed(self) -> dict[str, float]:
        """What the engine's meter says, where something was sampled since the last call."""
        sampled, self._sampled_before = self.sampled - self._sampled_before, self.sampled
        return self._opened().meter.take() if sampled else {}

    def _sample(
        self,
        prompts: Sequence[Sequence[int]],
        named: Mapping[Place, str],
        known: Mapping[Place, Completion],
        progress: Progress | None,
        ended: Ended | None,
        **how: Any,
    ) -> dict[Place, Completion]:
        """The completions that aren't known."""
        fresh: dict[Place, Completion] = {}
        if len(known) == len(named):
            return fresh

        def keep(index: int, sample: int, completion: Completion) -> None:
            place = index, sample
            if place in known or place in fresh:
                return
            fresh[place] = completion
            self.sampled += 1
            prompt = len(prompts[index])
            room = how["max_tokens"] if self._positions is None else min(how["max_tokens"], self._positions - prompt)
            if not completion.truncated or completion.tokens >= room:
                key, tokens = named[place], completion.tokens
                self._waiting.append(Reply(key, completion.text, completion.truncated, prompt, tokens))
            if len(self._waiting) >= _FLUSH_COUNT or time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._flush()
            if ended:
                ended(index, sample, completion)

        there: dict[str, Any] = {"known": known.keys()} if known else {}
        try:
            self._opened().generate(prompts, progress=progress, ended=keep, **how, **there)
        finally:
            self._flush()
        return fresh

    def _look_up(self, named: Mapping[Place, str]) -> dict[Place, Completion]:
        if self._store is None:
            return {}
        replies = ((place, self._store.get(key)) for place, key in named.items())
        return {place: Completion(r.text, r.completion_tokens, r.truncated, ()) for place, r in replies if r}

    def _flush(self) -> None:
        if self._store is not None and self._waiting:
            self._store.put_all(self._engine, self._waiting)
        self._waiting, self._flushed = [], time.monotonic()


def _key(content: list[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
