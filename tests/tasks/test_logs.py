"""Lines of a step's process in its task run's log."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tasks import logs
from tasks.logs import LINES, WIDTH, Teller
from vibethinker.errors import DataError, VibeThinkerError

# Prefect's handler, which sends logs to its server, wants a run to log for.
without_a_run = pytest.mark.filterwarnings("ignore:Logger 'prefect.task_runs' attempted to send logs:UserWarning")


class Kept:
    """A logger that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[list[str]] = []

    def info(self, text: str) -> None:
        self.told.append(text.split("\n"))

    warning = info


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "signal-1.log"
    path.write_text("of an earlier attempt\n")
    return path


def write(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_new_lines_and_progress_are_told_once(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "SECONDS", 0.0)
    kept = Kept()
    teller = Teller(log, kept)
    write(log, "one\ntwo\nhal")
    teller.progress(3, 9, "loss 0.5")
    teller.tell()
    write(log, "f\n")
    teller.end()
    teller.end()
    assert kept.told == [["one", "two", "3/9 loss 0.5"], ["half"]]


def test_nothing_is_told_before_its_time_and_the_rest_at_the_end(log: Path) -> None:
    kept = Kept()
    teller = Teller(log, kept)
    write(log, "one\n")
    teller.tell()
    assert not kept.told
    write(log, "without an end of line")
    teller.end()
    assert kept.told == [["one", "without an end of line"]]


@pytest.mark.slow
@pytest.mark.parametrize("text", ["a line\n" * 200_000, "x" * 2_000_000, "y" * 2_000_000 + "\nlast\n", "\0\xff\n" * 10])
def test_however_much_is_written_little_is_told(log: Path, text: str) -> None:
    kept = Kept()
    teller = Teller(log, kept)
    write(log, text)
    teller.end()
    [told] = kept.told
    assert len(told) <= LINES + 1
    assert all(len(line) <= WIDTH for line in told)


def test_of_a_traceback_the_last_line_is_told(log: Path) -> None:
    kept = Kept()
    teller = Teller(log, kept)
    write(log, 'before\nTraceback (most recent call last):\n  File "a.py", line 1\n    b()\nKeyError: 3\nafter\n')
    teller.end()
    assert kept.told == [["... all lines: vibethinker logs signal-1", "before", "KeyError: 3", "after"]]


def test_a_failure_of_ours_is_logged_once_as_its_sentence(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.tell_sentences()
    logger = logging.getLogger("prefect.flow_runs")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(logger, "propagate", False)
    for error in (DataError("The file is empty: fill it."), ValueError("something else")):
        for text in ("Encountered exception during execution", "Engine execution exited"):
            try:
                raise error
            except Exception:
                logger.exception(text)
    told = [(record.getMessage(), record.exc_text is not None) for record in caplog.records]
    assert told == [
        ("The file is empty: fill it.", False),
        ("Encountered exception during execution", True),
        ("Engine execution exited", True),
    ]


def test_a_key_that_a_library_prints_is_not_told(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", "a-planted-key")
    kept = Kept()
    teller = Teller(log, kept)
    write(log, "asking with a-planted-key\n")
    teller.end()
    assert kept.told == [["asking with [hidden]"]]
    assert log.read_text() == "of an earlier attempt\nasking with [hidden]\n"


def test_a_line_of_prefect_s_log_has_no_key(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", "a-planted-key")
    logs.tell_sentences()
    logger = logging.getLogger("prefect.task_runs")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(logger, "propagate", False)
    logger.warning("refused %s of %d", "a-planted-key", 3)
    assert [record.getMessage() for record in caplog.records] == ["refused [hidden] of 3"]


@without_a_run
def test_of_any_other_exception_neither_message_nor_traceback_has_a_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", "a-planted-key")
    logger = logging.getLogger("prefect.task_runs")
    monkeypatch.setattr(logger, "propagate", True)
    logs.tell_sentences()
    with pytest.raises(VibeThinkerError, match="401") as failure, logs.ours(logger):
        raise RuntimeError("401 of a-planted-key")
    assert "a-planted-key" not in str(failure.value)
    assert "Traceback" in caplog.text
    assert "a-planted-key" not in caplog.text


@without_a_run
def test_words_that_don_t_fit_their_format_raise_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logs.tell_sentences()
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logging.getLogger("prefect.task_runs").warning("%d of", "x")


def test_a_key_is_hidden_where_its_line_is_cut(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_API_KEY", "k" * 40 + "1")
    kept = Kept()
    teller = Teller(log, kept)
    write(log, "." * (WIDTH - 20) + " " + "k" * 40 + "1\n")
    teller.end()
    assert "kkk" not in str(kept.told)


def test_a_log_that_can_t_be_cleaned_changes_no_end(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(logs, "clean", full)
    kept = Kept()
    Teller(log, kept).end()
    assert "No space left" in str(kept.told)
