"""Step one of the data: problems from the generator or from files, one candidate a problem, and the
evaluation sets.

Rows of one problem, equal but for case and spacing, become one candidate that has all their solutions,
whatever their file or domain: splits are by problem, never by trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vibethinker.data import procedural
from vibethinker.data.sources import GENERATED, Candidate, read_candidates, read_texts
from vibethinker.data.splits import fold, hold_out, seeded_order
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.settings import DataFile, DataSettings


@dataclass
class Gathered:
    """Everything on its way into the data.

    Attributes:
        domains: the domains that are trained.
        pool: domain → problems to train, probe and validate on.
        evaluation: set → problems that are evaluated on.
        protected: set or file → all texts that training must not share with it, not only those evaluated.
        files: the texts of each file read, in which prompt templates are looked for; generated ones have
            none.
        sources: what card.json says about each source.
        counts: domain → filter → problems.
    """

    domains: tuple[str, ...]
    pool: dict[str, list[Candidate]] = field(default_factory=dict)
    evaluation: dict[str, list[Candidate]] = field(default_factory=dict)
    protected: dict[str, list[str]] = field(default_factory=dict)
    files: list[list[str]] = field(default_factory=list)
    sources: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)


def gather(data: DataSettings, domains: tuple[str, ...], seed: int, paths: Mapping[str, str]) -> Gathered:
    """Read or generate everything; `paths` says where each file of the settings is.

    Raises:
        DataError: a file is missing, malformed or empty, or an id stands for two problems.
        ConfigurationError: two evaluation sets have one name.
    """
    gathered = Gathered(domains, counts={domain: Counter() for domain in domains})
    if data.source == "procedural":
        candidates = _from_generator(gathered, data, seed)
    else:
        candidates = _from_files(gathered, data, paths)
    candidates = _merge(candidates, gathered.counts)
    gathered.pool = {d: [c for c in candidates if c.problem.domain == d] for d in domains}
    if data.decontamination.enabled:
        for name in data.decontamination.against:
            path = Path(paths[name])
            texts = read_texts(path)
            gathered.protected.setdefault(path.name, []).extend(texts)
            gathered.files.append(texts)
    return gathered


def _from_generator(gathered: Gathered, data: DataSettings, seed: int) -> list[Candidate]:
    settings = data.procedural
    pool: list[Candidate] = []
    held: set[str] = set()
    for domain in gathered.domains:
        generated = procedural.generate(domain, settings.problems, seed, settings.difficulty)
        candidates = [Candidate(p.problem, p.solutions, GENERATED) for p in generated]
        chosen, rest = hold_out(seeded_order(candidates, seed), settings.evaluation, held)
        if len(chosen) < settings.evaluation:
            raise DataError(
                f"The domain {domain} has only {len(chosen)} different generated problems, fewer than "
                f"data.procedural.evaluation {settings.evaluation}: raise data.procedural.problems or lower "
                "data.procedural.evaluation."
            )
        gathered.evaluation[domain] = chosen
        gathered.protected[domain] = [c.text for c in chosen]
        gathered.counts[domain].update(rows=len(candidates), evaluation=len(chosen))
        pool += rest
    gathered.sources.append({"name": GENERATED, "role": "train and evaluation", "licence": "MIT", "counts": {}})
    return pool


def _from_files(gathered: Gathered, data: DataSettings, paths: Mapping[str, str]) -> list[Candidate]:
    pool: list[Candidate] = []
    for file in data.train:
        path = Path(paths[file.path])
        candidates, counts = read_candidates(file, path, gathered.domains)
        for candidate in candidates:
            gathered.counts[candidate.problem.domain]["rows"] += 1
        gathered.sources.append(_source(file, path, "train", counts))
        gathered.files.append([c.text for c in candidates])
        pool += candidates
    for file in data.evaluation:
        path = Path(paths[file.path])
        rows, counts = read_candidates(file, path, None)
        if path.stem in gathered.evaluation:
            raise ConfigurationError(
                f"Two evaluation files give a set named {path.stem!r}, as sets are named after their files: rename one."
            )
        if counts["no_gold"]:
            raise DataError(
                f"The evaluation file {path} has {counts['no_gold']} problems without gold answer or tests: "
                "set its `columns` to where they are, or remove those rows."
            )
        if not rows:
            raise DataError(f"The evaluation file {path} has no problem: fill it, or remove it from data.evaluation.")
        texts = [c.text for c in rows]
        gathered.protected[path.stem] = texts
        gathered.files.append(texts)
        unique = _merge(rows, {c.problem.domain: counts for c in rows})
        gathered.evaluation[path.stem] = sample(unique, data.evaluation_limit)
        gathered.sources.append(_source(file, path, "evaluation", counts))
    return pool


def _source(file: DataFile, path: Path, role: str, counts: Counter[str]) -> dict[str, Any]:
    return {"name": path.name, "role": role, "licence": file.licence, "counts": dict(counts)}


def _merge(candidates: list[Candidate], counts: Mapping[str, Counter[str]]) -> list[Candidate]:
    """One candidate for each problem text, with the solutions of all its rows, in order of first appearance.

    The first row's gold stands. A row that contradicts it is left out and counted `conflicting`; one that
    agrees is counted `repeated`.
    """
    merged: dict[str, Candidate] = {}
    owner: dict[str, str] = {}
    for candidate in candidates:
        key = fold(candidate.text)
        first = merged.get(key)
        if owner.setdefault(candidate.problem.id, key) != key:
            other = merged[owner[candidate.problem.id]]
            raise DataError(
                f"{candidate.origin}: the id {candidate.problem.id!r} is also that of {other.origin}, "
                "another problem: make ids distinct, or leave columns.id unset to have them made from texts."
            )
        if first is None:
            merged[key] = candidate
            continue
        new, old = candidate.problem, first.problem
        same = (new.answer, new.tests) == (old.answer, old.tests)
        counts[candidate.problem.domain]["repeated" if same else "conflicting"] += 1
        if same:
            merged[key] = replace(first, solutions=first.solutions + candidate.solutions)
    return list(merged.values())


def sample(candidates: list[Candidate], limit: int | None) -> list[Candidate]:
    """`limit` problems in the file's order, chosen by their texts alone: every run measures on the same
    ones."""
    if limit is None or len(candidates) <= limit:
        return candidates
    chosen = {c.problem.id for c in seeded_order(candidates, seed=0)[:limit]}
    return [c for c in candidates if c.problem.id in chosen]
