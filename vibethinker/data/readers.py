"""Rows of files, one at a time, whatever the format: JSONL, a JSON array, CSV, TSV, Parquet, Arrow, and folders of
them.

Text formats may be compressed with gzip. A row that can't be read is yielded as `Bad` with the reason, so that it
costs only itself; a file that can't be read at all raises.

Memory holds one row of a text format, one small batch of Parquet, one record batch of Arrow as it was written,
whatever the file's size. The longest row that is given on, `max_row`, also bounds what is held of a row of JSON lines
and of a field of CSV; an item of a JSON array, a line of CSV and a batch of columns are held before they are measured.

Arrow's offsets and lengths are checked before a value is read by them, so that damage ends in an error and not in the
end of the process.

Left out: zstd, spreadsheets, and JSON files that are one object with the rows somewhere inside. Damaged unions can
still end the process: Arrow's own check of them does. Damage that leaves every value readable isn't noticed.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from vibethinker.errors import DataError

LAYOUT = "one JSON object a line in a .jsonl file, or a .json array, .csv, .tsv, .parquet or .arrow file, or a folder"
_BATCH = 64  # rows of a column format; some carry tests of megabytes
_EXCERPT = 2000  # characters
# What the package datasets and the hub write about data beside it.
_ABOUT = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}

# What reading a value of a column format raises: text that isn't UTF-8, a date beyond the calendar, an unknown zone.
_UNREADABLE = (ValueError, ArithmeticError, LookupError)


@dataclass(frozen=True)
class Bad:
    """A row that isn't used, why, and how it begins."""

    reason: str
    excerpt: str = ""


Row = dict[str, Any]
Numbered = tuple[int, Row | Bad]


def files_of(path: Path) -> list[Path]:
    """The file itself, or a folder's data files in the order of their names, without what `datasets` says about them.

    Raises:
        DataError: there is nothing to read.
    """
    if path.is_dir():
        visible = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
        found = sorted(p for p in visible if p.is_file() and p.name not in _ABOUT and _reader(p) is not None)
        if not found:
            raise DataError(f"The folder {path} holds no data file: put {LAYOUT} there.")
        return found
    return [path]


def read_rows(path: Path, max_row: int = 4 << 20) -> Iterator[Numbered]:
    """The rows of one file with their numbers from 1, lines for text formats; blank lines are passed over.

    Args:
        max_row: bytes of the longest row that is meant, as text, or of its values in a column format.

    Raises:
        DataError: the file can't be opened, is of no known format, or is damaged beyond its single rows.
    """
    reader = _reader(path)
    if reader is None:
        raise DataError(f"The data file {path} is of no known format: give {LAYOUT}.")
    try:
        yield from reader(path, max_row)
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or error.errno is None:
            raise DataError(f"The data file {path} is damaged ({error}): fetch or write it again.") from None
        raise DataError(
            f"The data file {path} can't be read ({error.strerror}): correct the path (relative ones in a "
            f"configuration start at data.directory), or put {LAYOUT} there."
        ) from None
    except zlib.error as error:
        raise DataError(f"The data file {path} is damaged ({error}): fetch or write it again.") from None
    except EOFError:
        raise DataError(f"The data file {path} ends too early: fetch or write it again.") from None


def parse(line: bytes) -> Row | Bad:
    """The JSON object of a line."""
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant, parse_float=_finite)
        if b"\\u" in line:  # an escape can name half of a surrogate pair, which no file can hold
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        return Bad(f"its byte {error.start + 1} isn't UTF-8: save the file as UTF-8", excerpt(line))
    except (ValueError, RecursionError) as error:
        return Bad(f"not a line of JSON in UTF-8 ({error})", excerpt(line))
    return row if isinstance(row, dict) else Bad("not a JSON object", excerpt(line))


def excerpt(value: Any) -> str:
    """How a row begins, as text that any file can hold."""
    if isinstance(value, bytes):
        return value[:_EXCERPT].decode("utf-8", "backslashreplace")
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = repr(type(value))
    return text[:_EXCERPT].encode("utf-8", "backslashreplace").decode()


def _reader(path: Path) -> Callable[[Path, int], Iterator[Numbered]] | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _READERS.get(suffixes[-1]) if suffixes else None


def _open(path: Path) -> IO[bytes]:
    # The stream is the caller's to close.
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _jsonl(path: Path, max_row: int) -> Iterator[Numbered]:
    with _open(path) as file:
        number = 0
        while line := file.readline(max_row + 1):
            number += 1
            if len(line) > max_row and not line.endswith(b"\n"):
                head = line[:_EXCERPT]
                while (line := file.readline(max_row)) and not line.endswith(b"\n"):
                    pass
                yield number, _too_long(max_row, excerpt(head))
            elif line.strip():
                yield number, parse(line)


def _json(path: Path, max_row: int) -> Iterator[Numbered]:
    import ijson

    with _open(path) as file:
        start = file.read(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"{":  # many files of JSON lines are called .json
        yield from _jsonl(path, max_row)
        return
    if start != b"[":
        raise DataError(f"The data file {path} is neither a JSON array nor JSON lines: give {LAYOUT}.")
    number = 0
    with _open(path) as file:
        try:
            for number, item in enumerate(ijson.items(file, "item", use_float=True), start=1):
                yield number, _measured(item, max_row)
        except (ijson.JSONError, ValueError) as error:
            raise DataError(
                f"The data file {path} isn't valid JSON after row {number} ({error}): mend it, or write it as JSON "
                "lines, where a bad row costs only itself."
            ) from None


def _measured(item: Any, max_row: int) -> Row | Bad:
    """An item of a JSON array, if it would do as a line of JSON."""
    if not isinstance(item, dict):
        return Bad("not a JSON object", excerpt(item))
    try:
        size = len(json.dumps(item, ensure_ascii=False).encode())
    except (ValueError, RecursionError) as error:
        return Bad(f"not JSON in UTF-8 ({error})", excerpt(item))
    return item if size <= max_row else _too_long(max_row, excerpt(item))


def _csv(path: Path, max_row: int, delimiter: str = ",") -> Iterator[Numbered]:
    with _open(path) as raw:
        text = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        csv.field_size_limit(max_row)
        lines = csv.reader(text, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        while True:
            number = lines.line_num + 1
            try:
                values = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                if names is None:
                    raise _bad_header(path, error) from None
                yield number, Bad(f"not a row of CSV ({error})")
                continue
            if not values:
                continue
            if names is None:
                try:
                    "".join(values).encode()
                except UnicodeEncodeError:
                    raise _bad_header(path, "not UTF-8") from None
                names = values
            elif len(values) != len(names):
                yield number, Bad(f"{len(values)} fields instead of {len(names)}", excerpt(values))
            else:
                yield number, _decoded(dict(zip(names, values, strict=True)), max_row)


def _bad_header(path: Path, why: Any) -> DataError:
    return DataError(f"The first row of {path} must name the columns and can't be read ({why}): mend it.")


def _decoded(row: Row, max_row: int) -> Row | Bad:
    try:
        size = len("".join(row.values()).encode())
    except UnicodeEncodeError as error:
        return Bad(f"not UTF-8 ({error.reason})", excerpt(row))
    return row if size <= max_row else _too_long(max_row, excerpt(row))


def _parquet(path: Path, max_row: int) -> Iterator[Numbered]:
    import pyarrow.parquet as pq

    with whole(path, "Parquet"), pq.ParquetFile(path) as file:
        yield from enumerate(rows_of(file.iter_batches(batch_size=_BATCH), max_row), start=1)


def _arrow(path: Path, max_row: int) -> Iterator[Numbered]:
    import pyarrow as pa

    with whole(path, "Arrow"), pa.OSFile(str(path)) as source:
        try:
            reader = pa.ipc.open_file(source)
            batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        except pa.ArrowInvalid:  # what the package datasets writes is a stream
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        yield from enumerate(rows_of(batches, max_row), start=1)


@contextmanager
def whole(path: Path, kind: str) -> Iterator[None]:
    """Where a column file is read: damage is told as such.

    Raises:
        DataError: the file is damaged beyond its single rows.
    """
    import pyarrow as pa

    try:
        yield
    # A damaged header shows as a length that nothing can have, or as names that are no text.
    except (pa.ArrowException, OSError, SystemError, MemoryError, OverflowError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the file system's, not Arrow's
            raise
        raise DataError(
            f"The data file {path} isn't whole {kind} ({_first(error)}): fetch or write it again."
        ) from None


def rows_of(batches: Iterable[Any], max_row: int) -> Iterator[Row | Bad]:
    """The rows of record batches in order.

    Raises:
        pyarrow.ArrowInvalid: a batch's columns don't fit its rows.
    """
    for batch in batches:
        batch.validate()
        for start in range(0, batch.num_rows, _BATCH):
            part = batch.slice(start, _BATCH)
            rows = _all_rows(part, max_row)
            yield from (_one_row(part.slice(i, 1), max_row) for i in range(part.num_rows)) if rows is None else rows


def _all_rows(part: Any, max_row: int) -> list[Row] | None:
    """The rows of a batch where none can be too long and all can be read."""
    try:
        part.validate(full=True)  # following a wrong offset, even to measure, ends the process
        return part.to_pylist() if part.nbytes <= max_row else None
    except _UNREADABLE:
        return None


def _one_row(one: Any, max_row: int) -> Row | Bad:
    try:
        one.validate(full=True)
        return one.to_pylist()[0] if one.nbytes <= max_row else _too_long(max_row, "")
    except _UNREADABLE as error:
        return Bad(f"a value can't be read ({_first(error)})")


def _too_long(max_row: int, head: str) -> Bad:
    return Bad(f"longer than {max_row >> 20} MiB (`max_row`)", head)


def _first(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is too big a number")
    return value


_READERS: dict[str, Callable[[Path, int], Iterator[Numbered]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
}
