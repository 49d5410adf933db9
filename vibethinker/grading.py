"""`vibethinker grade`: rows of a JSON-lines file in, their verdicts in another file out.

Two passes over the input: the first only checks every row, so that a malformed one is reported before anything is
written; the second grades what the output doesn't hold yet, in batches, appended as they come. Run again, it goes on
where it stopped. A row may carry `prompt`, what the response answers: an answer copied from it doesn't count. Rows of
the output: the row's `id`, `verdict`, `extracted`, `seconds`. Ids are all that is kept in memory.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

from vibethinker.errors import ConfigurationError, DataError
from vibethinker.verification import CodeLimits, Grading, Item, Verdict, Verifier, check_tests
from vibethinker.verification.schema import CODE_VERDICTS, MATH_VERDICTS

_BATCH = 256
_REPORTED = 20  # malformed rows named in a message


@dataclass
class Summary:
    """What one call did: verdicts counted by class, rows found graded already, malformed rows skipped, and the
    sandbox's tier where programs ran."""

    verdicts: Counter[str] = field(default_factory=Counter)
    already: int = 0
    bad: list[str] = field(default_factory=list)
    tier: str | None = None


@dataclass(frozen=True)
class _Row:
    key: str  # the id as JSON, so that 1 and "1" differ
    id: str | int
    item: Item


class _BadRow(ValueError):
    """What is wrong with a row."""


def grade_file(
    kind: str,
    source: Path,
    target: Path,
    skip_bad: bool = False,
    code: CodeLimits | None = None,
    workers: int = 1,
    math_seconds: float = 5.0,
    progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Grade the rows of `source` into `target`; `progress(done, total)` is called after each batch.

    Raises DataError for a missing or empty input, malformed rows (unless `skip_bad`) or an output that isn't
    one of this command, and ConfigurationError where no sandbox for programs works, or the output can't be
    written. Nothing is written then.
    """
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigurationError(f"{target} is the input too: name another file for the verdicts")
    summary = Summary()
    keys = _check_rows(kind, source, summary.bad)
    if summary.bad and not skip_bad:
        shown = "; ".join(summary.bad[:_REPORTED])
        more = f"; and {len(summary.bad) - _REPORTED} more" if len(summary.bad) > _REPORTED else ""
        raise DataError(f"nothing was graded, mend these rows or pass --skip-bad: {shown}{more}.")
    if not keys:
        raise DataError(f"{source} holds no row to grade: it needs one JSON object a line")
    graded, size = _read_target(kind, target)
    summary.already = len(keys & graded)
    wanted = keys - graded
    with Verifier(workers, math_seconds, code) as verifier:
        if kind == "code":
            summary.tier = verifier.try_sandbox()
        with _open(target, "ab") as output:
            output.truncate(size)
            for rows, verdicts in _graded(verifier, _wanted_rows(kind, source, set(wanted))):
                output.writelines(_line(row, verdict) for row, verdict in zip(rows, verdicts, strict=True))
                output.flush()
                summary.verdicts.update(verdict.verdict for verdict in verdicts)
                if progress:
                    progress(summary.verdicts.total(), len(wanted))
            os.fsync(output.fileno())
    return summary


def _graded(verifier: Verifier, rows: Iterator[_Row]) -> Iterator[tuple[list[_Row], list[Verdict]]]:
    """Rows with their verdicts, in batches; a batch is with the workers while the one before is waited for."""
    before: tuple[list[_Row], Grading] | None = None
    while batch := list(islice(rows, _BATCH)):
        grading = verifier.submit([row.item for row in batch])
        if before is not None:
            yield before[0], before[1].verdicts()
        before = batch, grading
    if before is not None:
        yield before[0], before[1].verdicts()


def _line(row: _Row, verdict: Verdict) -> bytes:
    record = {
        "extracted": verdict.extracted,
        "id": row.id,
        "seconds": round(verdict.seconds, 6),
        "verdict": verdict.verdict,
    }
    return json.dumps(record).encode() + b"\n"


def _check_rows(kind: str, source: Path, bad: list[str]) -> set[str]:
    """The keys of the sound rows; what is wrong with the others goes to `bad`."""
    keys: set[str] = set()
    for number, line in _lines(source):
        try:
            row = _parse(kind, line)
            if row.key in keys:
                raise _BadRow(f"the id {row.key} is an earlier row's")
            keys.add(row.key)
        except _BadRow as problem:
            bad.append(f"{source}:{number}: {problem}")
    return keys


def _wanted_rows(kind: str, source: Path, wanted: set[str]) -> Iterator[_Row]:
    """The first sound row of each wanted key."""
    for _, line in _lines(source):
        with suppress(_BadRow):
            row = _parse(kind, line)
            if row.key in wanted:
                wanted.remove(row.key)
                yield row


def _lines(source: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with open(source, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{source} can't be read ({error.strerror}): name a file of rows to grade") from error


def _parse(kind: str, line: bytes) -> _Row:
    try:
        row = json.loads(line.strip())
    except json.JSONDecodeError as error:
        raise _BadRow(f"not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise _BadRow(f"not JSON in UTF-8 ({error})") from None
    if not isinstance(row, dict):
        raise _BadRow("not a JSON object")
    reference = "gold" if kind == "math" else "tests"
    if missing := [name for name in ("id", "response", reference) if name not in row]:
        raise _BadRow(f"lacks {' and '.join(repr(name) for name in missing)}")
    if isinstance(row["id"], bool) or not isinstance(row["id"], str | int):
        raise _BadRow("'id' must be a string or an integer")
    if not isinstance(row["response"], str):
        raise _BadRow("'response' must be a string")
    if not isinstance(row.get("prompt", ""), str):
        raise _BadRow("'prompt' must be a string")
    gold = row[reference]
    if kind == "code":
        if problem := check_tests(gold):
            raise _BadRow(problem)
    elif isinstance(gold, bool) or not isinstance(gold, str | int | float) or not str(gold).strip():
        raise _BadRow("'gold' must be a non-empty string or a number")
    return _Row(json.dumps(row["id"]), row["id"], Item(kind, row["response"], gold, row.get("prompt", "")))


def _read_target(kind: str, target: Path) -> tuple[set[str], int]:
    """The keys that the output holds already, and its size up to the end of its last whole line."""
    keys: set[str] = set()
    size = 0
    if not target.exists():
        return keys, size
    verdicts = MATH_VERDICTS if kind == "math" else CODE_VERDICTS
    with _open(target, "rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                if row["verdict"] not in verdicts:
                    raise ValueError
                keys.add(json.dumps(row["id"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise DataError(
                    f"{target}:{number}: not a verdict of `grade --kind {kind}`: name a new file, or the output "
                    "of an earlier call"
                ) from None
            size += len(line)
    return keys, size


def _open(target: Path, mode: str) -> IO[bytes]:
    try:
        return open(target, mode)
    except OSError as error:
        raise ConfigurationError(
            f"{target} can't be opened ({error.strerror}): name a file in a folder that you may write to"
        ) from error
