"""The two records that the data phase hands on, problems and traces, and their Parquet files.

Columns that hold objects (tests, sampling) are JSON text, since their form differs from row to row. Rows are written in
groups of fixed size and nothing is written about when, so equal records give equal bytes. A file's columns are
checked when it is read; what a domain or a verdict may be called, and whether ids repeat, is the business of those
who use the records.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import NoneType, TracebackType, UnionType
from typing import Any, Self, TypeVar

from vibethinker.errors import DataError

_JSON_NAMES = {str: "a string", int: "an integer", dict: "an object", NoneType: "null"}
_GROUP = 2048  # rows


Result = TypeVar("Result")


def _cached(function: Callable[[type[_Record]], Result]) -> Callable[[type[_Record]], Result]:
    """`functools.cache`, whose types take no class of a dataclass for hashable."""
    return functools.cache(function)  # type: ignore[return-value]


@_cached
def _json_types(record: type[_Record]) -> dict[str, tuple[type, ...]]:
    """The Python types that each key of a record may have once JSON is parsed."""
    hints = typing.get_type_hints(record)
    members = {name: typing.get_args(h) if isinstance(h, UnionType) else (h,) for name, h in hints.items()}
    return {name: tuple(typing.get_origin(one) or one for one in some) for name, some in members.items()}


@dataclasses.dataclass(frozen=True)
class _Record:
    def to_row(self) -> dict[str, Any]:
        """The record as a row: objects as JSON text."""
        row = {name: getattr(self, name) for name in _json_types(type(self))}
        return {
            name: json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
            if isinstance(value, dict)
            else value
            for name, value in row.items()
        }

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """The record of a row, whose objects may be JSON text.

        Raises:
            DataError: naming the key that is missing, unknown or of another type.
        """
        kind = cls.__name__.lower()
        if not isinstance(row, dict):
            raise DataError(f"a {kind} is a JSON object, not {json.dumps(row)[:40]}")
        types = _json_types(cls)
        if unknown := sorted(row.keys() - types.keys()):
            raise DataError(f"a {kind} has no key {unknown[0]!r}; its keys are {', '.join(types)}")
        required = (f.name for f in dataclasses.fields(cls) if _required(f))
        if missing := [name for name in required if name not in row]:
            raise DataError(f"the {kind} lacks the key {missing[0]!r}")
        return cls(**{name: _value(value, types[name], kind, name) for name, value in row.items()})


def _value(value: Any, types: tuple[type, ...], kind: str, name: str) -> Any:
    if isinstance(value, str) and dict in types:
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"the {kind}'s {name!r} isn't JSON ({error})") from None
    # bool is an int in Python, but not in JSON.
    if not isinstance(value, types) or isinstance(value, bool):
        wanted = " or ".join(_JSON_NAMES[one] for one in types)
        raise DataError(f"the {kind}'s {name!r} must be {wanted}, not {json.dumps(value, default=str)[:40]}")
    return value


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


@dataclasses.dataclass(frozen=True)
class Problem(_Record):
    """One problem, with the gold answer (maths) or the tests (code) that decide whether a solution is right.

    `tests` is one of `{"kind": "function", "entry_point": str, "cases": [{"args": list, "expected":
    any}]}`, `{"kind": "stdin", "cases": [{"input": str, "output": str}]}` and `{"kind": "assert", "code":
    str}`. `answer_source` is `gold`, or `majority` where the answer is the one that most of a teacher's samples agree
    on.
    """

    id: str
    domain: str
    problem: str
    source: str
    licence: str
    answer: str | None = None
    tests: dict[str, Any] | None = None
    difficulty: int | None = None
    answer_source: str = "gold"


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


class RecordWriter:
    """Writes the records of one kind to a Parquet file, a group at a time; a context manager."""

    def __init__(self, path: str | Path, kind: type[Problem] | type[Trace]) -> None:
        import pyarrow.parquet as pq

        self._schema = _schema(kind)
        self._rows: list[dict[str, Any]] = []
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, record: Problem | Trace) -> None:
        """Append a record."""
        self._rows.append(record.to_row())
        if len(self._rows) == _GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self._flush()
        self._writer.close()


def write_records(path: str | Path, kind: type[Row], records: Iterable[Row]) -> None:
    """Write a file of records; the same records give the same bytes."""
    with RecordWriter(path, kind) as writer:
        for record in records:
            writer.write(record)


def iter_records(path: str | Path, kind: type[Row]) -> Iterator[Row]:
    """The records of a file in order, one group in memory at a time.

    Raises:
        DataError: the file can't be read, or isn't one of these records.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(_schema(kind)):
                raise DataError(
                    f"{path} isn't a file of {kind.__name__.lower()}s, whose columns are "
                    f"{', '.join(_schema(kind).names)}: name one that the data step wrote."
                )
            for batch in file.iter_batches(batch_size=_GROUP):
                yield from map(kind.from_row, batch.to_pylist())
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # Arrow's own text is a paragraph
        raise DataError(f"{path}: cannot be read ({reason}); check the path") from error
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} isn't whole Parquet ({error}): make it again") from error


def read_records(path: str | Path, kind: type[Row]) -> list[Row]:
    """`iter_records` as a list."""
    return list(iter_records(path, kind))


@_cached
def _schema(kind: type[_Record]) -> Any:
    import pyarrow as pa

    fields = []
    for name, types in _json_types(kind).items():
        arrow = pa.int32() if int in types else pa.string()
        fields.append(pa.field(name, arrow, nullable=NoneType in types))
    return pa.schema(fields)
