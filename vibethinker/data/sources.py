"""Sources of problems: rows of local files or of the hub, by a column mapping, to problems with their solutions.

Everything is read one row at a time. A row that can't be understood comes out as `Bad` with its place and reason, and
what happens then is the reader's business: the data step quarantines it, a command that was given one file stops.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from vibethinker.data.domains import label_domain
from vibethinker.data.filters import why_broken
from vibethinker.data.folding import fold
from vibethinker.data.formats import BadRow, fields, text
from vibethinker.data.readers import Bad, excerpt, files_of, read_rows
from vibethinker.data.schema import Problem
from vibethinker.data.settings import Columns, DataFile
from vibethinker.errors import DataError
from vibethinker.settings import CODE_DOMAIN

# Where files keep the problem when nobody says it: ours, gsm8k's, chat prompts, mbpp's.
TEXT_COLUMNS: tuple[str, ...] = ("problem", "question", "prompt", "text")

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_LAST_WHOLE = re.compile(r"(?:.*\s)?([+-]?\d{1,18})\s*", re.ASCII | re.DOTALL)

# The origin of problems that `vibethinker.data.procedural` made.
GENERATED = "procedural"


@dataclass(frozen=True)
class Candidate:
    """A problem on its way into the data, with the solutions that came with it, not yet verified.

    `body` is the problem's text without what its format adds, which is what is compared with other problems. `origin`
    is `file:line`, with the file as `origins` calls it, or GENERATED; `label` is the source's own word for its domain.
    The problem's domain is empty where nothing says it and `auto` where it is to be classified.
    """

    problem: Problem
    body: str
    solutions: tuple[str, ...]
    origin: str
    label: str | None = None


@dataclass(frozen=True)
class Read:
    """One row of a source: where it stands, and the candidate, or why there is none."""

    origin: str
    found: Candidate | Bad


# Where a row stands, and the row, or why it can't be read; of generated problems, the candidate.
Raw = tuple[str, Any]


def resolve(path: str, directory: str) -> Path:
    """The absolute path of a file named in the settings: relative ones start at `data.directory`."""
    return (Path(directory).expanduser() / Path(path).expanduser()).absolute()


def origins(places: Sequence[Path]) -> Callable[[Path], str]:
    """How files are called in the origins of their rows: by their paths from the folder that all places share, so that
    two of one name are told apart; a single file by its name."""
    shared = os.path.commonpath([place if place.is_dir() else place.parent for place in places])
    return lambda path: path.relative_to(shared).as_posix()


def rows(
    file: DataFile, places: Sequence[Path], skip: int = 0, left_out: Callable[[str], None] | None = None
) -> Iterator[Raw]:
    """The rows of a source in order with where they stand, without those that `select` leaves out.

    Args:
        places: its files or folders.
        skip: rows to pass over, that an earlier process has dealt with.
        left_out: told where each row stands that `select` leaves out, of the skipped part too.

    Raises:
        DataError: a file can't be read.
    """
    position, name = 0, origins(places)
    for place in places:
        for path in _files(file, place):
            for number, row in read_rows(path, file.max_row << 20):
                if file.limit is not None and position == file.limit:
                    return
                origin = f"{name(path)}:{number}"
                if isinstance(row, dict) and not _selected(row, file):
                    if left_out is not None:
                        left_out(origin)
                    continue
                position += 1
                if position > skip:
                    yield origin, row


def _files(file: DataFile, place: Path) -> list[Path]:
    """A place's data files: of a folder with a copy of a hub data set those that the source names, so that its
    training and its test files aren't mixed; all of a folder that is laid out otherwise."""
    found = files_of(place)
    if file.hub is None or not place.is_dir():
        return found
    named = [p for p in found if any(fnmatch(p.relative_to(place).as_posix(), name) for name in file.hub.files)]
    return named or found


def read(file: DataFile, places: Sequence[Path], *, as_published: bool = False) -> Iterator[Read]:
    """The rows of a source as candidates; see `rows` and `convert`."""
    for origin, row in rows(file, places):
        yield Read(origin, convert(row, file, origin, as_published=as_published))


def read_all(file: DataFile, path: Path, *, as_published: bool = False) -> list[Candidate]:
    """The problems of a file or folder that was given by hand; those without answer and tests have neither.

    Raises:
        DataError: a row that can't be understood, with file and line.
    """
    found = []
    for one in read(file, [path], as_published=as_published):
        if isinstance(one.found, Bad):
            place = (path if path.is_dir() else path.parent) / one.origin
            raise DataError(f"{place}: {one.found.reason}: correct or remove the row.")
        found.append(one.found)
    return found


def read_stage_file(path: Path, reward: str) -> list[Problem]:
    """The problems of a signal stage's own file: columns `problem`, and `answer` or, to reward code, `tests`.

    Raises:
        DataError: a row that can't be understood, with file and line; or no row has what the reward needs.
    """
    coded = reward == "code"
    needed, domain = ("tests", CODE_DOMAIN) if coded else ("answer", "math")
    columns = Columns(answer=None, tests="tests") if coded else Columns()
    problems = [c.problem for c in read_all(DataFile(path=str(path), domain=domain, columns=columns), path)]
    graded = [problem for problem in problems if getattr(problem, needed) is not None]
    if not graded:
        raise DataError(f"{path} has no problem with `{needed}`, which the reward {reward} needs: give another file.")
    return graded


def read_texts(path: Path, columns: Sequence[str] = TEXT_COLUMNS) -> Iterator[tuple[int, str | Bad]]:
    """The problem texts of a file in order, from the first of `columns` that each row has, with the rows' numbers."""
    for number, row in read_rows(path, max_row=1 << 28):
        yield number, row if isinstance(row, Bad) else row_text(row, columns)


def row_text(row: Mapping[str, Any], columns: Sequence[str] = TEXT_COLUMNS) -> str | Bad:
    """The problem's text in a row whose columns nobody has described."""
    name = next((name for name in columns if name in row), None)
    if name is None:
        return Bad(f"none of the columns {', '.join(columns)} holds the problem: name the column", excerpt(row))
    try:
        return text(row[name], name)
    except BadRow as error:
        return Bad(str(error), excerpt(row))
    except RecursionError:
        return Bad(f"column {name!r} must be text, and is nested too deeply to show", excerpt(row))


def _selected(row: dict[str, Any], file: DataFile) -> bool:
    return all(_lies_in(row.get(name), *bounds) for name, bounds in file.select.items())


def _lies_in(value: Any, low: int | date, high: int | date) -> bool:
    if isinstance(low, date) and isinstance(high, date):
        day = str(value)[:10]  # of a date, or of a time as ISO 8601 writes it
        return _DAY.fullmatch(day) is not None and low.isoformat() <= day <= high.isoformat()
    # CSV has nothing but text, and MATH's levels are text such as `Level 3`.
    if isinstance(value, str) and (found := _LAST_WHOLE.fullmatch(value)):
        value = int(found[1])
    return isinstance(value, (int, float)) and low <= value <= high  # type: ignore[operator]  # both are numbers


def convert(row: Any, file: DataFile, origin: str, *, as_published: bool = False) -> Candidate | Bad:
    """The candidate of a row, or why there is none; `as_published` takes problems with damaged LaTeX too, as others
    measure on them."""
    if isinstance(row, Bad):
        return row
    try:
        found = fields(row, file)
    except BadRow as error:
        return Bad(str(error), excerpt(row))
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        return Bad(f"not in the format {file.format} ({type(error).__name__}: {error})", excerpt(row))
    body = _stripped(found.problem, file.strip)
    answer = None if found.answer in file.no_answer else found.answer
    texts = (body, found.added, answer or "", *found.solutions)
    if not all(map(_is_storable, texts)):
        return Bad("a text holds NUL bytes or half of a surrogate pair", excerpt(row))
    if not as_published and (reason := why_broken(body) or (answer and why_broken(answer))):
        return Bad(reason, excerpt(row))
    domain = (label_domain(found.label, file.labels) if found.label is not None else file.domain) or ""
    key = hashlib.sha256(fold(body).encode()).hexdigest()[:12] if found.id is None else found.id
    made = Problem(
        id=f"{file.title}-{key}",
        domain=domain,
        problem=body + found.added,
        source=file.title,
        licence=file.licence,
        answer=answer,
        tests=found.tests,
        difficulty=found.difficulty,
    )
    return Candidate(made, body, found.solutions, origin, found.label)


def _is_storable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _stripped(problem: str, texts: Sequence[str]) -> str:
    for one in texts:
        problem = problem.removeprefix(one).removesuffix(one).strip()
    return problem
