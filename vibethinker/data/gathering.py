"""Steps one and two of the data: evaluation sets, then the intake of every source into the spool.

Intake, in this order, each removal counted and kept with its reason: rows that can't be read or meant go to
quarantine; no domain that is trained (`unmapped`); no gold answer or tests (`no_gold`); the text filters; overlap
with an evaluation problem (`contaminated`), or its words in another order of signs (`same_words`); and rows of a
problem that is there already, equal but for case and spacing: they give it their solutions (`repeated`), or
contradict its gold (`conflicting`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from vibethinker.data import hub, procedural, splits
from vibethinker.data.filters import why_broken
from vibethinker.data.folding import fold
from vibethinker.data.golds import contradict, has_gold, refuse_constant
from vibethinker.data.judging import Judge, Judged, judged
from vibethinker.data.readers import Bad, excerpt, files_of
from vibethinker.data.schema import Problem
from vibethinker.data.settings import AUTO, DataFile, DataSettings
from vibethinker.data.sources import GENERATED, Candidate, Raw, Read, origins, read, read_texts
from vibethinker.data.spool import Spool
from vibethinker.data.templates import START, sample
from vibethinker.errors import DataError
from vibethinker.settings import CODE_DOMAIN

_ENOUGH = 2000  # rows after which a source isn't read on that has
_EARLY = 10.0  # times as many bad ones as are allowed

Progress = Callable[[str], None]


@dataclass
class Protected:
    """What training must not share anything with.

    Attributes:
        evaluation: set → problems that are evaluated on.
        texts, names: every protected text, not only those evaluated, and the set or file that each is of.
        damaged: set → problems whose LaTeX is broken, which are measured on as they were published.
        repeated: set → rows of problems that are there already.
        samples: texts of each set and file, in which prompt templates are looked for; generated ones have none.
    """

    evaluation: dict[str, list[Problem]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    damaged: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    samples: list[list[str]] = field(default_factory=list)

    def add(self, name: str, texts: Sequence[str]) -> None:
        """Protect the texts of a set."""
        self.texts += texts
        self.names += [name] * len(texts)


def locate(file: DataFile, paths: Mapping[str, str]) -> list[Path]:
    """Where a source's files are: `paths` says it of local ones; those of the hub are fetched.

    Raises:
        ConfigurationError: the hub has no such file.
        InfrastructureError: it can't be reached.
    """
    if file.path is not None:
        return [Path(paths[file.path])]
    assert file.hub is not None
    return hub.fetch(file.hub, file.title)


def protect(
    data: DataSettings, domains: Sequence[str], seed: int, paths: Mapping[str, str], bad: Callable[[str, Read], None]
) -> Protected:
    """Read, or generate, all that is evaluated on; `bad` is told of each row that can't be used.

    Raises:
        DataError: a file is missing, a set has no problem, one without gold, or too many bad rows.
    """
    protected = Protected()
    if data.source == "procedural":
        for domain in domains:
            found = [p.problem for p in generated(data, domain, seed) if _slice(p.problem, data, seed) == "evaluation"]
            protected.evaluation[domain] = _lowest(found, data.procedural.evaluation, seed)
            protected.add(domain, [problem.problem for problem in protected.evaluation[domain]])
    else:
        for file in data.evaluation:
            bodies, problems = _evaluation_set(file, locate(file, paths), data.bad_rows, bad)
            protected.add(file.title, bodies)
            protected.damaged[file.title] = sum(why_broken(body) is not None for body in bodies)
            protected.samples.append(sample(bodies))
            unique = list({fold(problem.problem): problem for problem in reversed(problems)}.values())[::-1]
            protected.repeated[file.title] = len(problems) - len(unique)
            protected.evaluation[file.title] = _limited(unique, data.evaluation_limit)
    if data.decontamination.enabled:
        for name in data.decontamination.against:
            place = Path(paths[name])
            called = origins([place])
            for path in files_of(place):
                texts, unread = [], []
                for number, text in read_texts(path):
                    if isinstance(text, Bad):
                        unread.append(Read(f"{called(path)}:{number}", text))
                        bad(called(path), unread[-1])
                    else:
                        texts.append(text)
                _refuse_if_too_many(unread, len(texts) + len(unread), data.bad_rows, called(path))
                protected.add(called(path), texts)
                protected.samples.append(sample(texts))
    return protected


def generated(data: DataSettings, domain: str, seed: int) -> list[procedural.ProceduralProblem]:
    """The generated problems of a domain, over all splits."""
    return procedural.generate(domain, data.procedural.problems, seed, data.procedural.difficulty)


def _slice(problem: Problem, data: DataSettings, seed: int) -> str:
    return splits.split_of(splits.place(problem.problem, seed), data.held_out, evaluation=data.source == "procedural")


def _lowest(problems: list[Problem], count: int, seed: int) -> list[Problem]:
    return sorted(problems, key=lambda problem: splits.place(problem.problem, seed))[:count]


def _limited(problems: list[Problem], limit: int | None) -> list[Problem]:
    """`limit` problems in the file's order, chosen by their texts alone: every run measures on the same ones."""
    ranked = sorted(range(len(problems)), key=lambda i: splits.place(problems[i].problem, 0))
    return [problems[i] for i in sorted(ranked[:limit])]


def _evaluation_set(
    file: DataFile, places: list[Path], bad_rows: float, bad: Callable[[str, Read], None]
) -> tuple[list[str], list[Problem]]:
    """Bodies and problems, in the file's order."""
    bodies, problems, lacking, unread = [], [], 0, []
    for one in read(file, places, as_published=True):
        if isinstance(one.found, Bad):
            bad(file.title, one)
            unread.append(one)
            continue
        problem = one.found.problem
        bodies.append(one.found.body)
        if not has_gold(problem):
            lacking += 1
        default = CODE_DOMAIN if problem.tests is not None else "math"
        problems.append(problem if problem.domain not in ("", AUTO) else replace(problem, domain=default))
    _refuse_if_too_many(unread, len(problems) + len(unread), bad_rows, file.title)
    if lacking:
        raise DataError(
            f"The evaluation set {file.title} has {lacking} problems without gold answer or tests: set its `columns` "
            "to where they are, or remove those rows."
        )
    if not problems:
        raise DataError(f"The evaluation set {file.title} has no problem: fill it, or take it out of data.evaluation.")
    refuse_constant(f"the evaluation set {file.title}", problems)
    return bodies, problems


def _refuse_if_too_many(unread: Sequence[Read], rows: int, bad_rows: float, name: str) -> None:
    if len(unread) > bad_rows * rows:
        first = unread[0]
        assert isinstance(first.found, Bad)
        raise DataError(
            f"{len(unread)} of {rows} rows of {name}, which training is held against, can't be used, more than "
            f"data.bad_rows {bad_rows:.2%}: mend them or the source's columns, or raise data.bad_rows; the first: "
            f"{first.origin}: {first.found.reason}."
        )


class Intake:
    """Takes sources into the spool; see the module."""

    def __init__(self, spool: Spool, data: DataSettings, judge: Judge, workers: int) -> None:
        self._spool, self._data, self._judge, self._workers = spool, data, judge, workers

    def take(self, number: int, name: str, rows: Iterable[Raw], file: DataFile | None, progress: Progress) -> None:
        """Take in the rows of a source, those after the ones that are taken in already.

        Args:
            number: the source's position in the settings, under which its progress is noted.
            name: of the source.
            rows: what is left of it.
            file: how they are read; None for generated ones.

        Raises:
            DataError: more of its rows are bad than the settings allow.
        """
        mark = f"source-{number}"
        done = self._spool.mark(mark) or 0
        with judged(self._judge, rows, file, self._workers) as batches:
            for batch in batches:
                with self._spool.batch():
                    numbers = [(one.bands, self._enter(name, one)) for one in batch]
                    self._spool.add_bands((band, n) for bands, n in numbers if n is not None for band in bands)
                    done += len(batch)
                    self._spool.set_mark(mark, done)
                progress(f"{done} rows of {name}")
                if done >= _ENOUGH:
                    self.check_bad_rows(name, tolerance=_EARLY)
        self.check_bad_rows(name)

    def check_bad_rows(self, name: str, tolerance: float = 1.0) -> None:
        """Refuse a source of which more rows are bad than `data.bad_rows`, times a tolerance while it is being read."""
        counts = self._spool.counts("source", name)
        bad, rows = counts.get("bad", 0), counts.get("rows", 0)
        if bad > tolerance * self._data.bad_rows * rows:
            raise DataError(
                f"{bad} of {rows} rows of {name} can't be used, more than data.bad_rows {self._data.bad_rows:.2%}: "
                f"mend them or the source's columns, or raise data.bad_rows; the first: {self._first_bad(name)}."
            )

    def _first_bad(self, name: str) -> str:
        query = (
            "SELECT json_extract(record, '$.origin'), json_extract(record, '$.reason') FROM quarantine "
            "WHERE json_extract(record, '$.source') = ? ORDER BY rowid LIMIT 3"
        )
        return "; ".join(f"{where}: {reason}" for where, reason in self._spool.connection.execute(query, (name,)))

    def _enter(self, name: str, one: Judged) -> int | None:
        """Write a row's fate down; returns the number of a new problem."""
        spool = self._spool
        spool.count("source", name, "rows")
        for kind, what, filter in one.counts:
            spool.count(kind, what, filter)
        if one.bad is not None:
            spool.quarantine(name, one.origin, one.bad.reason, one.bad.excerpt)
            return None
        assert one.problem is not None
        if one.overlap is not None:
            spool.overlap(one.overlap)
        if one.removed is not None:
            spool.remove(one.removed, one.problem, one.origin, **one.detail)
            return None
        new = spool.add(one.problem, one.body, one.key, one.place, one.split, one.origin, one.kept_out)
        n = self._known(name, one, one.problem) if new is None else new
        if n is not None:
            spool.add_solutions(n, one.solutions)
        return new

    def _known(self, name: str, one: Judged, problem: Problem) -> int | None:
        """A problem that is there already, by its text or its id; returns the first's number if it is the same."""
        found = self._spool.known(one.key)
        if found is None:
            reason = (
                f"the id {problem.id!r} is also that of {self._spool.owner(problem.id)}, another problem: make ids "
                "distinct, or leave columns.id unset"
            )
            self._spool.quarantine(name, one.origin, reason, excerpt(problem.to_row()))
            return None
        n, first, gone = found
        if contradict(problem, first):
            self._spool.remove("conflicting", problem, one.origin, of=first.id)
            return None
        self._spool.remove("repeated", problem, one.origin, of=first.id)
        if has_gold(problem) and not has_gold(first):
            known = replace(first, answer=problem.answer, tests=problem.tests)
            # Whatever else keeps it out still does.
            self._spool.keep(n, known, None if gone == "no_gold" else gone)
        return n


def generated_rows(data: DataSettings, domain: str, seed: int) -> Iterator[Raw]:
    """The generated problems of a domain that aren't of its evaluation slice."""
    for made in generated(data, domain, seed):
        if _slice(made.problem, data, seed) != "evaluation":
            yield GENERATED, Candidate(made.problem, made.problem.problem, made.solutions, GENERATED)


def training_samples(data: DataSettings, paths: Mapping[str, str]) -> list[list[str]]:
    """Texts of the start of each training source, in which prompt templates are looked for."""
    found = []
    for file in data.train:
        rows = islice(read(file, locate(file, paths)), START)
        found.append(sample(one.found.body for one in rows if isinstance(one.found, Candidate)))
    return found
