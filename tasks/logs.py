"""What a step's process says, in its task run's log: some of its lines and of its progress, bounded, without secrets.

All of it is in the step's own log file, which `vibethinker logs` shows, and which is cleaned of secrets at the step's
end. A failure of ours is one sentence, so Prefect's record of it is told once and without the traceback, which would
name this project's code alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from prefect.exceptions import PrefectException

from vibethinker.errors import VibeThinkerError
from vibethinker.redaction import clean, redact
from vibethinker.worker.endings import classify

SECONDS = 10.0  # between two tellings of one step
SHARE = 100  # the longer a step has run, the rarer: tellings are this share of that apart, some 700 in a week
LINES, WIDTH = 20, 400  # told at once, and characters of one
TAIL = 1 << 16  # bytes of the file that are looked at

_PLAIN = logging.Formatter()
_RUNS = ("prefect.flow_runs", "prefect.task_runs", "prefect.engine")


class Teller:
    """Follows the log file of one step; `path` may not be there yet, and what it holds already is left out."""

    def __init__(self, path: Path, logger: Any) -> None:
        self._path, self._logger = path, logger
        self._position = path.stat().st_size if path.exists() else 0
        self._began = self._at = time.monotonic()
        self._progress, self._in_traceback = "", False

    def progress(self, done: int, total: int, text: str) -> None:
        """Note how far it is, to be told with the next lines."""
        self._progress = f"{done}/{total} {text}".rstrip()

    def tell(self) -> None:
        """Tell what is new, if the last telling is long enough ago."""
        now = time.monotonic()
        if now - self._at >= max(SECONDS, (now - self._began) / SHARE):
            self._at = now
            self._tell(last=False)

    def end(self) -> None:
        """Tell whatever hasn't been told, and take secrets out of the file: the step's process has ended."""
        self._tell(last=True)
        try:
            clean(self._path)
        except OSError as error:  # how the step has ended matters more
            self._logger.warning(f"Secrets may be in {self._path}, which could not be written without them ({error}).")

    def _tell(self, last: bool) -> None:
        lines = [*self._lines(last), *([redact(self._progress)] if self._progress else [])]
        self._progress = ""
        if lines:
            self._logger.info("\n".join(lines))

    def _lines(self, last: bool) -> list[str]:
        """The newest of the lines that were written since."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            end = file.seek(0, 2)
            skipped = max(0, end - self._position - TAIL)
            file.seek(self._position + skipped)
            text = file.read(TAIL)
        whole = text if last else text[: text.rfind(b"\n") + 1]
        self._position += skipped + len(whole)
        # Before lines are cut or left out, by which half of a key could stay.
        lines = [line for line in redact(whole.decode(errors="replace")).splitlines() if line.strip()]
        kept = [line[:WIDTH] for line in lines if self._is_told(line)][-LINES:]
        if skipped or len(kept) < len(lines):
            kept.insert(0, f"... all lines: vibethinker logs {self._path.stem}")
        return kept

    def _is_told(self, line: str) -> bool:
        """Of a traceback only the last line is, which says what happened."""
        if line.startswith("Traceback (most recent call last)"):
            self._in_traceback = True
        elif not line.startswith((" ", "\t")):
            self._in_traceback = False
        return not self._in_traceback


class _Fit(logging.Filter):
    """Lets records pass as they may be read by everybody."""

    def __init__(self) -> None:
        super().__init__()
        self._told: WeakKeyDictionary[BaseException, set[str]] = WeakKeyDictionary()  # failure → loggers

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if not isinstance(error, VibeThinkerError):
            try:
                record.msg, record.args = redact(record.getMessage()), ()
            except (TypeError, ValueError):  # the words don't fit the format, of which logging itself tells
                return True
            if record.exc_info:
                record.exc_text = redact(_PLAIN.formatException(record.exc_info))
                record.exc_info = None
            return True
        told = self._told.setdefault(error, set())
        if record.name in told:
            return False
        told.add(record.name)
        record.msg, record.args, record.exc_info = str(error), (), None
        return True


_FIT = _Fit()


@contextmanager
def ours(logger: Any) -> Iterator[None]:
    """Within the block any other exception but Prefect's becomes one of ours, without secrets, since Prefect keeps what
    it says in the state of a run; its traceback is in the log."""
    try:
        yield
    except (VibeThinkerError, PrefectException):
        raise
    except Exception as error:
        logger.exception("A fault in this program:")
        raise classify(error) from error


def tell_sentences() -> None:
    """Have Prefect tell our failures by their sentence, and nothing with secrets, from now on."""
    for name in _RUNS:
        logging.getLogger(name).addFilter(_FIT)
