"""Sets of problems to measure on: benchmarks by name, a configuration's evaluation sets, and files.

A name is first one of the configuration's evaluation sets, then a benchmark of the registry, which brings its protocol
along; `NAME=PATH` reads a benchmark from a local copy. A file's columns are those that the caller maps, else they are
recognised by its first row: as GSM8K, MBPP, HumanEval, LiveCodeBench, OlympiadBench, GPQA and SVAMP are published;
otherwise the problem in the first of problem, question, prompt, text, the gold answer in `answer`, `gold`,
`final_answer` or `reward_model.ground_truth`, tests in `tests` in the form of `grade`, and `domain`, `id` (or
`unique_id`) and `difficulty` (or `level`) where there are such columns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vibethinker.artifacts import file_digest, folder_digest
from vibethinker.config import Config
from vibethinker.data import registry
from vibethinker.data.gathering import protect
from vibethinker.data.golds import refuse_constant
from vibethinker.data.readers import Bad, files_of, read_rows
from vibethinker.data.schema import Problem
from vibethinker.data.settings import Columns, DataFile, Decontamination
from vibethinker.data.sources import TEXT_COLUMNS, Read, read_all, resolve
from vibethinker.errors import ConfigurationError, DataError, InfrastructureError
from vibethinker.messages import did_you_mean, explain
from vibethinker.settings import CODE_DOMAIN

GOLD_COLUMNS = ("answer", "gold", "final_answer")
NESTED_GOLD = "reward_model.ground_truth"  # as verl's files have it
ID_COLUMNS = ("id", "unique_id")
LEVEL_COLUMNS = ("difficulty", "level")

# Columns by which a well-known set is recognised → how it is read.
_PUBLISHED: tuple[tuple[frozenset[str], dict[str, Any]], ...] = (
    (frozenset({"text", "code", "test_list"}), {"format": "mbpp", "columns": {"id": "task_id"}}),
    (frozenset({"prompt", "test", "entry_point"}), {"format": "humaneval", "columns": {"id": "task_id"}}),
    (
        frozenset({"question_content", "public_test_cases"}),
        {"format": "livecodebench", "columns": {"id": "question_id", "difficulty": "difficulty"}, "max_row": 512},
    ),
    (frozenset({"question", "final_answer", "answer_type"}), {"format": "olympiadbench", "columns": {"id": "id"}}),
    (frozenset({"Question", "Correct Answer"}), {"format": "gpqa"}),
    (frozenset({"Body", "Question", "Answer"}), {"columns": {"problem": ["Body", "Question"], "answer": "Answer"}}),
)


@dataclass(frozen=True)
class ProblemSet:
    """Problems under one name.

    Attributes:
        texts: what their training problems would be compared with: bodies, without what a format adds.
        source: where they came from: `hub`, `revision` and `files`, or `path` and `sha256`, or `generated`.
        protocol: how papers measure on them, see `registry.Benchmark`; None for what is no benchmark.
    """

    problems: list[Problem]
    texts: list[str] = field(default_factory=list)
    source: Mapping[str, Any] = field(default_factory=dict)
    protocol: Mapping[str, float] | None = None

    @property
    def digest(self) -> str:
        """A hash over what was measured on: ids, texts, golds and tests in order."""
        return set_digest(self.problems)


def set_digest(problems: Sequence[Problem]) -> str:
    """See `ProblemSet.digest`."""
    rows = [[p.id, p.problem, p.answer, p.tests] for p in problems]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def load_sets(
    names: Sequence[str], config: Config, limit: int | None = None, columns: Mapping[str, str] | None = None
) -> dict[str, ProblemSet]:
    """set → problems, for each benchmark or evaluation set by name, and each path of a file; a file's set is named
    after it.

    Args:
        config: its evaluation sets go by name.
        limit: take the first so many problems of each.
        columns: the columns of the files, as `Columns` names them.

    Raises:
        ConfigurationError: there is no such set or file, or two sets have one name.
        DataError: a file is malformed, or has no problem that can be graded, or all its golds are one.
        InfrastructureError: the hub can't be reached.
    """
    sets: dict[str, ProblemSet] = {}
    for name in names:
        key, found = _load(name, config, columns)
        if key in sets:
            raise ConfigurationError(f"Two benchmarks are named {key!r}, as files are after their stem: rename one.")
        sets[key] = ProblemSet(found.problems[:limit], found.texts, found.source, found.protocol)
    return sets


def _load(name: str, config: Config, columns: Mapping[str, str] | None) -> tuple[str, ProblemSet]:
    data = config.data
    own = config.domains if data.source == "procedural" else tuple(file.title for file in data.evaluation)
    if name in own:
        return name, _named_set(name, config)
    said, equals, copy = name.partition("=")
    found = _benchmark(said)
    if found is not None and (equals or not Path(name).exists()):
        place = {"path": str(Path(copy).expanduser().absolute())} if equals else {}
        try:
            file = DataFile.model_validate({**found.source, **place})
        except ValidationError as error:  # of a plugin's
            raise ConfigurationError(f"The benchmark {said!r} can't be read: {explain(error, DataFile)}") from None
        try:
            return found.name, _from_source(file, config, found.protocol)
        except InfrastructureError as error:
            raise InfrastructureError(f"{str(error).rstrip('.')}; a copy is named by {said}=PATH.") from error
    path = Path(name)
    if path.exists() or path.suffix != "":
        return _stem(path), read_set(path, columns)
    raise ConfigurationError(
        f"{name!r} is neither a file nor an evaluation set of the profile {config.profile!r} "
        f"({', '.join(own) or 'it has none'}), nor a benchmark: "
        f"{did_you_mean(said.lower(), [*own, *registry.names()])}."
    )


def _stem(path: Path) -> str:
    return path.name.split(".")[0] or path.name


def _benchmark(name: str) -> registry.Benchmark | None:
    try:
        return registry.benchmark(name)
    except ValueError as error:
        raise ConfigurationError(f"{error}.") from None


def _named_set(name: str, config: Config) -> ProblemSet:
    """The evaluation set that the data step of this configuration makes under that name, without the same bad rows."""
    data = config.data
    if data.source == "procedural":
        alone = data.model_copy(update={"decontamination": Decontamination(enabled=False)})
        protected = protect(alone, (name,), config.seed, {}, _leave_out)
        return ProblemSet(protected.evaluation[name], protected.texts, {"generated": name, "seed": config.seed})
    [file] = [file for file in data.evaluation if file.title == name]
    return _from_source(file, config, None)


def _from_source(file: DataFile, config: Config, protocol: Mapping[str, float] | None) -> ProblemSet:
    """The problems of a source, read as the data step reads its evaluation sets."""
    update = {
        "source": "files",
        "decontamination": Decontamination(enabled=False),  # it is about training problems
        "evaluation": (file,),
    }
    alone = config.data.model_copy(update=update)
    paths = {file.path: str(resolve(file.path, config.data.directory))} if file.path else {}
    protected = protect(alone, config.domains, config.seed, paths, _leave_out)
    if file.path:
        place = Path(paths[file.path])
        where: dict[str, Any] = {
            "path": str(place),
            "sha256": folder_digest(place) if place.is_dir() else file_digest(place),
        }
    else:
        assert file.hub is not None
        where = {"hub": file.hub.id, "revision": file.hub.revision, "files": list(file.hub.files)}
    return ProblemSet(protected.evaluation[file.title], protected.texts, where, protocol)


def _leave_out(name: str, row: Read) -> None:
    """The data step has told of the row, and measures without it."""


def read_file(path: Path) -> list[Problem]:
    """The problems of a file; see `read_set`."""
    return read_set(path).problems


def read_set(path: Path, columns: Mapping[str, str] | None = None) -> ProblemSet:
    """The problems of a file or folder, its columns mapped by the caller or recognised by its first row.

    Raises:
        ConfigurationError: there is no such column to map.
        DataError: the file is missing, malformed or empty, has no column for problem or answer, or all its golds are
            one.
    """
    first = next((row for file in files_of(path) for row in read_rows(file, 512 << 20)), None)
    if first is None:
        raise DataError(f"{path} has no row: put one problem a row there.")
    number, row = first
    if isinstance(row, Bad):
        raise DataError(f"{path}:{number}: {row.reason}: correct or remove the row.")
    file = _mapped(columns, path) if columns else _recognised(row, f"{path}:{number}", path)
    candidates = read_all(file, path, as_published=True)
    problems = [candidate.problem for candidate in candidates]
    lacking = sum(problem.answer is None and problem.tests is None for problem in problems)
    if lacking:
        raise DataError(
            f"{path} has {lacking} of {len(problems)} problems without gold answer or tests, so they can't be graded: "
            "fill them in or remove the rows."
        )
    refuse_constant(str(path), problems)
    unique = list({problem.id: problem for problem in problems}.values())
    digest = folder_digest(path) if path.is_dir() else file_digest(path)
    where = {"path": str(path.absolute()), "sha256": digest}
    return ProblemSet(unique, [candidate.body for candidate in candidates], where)


def _mapped(columns: Mapping[str, str], path: Path) -> DataFile:
    names = list(Columns.model_fields)
    for name in columns:
        if name not in names:
            raise ConfigurationError(f"--columns names {name!r}, which no problem has; {did_you_mean(name, names)}.")
    coded = "tests" in columns
    mapped = Columns.model_validate({"answer": None, **columns} if coded else dict(columns))
    return DataFile(path=str(path), name=_safe(path), domain=CODE_DOMAIN if coded else "math", columns=mapped)


def _safe(path: Path) -> str | None:
    """A name for a file whose own can't be a source's."""
    stem = _stem(path)
    return stem if stem.replace("-", "").replace("_", "").replace("+", "").isalnum() and stem[0] not in "-+" else "file"


def _recognised(row: dict[str, Any], where: str, path: Path) -> DataFile:
    for known, settings in _PUBLISHED:
        if known <= row.keys():
            here = {c: name for c, name in settings.get("columns", {}).items() if c == "problem" or name in row}
            domain = (
                "math" if settings.get("format", "columns") in ("columns", "olympiadbench", "gpqa") else CODE_DOMAIN
            )
            return DataFile.model_validate({"path": str(path), "domain": domain, **settings, "columns": here})
    text = next((name for name in TEXT_COLUMNS if name in row), None)
    reward = row.get(NESTED_GOLD.partition(".")[0])
    nested = NESTED_GOLD if isinstance(reward, dict) and "ground_truth" in reward else None
    gold = next((name for name in GOLD_COLUMNS if name in row), nested)
    tests = "tests" if row.get("tests") is not None else None
    if text is None or not (gold or tests):
        lacking = "problem" if text is None else "answer"
        raise DataError(
            f"{where}: there is no column for the {lacking} among {', '.join(sorted(row))}: name it "
            f"{' or '.join(TEXT_COLUMNS if text is None else (*GOLD_COLUMNS, 'tests'))}, or map it by --columns."
        )
    if text == "question" and isinstance(row.get("answer"), str) and "####" in row["answer"]:
        return DataFile(path=str(path), domain="math", format="gsm8k")
    columns = Columns(
        problem=text,
        answer=gold,
        tests="tests" if "tests" in row else None,
        domain="domain" if "domain" in row else None,
        id=next((name for name in ID_COLUMNS if name in row), None),
        difficulty=next((name for name in LEVEL_COLUMNS if name in row), None),
    )
    return DataFile(path=str(path), domain=CODE_DOMAIN if tests else "math", columns=columns)
