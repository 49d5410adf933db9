"""The two records that the data phase hands on: problems and traces, and their JSONL files.

A file holds one record a line, keys sorted, UTF-8, a newline at the end, so that equal records give equal
bytes. A row is checked for its keys and their JSON types when it is read; what a domain or a verdict may be
called, and whether ids repeat, is the business of those who use the records.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import typing
from collections.abc import Iterable
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Self, TypeVar

from vibethinker.errors import DataError

_JSON_NAMES = {str: "a string", int: "an integer", dict: "an object", NoneType: "null"}


@functools.cache
def _json_types(record: type[_Record]) -> dict[str, tuple[type, ...]]:
    """The Python types that each key of a record may have once JSON is parsed."""
    hints = typing.get_type_hints(record)
    members = {name: typing.get_args(h) if isinstance(h, UnionType) else (h,) for name, h in hints.items()}
    return {name: tuple(typing.get_origin(one) or one for one in some) for name, some in members.items()}


@dataclasses.dataclass(frozen=True)
class _Record:
    def to_dict(self) -> dict[str, Any]:
        """The record as a JSON object, keys sorted."""
        return {name: getattr(self, name) for name in sorted(_json_types(type(self)))}

    @classmethod
    def from_dict(cls, row: Any) -> Self:
        """The record of a JSON object.

        Raises DataError naming the key that is missing, unknown or of another type.
        """
        kind = cls.__name__.lower()
        if not isinstance(row, dict):
            raise DataError(f"a {kind} is a JSON object, not {json.dumps(row)[:40]}")
        types = _json_types(cls)
        if unknown := sorted(row.keys() - types.keys()):
            raise DataError(f"a {kind} has no key {unknown[0]!r}; its keys are {', '.join(types)}")
        for name, value in row.items():
            # bool is an int in Python, but not in JSON.
            if not isinstance(value, types[name]) or isinstance(value, bool):
                wanted = " or ".join(_JSON_NAMES[one] for one in types[name])
                raise DataError(f"the {kind}'s {name!r} must be {wanted}, not {json.dumps(value)[:40]}")
        required = (f.name for f in dataclasses.fields(cls) if _required(f))
        if missing := [name for name in required if name not in row]:
            raise DataError(f"the {kind} lacks the key {missing[0]!r}")
        return cls(**row)


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@dataclasses.dataclass(frozen=True)
class Problem(_Record):
    """One problem, with the gold answer (maths) or the tests (code) that decide whether a solution is
    right.

    `tests` is one of `{"kind": "function", "entry_point": str, "cases": [{"args": list, "expected":
    any}]}`, `{"kind": "stdin", "cases": [{"input": str, "output": str}]}` and `{"kind": "assert", "code":
    str}`.
    """

    id: str
    domain: str
    problem: str
    source: str
    licence: str
    answer: str | None = None
    tests: dict[str, Any] | None = None
    difficulty: int | None = None


@dataclasses.dataclass(frozen=True)
class Trace(_Record):
    """One written solution of a problem: `text` is the full reasoning with the final answer, `answer` what
    was extracted from it, `verdict` the grader's word, `teacher` who wrote it and `sampling` with which
    settings."""

    problem_id: str
    domain: str
    problem: str
    text: str
    teacher: str
    verdict: str | None = None
    answer: str | None = None
    sampling: dict[str, Any] = dataclasses.field(default_factory=dict)


Row = TypeVar("Row", Problem, Trace)


def read_jsonl(path: str | Path, kind: type[Row]) -> list[Row]:
    """The records of a JSONL file in order, blank lines left out; raises DataError as `file:line: what is
    wrong`."""
    rows: list[Row] = []
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(kind.from_dict(json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)))
        except DataError as error:
            raise DataError(f"{path}:{number}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not a line of JSON in UTF-8 ({error})") from error
    return rows


def write_jsonl(path: str | Path, rows: Iterable[Problem | Trace]) -> None:
    """Write the records, one a line; the same records give the same bytes."""
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row.to_dict(), sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
