"""Records and their JSONL files."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from vibethinker.data.schema import Problem, Trace, read_jsonl, write_jsonl
from vibethinker.errors import DataError

PROBLEM = Problem(id="a-1", domain="algebra", problem="Löse 2x=4.", source="test", licence="MIT", answer="2")
TRACE = Trace("a-1", "algebra", "Löse 2x=4.", "<think>4/2=2</think>\\boxed{2}", "test", sampling={"seed": 1})
ROW = json.dumps(PROBLEM.to_dict())


@pytest.mark.parametrize("record", [PROBLEM, TRACE])
def test_records_survive_a_file_and_give_the_same_bytes_again(record: Problem | Trace, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [record, record])
    assert read_jsonl(path, type(record)) == [record, record]
    first = path.read_bytes()
    assert first.endswith(b"}\n")
    assert list(json.loads(first.splitlines()[0])) == sorted(field.name for field in dataclasses.fields(record))
    write_jsonl(path, read_jsonl(path, type(record)))
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not a line of JSON"),
        ("[1]", r"a problem is a JSON object, not \[1\]"),
        ('{"id": "a"}', "the problem lacks the key 'domain'"),
        (ROW.replace('"answer"', '"anwser"'), "a problem has no key 'anwser'; its keys are id, domain"),
        (ROW.replace('"2"', "2"), "the problem's 'answer' must be a string or null, not 2"),
        (ROW.replace('"difficulty": null', '"difficulty": true'), "'difficulty' must be an integer or null"),
        (ROW.replace('"tests": null', '"tests": []'), r"'tests' must be an object or null, not \[\]"),
        (ROW.replace('"difficulty": null', '"difficulty": NaN'), "NaN is not JSON"),
        (ROW.replace("Solve", "\ud800") + "\\", "not a line of JSON"),
        ("[" * 100_000, "not a line of JSON"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(line: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{ROW}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"rows\.jsonl:3: .*{complaint}"):
        read_jsonl(path, Problem)


def test_bytes_that_are_no_utf8_are_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl:1: not a line of JSON in UTF-8"):
        read_jsonl(path, Problem)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read \(No such file or directory\)"):
        read_jsonl(tmp_path / "none.jsonl", Problem)


def test_a_number_that_json_does_not_know_is_not_written(tmp_path: Path) -> None:
    trace = dataclasses.replace(TRACE, sampling={"temperature": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_jsonl(tmp_path / "rows.jsonl", [trace])
