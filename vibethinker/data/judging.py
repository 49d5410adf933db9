"""What becomes of a row, as far as the row alone decides it: a pure function, so that several processes share the work.

In this order: it can be read and meant, or goes to quarantine; its domain is trained (`unmapped`); it has a gold answer
or tests (`no_gold`); the text filters; it shares nothing with an evaluation problem (`contaminated`), nor has all the
words of one (`same_words`). What depends on other rows, whether the problem is there already, the spool decides.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any

from vibethinker.data import duplicates, splits
from vibethinker.data.decontamination import STOCK_PHRASES, Decontaminator
from vibethinker.data.domains import KeywordClassifier
from vibethinker.data.filters import ProblemFilter
from vibethinker.data.folding import fold, signature
from vibethinker.data.golds import has_gold
from vibethinker.data.readers import Bad
from vibethinker.data.schema import Problem
from vibethinker.data.settings import AUTO, DataFile, DataSettings
from vibethinker.data.sources import GENERATED, Candidate, Raw, convert
from vibethinker.data.templates import Templates
from vibethinker.errors import InfrastructureError
from vibethinker.settings import CODE_DOMAIN
from vibethinker.worker.endings import die_with_parent

_BATCH = 256  # rows
_BYTES = 1 << 20  # characters of a batch, beyond which it is closed
_EXCERPT = 400  # characters


@dataclass
class Judged:
    """One row's fate.

    Attributes:
        origin: where it stands.
        counts: (kind, name, filter) of each count that it adds to.
        bad: why it goes to quarantine.
        problem: what it says, with its domain.
        removed, detail: the filter that takes it out, and what more there is to say.
        overlap: what it shares with an evaluation problem.
        kept_out: what keeps it out until a teacher has spoken.
        body: the text by which it is compared with others.
        key, place, split, bands: by which it is found again, its place and split, and its MinHash bands.
        solutions: the written solutions with their keys.
    """

    origin: str
    counts: list[tuple[str, str, str]] = field(default_factory=list)
    bad: Bad | None = None
    problem: Problem | None = None
    removed: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)
    overlap: dict[str, Any] | None = None
    kept_out: str | None = None
    body: str = ""
    key: bytes = b""
    place: bytes = b""
    split: str = ""
    bands: Sequence[int] = ()
    solutions: list[tuple[bytes, str]] = field(default_factory=list)


class Judge:
    """Judges rows by the settings, the domains that are trained and the texts that are evaluated on.

    Args:
        protected: every text that training must not share anything with, and `names` of the sets they are of.
        templates: prompt templates that are no part of a problem.
    """

    def __init__(
        self,
        data: DataSettings,
        domains: Sequence[str],
        seed: int,
        protected: Sequence[str],
        names: Sequence[str],
        templates: Templates,
    ) -> None:
        self._data, self._domains, self._seed = data, domains, seed
        self._protected, self._names = protected, names
        self._filter = ProblemFilter(data.filters)
        self._classifier = KeywordClassifier(domains, data.classifier)
        self._signatures = {signature(text) for text in protected}
        self._near = data.source == "files" and data.duplicates.near is not None
        settings = data.decontamination
        self._index: Decontaminator | None = None
        if settings.enabled:
            stock = (*STOCK_PHRASES, *settings.phrases) if settings.whitelist else ()
            self._index = Decontaminator(protected, n=settings.ngram, templates=templates, stock_phrases=stock)

    def batch(self, rows: Sequence[Raw], file: DataFile | None) -> list[Judged]:
        """The fates of some rows of a source; `file` says how they are read."""
        return [self._judge(origin, row if file is None else convert(row, file, origin)) for origin, row in rows]

    def _judge(self, origin: str, found: Any) -> Judged:
        judged = Judged(origin)
        if isinstance(found, Bad):
            judged.bad = found
        elif self._has_domain(found, judged) and self._passes(found, judged):
            self._finish(found, judged)
        return judged

    def _has_domain(self, candidate: Candidate, judged: Judged) -> bool:
        problem, label, settings = candidate.problem, candidate.label, self._data.classifier
        judged.problem, domain = problem, problem.domain
        if domain == AUTO and problem.tests is not None:
            domain = CODE_DOMAIN
        elif domain == AUTO:
            decision = self._classifier.classify(candidate.body)
            domain = decision.domain or ""
            if not fits(problem, domain):
                domain = ""
            judged.counts.append(("classifier", "all", "decided" if domain else "undecided"))
            judged.counts += [("keyword", domain, keyword) for keyword in decision.matched if domain]
            if not domain and settings.teacher:
                judged.problem, judged.kept_out = replace(problem, domain=""), "undecided"
                return True
            if not domain and settings.otherwise:
                domain = settings.otherwise
                judged.counts.append(("classifier", "all", "otherwise"))
        if label is not None:
            judged.counts.append((f"label:{problem.source}", label, domain))
        if domain not in self._domains or not fits(problem, domain):
            judged.problem = replace(problem, domain="")
            judged.removed, judged.detail = "unmapped", {"label": label}
            return False
        judged.problem = replace(problem, domain=domain)
        judged.counts.append(("domain", domain, "rows"))
        return True

    def _passes(self, candidate: Candidate, judged: Judged) -> bool:
        problem = judged.problem
        assert problem is not None
        if not has_gold(problem):
            if not self._data.teacher.votes.enabled or problem.domain == CODE_DOMAIN:
                judged.removed = "no_gold"
                return False
            judged.kept_out = judged.kept_out or "no_gold"
        # Generated problems are as they should be.
        reason = None if candidate.origin == GENERATED else self._filter.reason(candidate.body, problem.answer)
        judged.removed = reason or self._shared(candidate.body, problem, judged)
        return judged.removed is None

    def _shared(self, body: str, problem: Problem, judged: Judged) -> str | None:
        """The filter that takes the problem out because of an evaluation problem."""
        found = self._index.overlap(body) if self._index else None
        if found is not None:
            kept = found.kind == "stock_phrase"
            judged.counts.append(("overlap", "all", found.kind))
            judged.overlap = {
                "id": problem.id,
                "domain": problem.domain,
                "origin": judged.origin,
                "class": found.kind,
                "kept": kept,
                "shared": found.shared[:_EXCERPT],
                "share": round(found.share, 4),
                "problem": body[:_EXCERPT],
                "evaluation_set": self._names[found.evaluation],
                "evaluation_problem": self._protected[found.evaluation][:_EXCERPT],
            }
            if not kept:
                judged.detail = {"shared": found.shared[:_EXCERPT]}
                return "contaminated"
        return "same_words" if signature(body) in self._signatures else None

    def _finish(self, candidate: Candidate, judged: Judged) -> None:
        data, body = self._data, candidate.body
        judged.body, judged.key, judged.place = body, _key(fold(body)), splits.place(body, self._seed)
        judged.split = splits.split_of(judged.place, data.held_out, evaluation=data.source == "procedural")
        judged.solutions = [(_key(text), text) for text in candidate.solutions]
        if self._near:
            judged.bands = duplicates.bands(body, data.duplicates.ngram)


@contextmanager
def judged(judge: Judge, rows: Iterable[Raw], file: DataFile | None, workers: int) -> Iterator[Iterator[list[Judged]]]:
    """The fates of all rows in their order, a batch at a time, by so many processes.

    They are forked, so that the judge's index is shared; where that can't be done, or for generated rows, this process
    does it alone.

    Raises:
        InfrastructureError: one of them was killed.
    """
    batches = _batches(rows)
    if workers < 2 or file is None or sys.platform != "linux":
        yield (judge.batch(batch, file) for batch in batches)
        return
    crew = [_Worker(judge, file) for _ in range(workers)]
    try:
        yield _in_order(crew, batches)
    finally:
        for worker in crew:
            worker.end()


class _Worker:
    """A forked process that judges one batch at a time, over a pipe that only it and this process hold.

    Where it dies, even in the midst of an answer, reading ends; the pools of the standard library would wait for ever.
    """

    def __init__(self, judge: Judge, file: DataFile) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, its_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(judge, file, its_pipe), daemon=True)
        self._process.start()
        its_pipe.close()

    def give(self, batch: list[Raw]) -> None:
        """Hand a batch over; its result has to be taken before the next."""
        try:
            self._pipe.send(batch)
        except OSError:
            raise self._death() from None

    def take(self) -> list[Judged]:
        """The batch's fates.

        Raises:
            InfrastructureError: the process is gone.
        """
        try:
            result = self._pipe.recv()
        except (OSError, EOFError):
            raise self._death() from None
        if isinstance(result, BaseException):
            raise result
        return result

    def _death(self) -> InfrastructureError:
        return InfrastructureError(
            "A process that judged rows was killed, which is how the kernel ends what uses too much memory: run the "
            "same command again, it goes on where it was; fewer execution.threads take less memory."
        )

    def end(self) -> None:
        """Kill it; it holds nothing."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(judge: Judge, file: DataFile, pipe: Connection) -> None:
    """Judge batches until the parent, which alone hears signals, ends this process or dies."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    while True:
        try:
            result: Any = judge.batch(pipe.recv(), file)
        except Exception as error:  # raised by the parent
            result = error
        pipe.send(result)


def _in_order(crew: Sequence[_Worker], batches: Iterator[list[Raw]]) -> Iterator[list[Judged]]:
    """The results of batches in order. Each worker has one batch, so that little is in memory."""
    busy: deque[_Worker] = deque()
    for worker, batch in zip(crew, batches, strict=False):
        worker.give(batch)
        busy.append(worker)
    while busy:
        worker = busy.popleft()
        result = worker.take()
        if (batch := next(batches, [])) != []:
            worker.give(batch)
            busy.append(worker)
        yield result


def _batches(rows: Iterable[Raw]) -> Iterator[list[Raw]]:
    """The rows in batches, small ones where the rows are big, so that few bytes are under way."""
    batch: list[Raw] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += _size(row[1])
        if len(batch) == _BATCH or size > _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _size(value: Any) -> int:
    """About how many characters a row holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8


def fits(problem: Problem, domain: str) -> bool:
    """Whether a problem may be of a domain: programs are judged by tests, everything else by answers."""
    if problem.tests is not None:
        return domain == CODE_DOMAIN
    return problem.answer is None or domain != CODE_DOMAIN


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
