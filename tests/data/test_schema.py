"""Records in files: the same bytes again, readable by other tools, refused where malformed."""

from __future__ import annotations

import dataclasses

import pytest

from vibethinker.data.schema import Problem, Trace, iter_records, read_records, write_records
from vibethinker.errors import DataError

TESTS = {"kind": "assert", "code": "assert f(1) == 2"}
PROBLEM = Problem(id="a-1", domain="algebra", problem="Löse 2x=4.", source="test", licence="MIT", answer="2")
CODE = Problem("c-1", "code", "Write f.", "test", "MIT", tests=TESTS, difficulty=3)
TRACE = Trace("a-1", "algebra", "Löse 2x=4.", "<think>4/2=2</think>\\boxed{2}", "test", sampling={"seed": 1})


@pytest.mark.parametrize("records", [[PROBLEM, CODE], [TRACE, TRACE], []])
def test_records_survive_a_file_and_give_the_same_bytes_again(records, tmp_path):
    kind = type(records[0]) if records else Trace
    path, again = tmp_path / "rows.parquet", tmp_path / "again.parquet"
    write_records(path, kind, records)
    assert read_records(path, kind) == records
    write_records(again, kind, iter_records(path, kind))
    assert path.read_bytes() == again.read_bytes()


def test_a_file_of_many_rows_is_read_in_order_group_by_group(tmp_path):
    problems = [dataclasses.replace(PROBLEM, id=str(i)) for i in range(5000)]
    write_records(tmp_path / "many.parquet", Problem, iter(problems))
    found = iter_records(tmp_path / "many.parquet", Problem)
    assert next(found) == problems[0]
    assert list(found) == problems[1:]


def test_other_tools_read_the_file(tmp_path):
    import datasets

    write_records(tmp_path / "rows.parquet", Problem, [PROBLEM, CODE])
    found = datasets.Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=tmp_path)
    assert found["answer"] == ["2", None]
    assert found["answer_source"] == ["gold", "gold"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"anwser": "2"}, "a problem has no key 'anwser'; its keys are id, domain"),
        ({"answer": 2}, "the problem's 'answer' must be a string or null, not 2"),
        ({"difficulty": True}, "'difficulty' must be an integer or null"),
        ({"tests": []}, r"'tests' must be an object or null, not \[\]"),
        ({"tests": "{"}, "'tests' isn't JSON"),
    ],
)
def test_a_malformed_row_is_refused_by_its_key(change, complaint):
    with pytest.raises(DataError, match=complaint):
        Problem.from_row({**PROBLEM.to_row(), **change})
    with pytest.raises(DataError, match="lacks the key 'id'"):
        Problem.from_row({"domain": "algebra", "problem": "", "source": "", "licence": ""})


def test_what_is_no_file_of_these_records_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    with pytest.raises(DataError, match=r"rows\.parquet: cannot be read \(No such file"):
        read_records(path, Problem)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="isn't whole Parquet"):
        read_records(path, Problem)
    write_records(path, Trace, [TRACE])
    with pytest.raises(DataError, match="isn't a file of problems, whose columns are id, domain"):
        read_records(path, Problem)
