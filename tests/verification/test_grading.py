"""`vibethinker grade`: rows in, verdicts out, resumable, and nothing written on bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vibethinker.commands.grade import grade
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.grading import grade_file
from vibethinker.verification import CodeLimits

ANYWHERE = CodeLimits(allow_unsafe=True)  # on machines without a sandbox too
MATH = [
    {"id": "a", "gold": "3", "response": r"\boxed{3}"},
    {"id": 1, "gold": 4, "response": r"\boxed{\sqrt{9}}"},
    {"id": "1", "gold": "x+1", "response": "no idea"},
]
CODE = [
    {
        "id": "add",
        "response": "```python\ndef add(a, b):\n    return a + b\n```",
        "tests": {"kind": "function", "entry_point": "add", "cases": [{"args": [1, 2], "expected": 3}]},
    },
    {"id": "talk", "response": "no code", "tests": {"kind": "stdin", "cases": [{"input": "", "output": "1"}]}},
    {
        "id": "half",
        "response": "```python\ndef half(a):\n    return a\n```",
        "tests": {"kind": "assert", "code": "assert half(2) == 1"},
    },
]


def write(path: Path, rows: list) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_math_rows_become_verdicts_in_order(tmp_path):
    target = tmp_path / "out.jsonl"
    summary = grade_file("math", write(tmp_path / "in.jsonl", MATH), target)
    rows = read(target)
    assert [set(row) for row in rows] == [{"id", "verdict", "extracted", "seconds"}] * 3
    assert [(row["id"], row["verdict"], row["extracted"]) for row in rows] == [
        ("a", "correct", "3"),
        (1, "wrong", r"\sqrt{9}"),
        ("1", "no_answer", None),
    ]
    assert dict(summary.verdicts) == {"correct": 1, "wrong": 1, "no_answer": 1}


def test_code_rows_become_verdicts(tmp_path):
    target = tmp_path / "out.jsonl"
    grade_file("code", write(tmp_path / "in.jsonl", CODE), target, code=ANYWHERE)
    assert [(row["id"], row["verdict"]) for row in read(target)] == [
        ("add", "passed"),
        ("talk", "no_code"),
        ("half", "wrong_answer"),
    ]


def test_without_a_sandbox_code_is_refused_and_nothing_is_written(tmp_path):
    target = tmp_path / "out.jsonl"
    with pytest.raises(ConfigurationError, match="allow_unsafe"):
        grade_file("code", write(tmp_path / "in.jsonl", CODE), target, code=CodeLimits(tier="rlimits"))
    assert not target.exists()


def test_a_second_call_grades_only_what_is_missing(tmp_path):
    source, target = write(tmp_path / "in.jsonl", MATH), tmp_path / "out.jsonl"
    kept = {"id": "a", "verdict": "wrong", "extracted": "kept as it is", "seconds": 0.0}
    target.write_text(json.dumps(kept) + '\n{"id": 1, "verdict": "wr')
    summary = grade_file("math", source, target)
    assert (summary.already, summary.verdicts.total()) == (1, 2)
    assert read(target)[0] == kept
    assert [row["id"] for row in read(target)] == ["a", 1, "1"]
    before = target.read_bytes()
    assert grade_file("math", source, target).already == 3
    assert target.read_bytes() == before


def test_many_batches_report_their_progress(tmp_path):
    rows = [{"id": i, "gold": str(i), "response": f"\\boxed{{{i % 300}}}"} for i in range(600)]
    steps: list[tuple[int, int]] = []
    target = tmp_path / "out.jsonl"
    source = write(tmp_path / "in.jsonl", rows)
    summary = grade_file("math", source, target, progress=lambda done, total: steps.append((done, total)))
    assert summary.verdicts == {"correct": 300, "wrong": 300}
    assert [row["id"] for row in read(target)] == list(range(600))
    assert steps == [(256, 600), (512, 600), (600, 600)]


BAD = [
    ("{not json", "not JSON"),
    ("[1]", "not a JSON object"),
    ({"id": "b", "response": "x"}, "'gold'"),
    ({"gold": "1", "response": "x"}, "'id'"),
    ({"id": "b", "gold": "1"}, "'response'"),
    ({"id": None, "gold": "1", "response": "x"}, "'id' must"),
    ({"id": "b", "gold": "1", "response": 3}, "'response' must"),
    ({"id": "b", "gold": " ", "response": "x"}, "'gold' must"),
    ({"id": "b", "gold": ["1"], "response": "x"}, "'gold' must"),
    ({"id": "a", "gold": "1", "response": "x"}, "earlier row"),
    ("[" * 100_000, "not JSON"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_a_malformed_row_is_named_and_nothing_is_written(tmp_path, row, reason):
    source, target = write(tmp_path / "in.jsonl", [*MATH, row]), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match=r"in\.jsonl:4: ") as caught:
        grade_file("math", source, target)
    assert reason in str(caught.value)
    assert not target.exists()


def test_malformed_rows_are_skipped_when_asked_and_told(tmp_path):
    source = write(tmp_path / "in.jsonl", [MATH[0], *(row for row, _ in BAD), *MATH[1:]])
    target = tmp_path / "out.jsonl"
    summary = grade_file("math", source, target, skip_bad=True)
    assert [row["id"] for row in read(target)] == ["a", 1, "1"]
    assert len(summary.bad) == len(BAD)
    assert summary.bad[0].startswith(f"{source}:2: ")


def test_tests_without_a_case_are_malformed(tmp_path):
    row = {"id": "a", "response": "", "tests": {"kind": "stdin", "cases": []}}
    with pytest.raises(DataError, match=r"in\.jsonl:1: .*cases"):
        grade_file("code", write(tmp_path / "in.jsonl", [row]), tmp_path / "out.jsonl", code=ANYWHERE)


def test_files_that_cannot_serve_are_refused_in_a_sentence(tmp_path):
    source, target = write(tmp_path / "in.jsonl", MATH), tmp_path / "out.jsonl"
    with pytest.raises(DataError, match="can't be read"):
        grade_file("math", tmp_path / "missing.jsonl", target)
    with pytest.raises(DataError, match="no row"):
        grade_file("math", write(tmp_path / "empty.jsonl", ["", " "]), target)
    with pytest.raises(ConfigurationError, match="the input too"):
        grade_file("math", source, source)
    with pytest.raises(ConfigurationError, match="can't be opened"):
        grade_file("math", source, tmp_path / "no folder" / "out.jsonl")
    with pytest.raises(ConfigurationError, match="can't be opened"):
        grade_file("math", source, tmp_path)
    other = write(tmp_path / "other.jsonl", [{"id": "a", "verdict": "passed"}])
    with pytest.raises(DataError, match=r"other\.jsonl:1"):
        grade_file("math", source, other)
    assert source.read_text().count("\n") == 3
    assert not target.exists()


def test_the_command_grades_and_says_what_it_found(tmp_path):
    source, target = write(tmp_path / "in.jsonl", MATH), tmp_path / "out.jsonl"
    result = CliRunner().invoke(grade, ["--kind", "math", "--workers", "1", str(source), str(target)])
    assert result.exit_code == 0, result.output
    assert "1 correct, 1 no_answer, 1 wrong" in result.stdout
    assert len(read(target)) == 3
    again = CliRunner().invoke(grade, ["--kind", "math", str(source), str(target)])
    assert "nothing new; 3 were graded already" in again.stdout


def test_the_command_shows_an_example():
    result = CliRunner().invoke(grade, ["--help"])
    assert "Example: vibethinker grade --kind math" in result.stdout
