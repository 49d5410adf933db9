"""What tracking is made of and needs no store: the journal on the disk, and addresses as they may be shown."""

from __future__ import annotations

import resource
from base64 import b64encode

import pytest

from vibethinker.redaction import passwords, redact
from vibethinker.tracking import without_password
from vibethinker.tracking.journal import Journal, read_all


def test_what_a_full_disk_does_not_take_is_written_when_there_is_room(tmp_path):
    journal = Journal(tmp_path)
    journal.append({"op": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel then takes a part of what is written, as of a disk that fills up.
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 4, before[1]))
    try:
        journal.append({"op": 2})
        journal.append({"op": 3})
        assert [operation["op"] for operation in read_all(tmp_path)] == [1]
        assert not journal.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.append({"op": 4})
    assert journal.flush()
    journal.close()
    journal.append({"op": 5})  # by a step that didn't leave in time
    assert [operation["op"] for operation in read_all(tmp_path)] == [1, 2, 3, 4]


def test_what_a_store_repeats_of_its_password_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "the-token")
    uri = "http://me:pass%2Fword@mlflow:5000/path?x=1"
    sent = b64encode(b"me:pass/word").decode()
    said = f"403: {uri} said Basic {sent}, pass/word and Bearer the-token"
    assert redact(said, passwords(uri)) == (
        "403: http://[hidden]@mlflow:5000/path?x=1 said Basic [hidden], [hidden] and Bearer [hidden]"
    )
    assert redact("not about it", passwords("sqlite:///mlflow.db")) == "not about it"
    assert without_password(uri) == "http://mlflow:5000/path"
    assert without_password("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
