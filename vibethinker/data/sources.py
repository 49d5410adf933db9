"""Problem files of others: JSONL rows, by a column mapping, to problems with the worked solutions they carry.

`format: columns` takes the names from `columns`, where a dot walks into objects. `format: gsm8k` reads
`question` and `answer`: the gold stands after ####, thousands separators are removed, the calculator marks
<<48/2=24>> are taken out of the worked solution, and a sentence with the boxed gold ends it. Where the worked
solution never names the gold, it contradicts it, so it gets no such sentence and the verifier will leave it
out.

A row that can't be understood stops the reading with `file:line: what is wrong`; a row that is understood but
has no use (a domain that isn't trained, no gold) is counted and left out.

Left out: formats other than JSONL, data sets of the hub, and the mapping of foreign labels to domains.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from vibethinker.data.schema import Problem
from vibethinker.data.splits import fold
from vibethinker.errors import DataError
from vibethinker.settings import CODE_DOMAIN, Columns, DataFile
from vibethinker.verification.schema import check_tests

# Where files keep the problem when nobody says it: ours, gsm8k's, chat prompts, mbpp's.
TEXT_COLUMNS: tuple[str, ...] = ("problem", "question", "prompt", "text")

# The origin of problems that `vibethinker.data.procedural` made.
GENERATED = "procedural"

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_SEPARATOR = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


@dataclass(frozen=True)
class Candidate:
    """A problem on its way into the data, with the solutions that came with it, not yet verified.

    `origin` is `file:line`, or GENERATED.
    """

    problem: Problem
    solutions: tuple[str, ...]
    origin: str

    @property
    def text(self) -> str:
        return self.problem.problem


def resolve(path: str, directory: str) -> Path:
    """The absolute path of a file named in the settings: relative ones start at `data.directory`."""
    return (Path(directory).expanduser() / Path(path).expanduser()).absolute()


def read_rows(path: Path, limit: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers, one at a time; blank lines are passed over.

    Raises:
        DataError: the file can't be read, or `file:line` isn't a JSON object.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(
            f"The data file {path} can't be read ({error.strerror}): correct the path (relative ones in a "
            "configuration start at data.directory), or put a file of one JSON object a line there."
        ) from None
    with file:
        rows = 0
        for number, line in enumerate(file, start=1):
            if limit is not None and rows == limit:
                return
            if line.strip():
                rows += 1
                yield number, _parse(line, f"{path}:{number}")


def read_candidates(
    file: DataFile, path: Path, domains: Collection[str] | None
) -> tuple[list[Candidate], Counter[str]]:
    """The problems of one file, in its order; their source is the file's stem, which their ids start with.

    Args:
        file: the column mapping, domain, limit and licence.
        path: where the file is.
        domains: domains to keep; None keeps every domain (evaluation files).

    Returns:
        The candidates, and counts: `rows` read, `unmapped` of another domain, `no_gold` without answer or
        tests.

    Raises:
        DataError: a row that can't be understood, with file and line.
    """
    if file.domain is None and file.columns.domain is None:
        raise DataError(
            f"The data file {path} has no domain: set its `domain`, or `columns.domain` to a column's name."
        )
    counts: Counter[str] = Counter()
    candidates: list[Candidate] = []
    for number, row in read_rows(path, file.limit):
        counts["rows"] += 1
        domain = _domain(row, file, f"{path}:{number}")
        if domains is not None and domain not in domains:
            counts["unmapped"] += 1
            continue
        candidate = _candidate(row, file, domain, path, number)
        if candidate.problem.answer is None and candidate.problem.tests is None:
            counts["no_gold"] += 1
        else:
            candidates.append(candidate)
    return candidates, counts


def read_stage_file(path: Path, reward: str) -> list[Problem]:
    """The problems of a signal stage's own file: columns `problem`, and `answer` or, to reward code, `tests`.

    Raises:
        DataError: a row that can't be understood, with file and line; or no row has what the reward needs.
    """
    columns = Columns() if reward == "math" else Columns(answer=None, tests="tests")
    candidates, _ = read_candidates(DataFile(path=str(path), domain=reward, columns=columns), path, None)
    if not candidates:
        needed = "answer" if reward == "math" else "tests"
        raise DataError(f"{path} has no problem with `{needed}`, which the reward {reward} needs: give another file.")
    return [candidate.problem for candidate in candidates]


def read_texts(path: Path, columns: Sequence[str] = TEXT_COLUMNS) -> list[str]:
    """The problem texts of a JSONL file in order, from the first of `columns` that each row has.

    A chat prompt, a list of messages, counts as the text of its messages.

    Raises:
        DataError: a row that has none of the columns, or no text in it, with file and line.
    """
    return [row_text(row, f"{path}:{number}", columns) for number, row in read_rows(path)]


def row_text(row: dict[str, Any], where: str, columns: Sequence[str] = TEXT_COLUMNS) -> str:
    """The problem text of one row; see `read_texts`."""
    name = next((name for name in columns if name in row), None)
    if name is None:
        raise DataError(
            f"{where}: none of the columns {', '.join(columns)} holds the problem among "
            f"{', '.join(sorted(row))}: name the column."
        )
    value = row[name]
    if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
        value = "\n".join(_text(message.get("content"), "content", where) for message in value)
    return _text(value, name, where)


def _candidate(row: dict[str, Any], file: DataFile, domain: str, path: Path, number: int) -> Candidate:
    columns, where = file.columns, f"{path}:{number}"
    answer: str | None = None
    tests: dict[str, Any] | None = None
    solution: str | None = None
    if file.format == "gsm8k":
        text = _text(_column(row, "question", where), "question", where)
        answer, solution = _gsm8k(_text(_column(row, "answer", where), "answer", where), where)
    else:
        text = _text(_column(row, columns.problem, where), columns.problem, where)
        if domain == CODE_DOMAIN:
            tests = _tests(_column(row, columns.tests, where), where) if columns.tests else None
        elif columns.answer:
            answer = _answer(_column(row, columns.answer, where), columns.answer, where)
        if columns.solution and (value := _column(row, columns.solution, where)) is not None:
            solution = _text(value, columns.solution, where)
    given = _column(row, columns.id, where) if columns.id else None
    key = hashlib.sha256(fold(text).encode()).hexdigest()[:12] if given is None else str(given)
    problem = Problem(
        id=f"{path.stem}-{key}",
        domain=domain,
        problem=text,
        source=path.stem,
        licence=file.licence,
        answer=answer,
        tests=tests,
    )
    return Candidate(problem, (solution,) if solution else (), f"{path.name}:{number}")


def _gsm8k(text: str, where: str) -> tuple[str, str | None]:
    body, marks, gold = text.rpartition("####")
    gold = _SEPARATOR.sub("", gold).strip().removeprefix("$")
    if not marks or not gold:
        raise DataError(
            f"{where}: the answer lacks the gold after ####, so it isn't in gsm8k's format: check `format`."
        )
    body = _CALCULATOR.sub("", body).strip()
    return gold, f"{body}\nThe answer is \\boxed{{{gold}}}." if _names(body, gold) else body or None


def _names(body: str, gold: str) -> bool:
    """Whether the gold is among the numbers of a worked solution, whatever their sign, or in its text."""
    unsigned = gold.removeprefix("-")
    if not _NUMBER.fullmatch(unsigned):
        return gold in body
    return Decimal(unsigned) in {Decimal(number) for number in _NUMBER.findall(_SEPARATOR.sub("", body))}


def _domain(row: dict[str, Any], file: DataFile, where: str) -> str:
    """The row's own domain in lower case, else the file's."""
    value = _column(row, file.columns.domain, where) if file.columns.domain else None
    return _text(value, str(file.columns.domain), where).lower() if value else file.domain or "unstated"


def _answer(value: Any, name: str, where: str) -> str | None:
    """A gold answer as text; whole floats lose their .0; None and blanks are no answer."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return _text(value, name, where, blank=True) or None


def _tests(value: Any, where: str) -> dict[str, Any] | None:
    """Tests in the form that `grade` takes; None where there are none."""
    if value is None:
        return None
    if reason := check_tests(value):
        raise DataError(f"{where}: {reason}; tests are written as for `vibethinker grade`.")
    return value


def _column(row: dict[str, Any], name: str, where: str) -> Any:
    """The value at a dotted name; a key that holds the dots itself goes first."""
    if name in row:
        return row[name]
    node: Any = row
    for part in name.split("."):
        if not isinstance(node, dict) or part not in node:
            raise DataError(
                f"{where}: there is no column {name!r} among {', '.join(sorted(row))}: set the file's `columns`."
            )
        node = node[part]
    return node


def _text(value: Any, name: str, where: str, *, blank: bool = False) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: column {name!r} must be text, not {_short(value)}.")
    if not value.strip() and not blank:
        raise DataError(f"{where}: column {name!r} is empty: remove the row or fill it in.")
    return value.strip()


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode(), parse_constant=_refuse_constant, parse_float=_finite)
        if b"\\u" in line:  # an escape can name half of a surrogate pair, which no file can hold
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not a line of JSON in UTF-8 ({error}): correct or remove it.") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: each line must be a JSON object, not {_short(row)}.")
    return row


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too big a number")
    return value


def _short(value: Any) -> str:
    return json.dumps(value)[:60]
