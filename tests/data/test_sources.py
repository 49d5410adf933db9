from __future__ import annotations

from pathlib import Path

import pytest

from vibethinker.data.sources import read_candidates, read_texts, resolve
from vibethinker.errors import DataError
from vibethinker.settings import DataFile

GSM8K = {
    "question": "Natalia sold 48 clips, then half as many. How many in all?",
    "answer": "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
}


def read(path: Path, domains=("algebra",), **file):
    return read_candidates(DataFile(path=str(path), **{"domain": "algebra", **file}), path, domains)


def test_relative_paths_start_at_the_directory_and_absolute_ones_stay():
    assert resolve("a.jsonl", "/data") == Path("/data/a.jsonl")
    assert resolve("/other/a.jsonl", "/data") == Path("/other/a.jsonl")
    assert resolve("a.jsonl", ".").is_absolute()


def test_a_gsm8k_row_loses_calculator_marks_and_ends_with_the_boxed_gold(jsonl):
    (candidate,), _ = read(jsonl("g.jsonl", GSM8K), format="gsm8k", licence="MIT")
    assert candidate.problem.answer == "72"
    assert candidate.problem.licence == "MIT"
    assert candidate.solutions == ("She sold 48/2 = 24 clips.\nIn all 48+24 = 72.\nThe answer is \\boxed{72}.",)


@pytest.mark.parametrize(
    ("body", "gold", "read_gold"),
    [("1,000 + 500", "1,500", "1500"), ("it is 2.50", "$2.5", "2.5"), ("4 - 7 = -3", "-3", "-3")],
)
def test_gsm8k_golds_lose_separators_and_the_currency_sign(jsonl, body, gold, read_gold):
    row = {"question": "How many?", "answer": f"{body}, so {read_gold}\n#### {gold}"}
    (candidate,), _ = read(jsonl("g.jsonl", row), format="gsm8k")
    assert candidate.problem.answer == read_gold
    assert candidate.solutions[0].endswith(f"The answer is \\boxed{{{read_gold}}}.")


def test_a_gsm8k_solution_that_never_names_the_gold_is_not_given_it(jsonl):
    row = {"question": "How many?", "answer": "48 + 16 = <<48+16=64>>64 points\n#### 66"}
    (candidate,), _ = read(jsonl("g.jsonl", row), format="gsm8k")
    assert candidate.solutions == ("48 + 16 = 64 points",)


def test_columns_walk_into_objects_and_ids_come_from_the_file(jsonl):
    row = {"item": {"body": "2+2?", "gold": {"value": 4.0}}, "how": "\\boxed{4}", "n": 7, "kind": "Algebra"}
    columns = {"problem": "item.body", "answer": "item.gold.value", "solution": "how", "id": "n", "domain": "kind"}
    (candidate,), _ = read(jsonl("mine.jsonl", row), columns=columns, domain=None)
    problem = candidate.problem
    assert (problem.id, problem.domain, problem.problem, problem.answer) == ("mine-7", "algebra", "2+2?", "4")
    assert candidate.solutions == ("\\boxed{4}",)
    assert candidate.origin == "mine.jsonl:1"


def test_derived_ids_depend_on_the_text_alone(jsonl):
    one, _ = read(jsonl("a.jsonl", {"problem": "x?", "answer": "1"}, {"problem": "y?", "answer": "1"}))
    other, _ = read(jsonl("a.jsonl", {"problem": "y?", "answer": "2"}))
    assert one[1].problem.id == other[0].problem.id != one[0].problem.id


def test_rows_without_use_are_counted(jsonl):
    rows = [
        {"problem": "p1", "answer": "1", "subject": "Algebra"},
        {"problem": "p2", "answer": None, "subject": "algebra"},
        {"problem": "p3", "answer": "3", "subject": "Number Theory"},
        {"problem": "p4", "answer": "4", "subject": "algebra"},
    ]
    candidates, counts = read(jsonl("m.jsonl", *rows), columns={"domain": "subject"}, limit=3)
    assert [c.text for c in candidates] == ["p1"]
    assert counts == {"rows": 3, "unmapped": 1, "no_gold": 1}


def test_code_rows_keep_their_tests(jsonl):
    tests = {"kind": "assert", "code": "assert f(1) == 2"}
    path = jsonl("c.jsonl", {"problem": "Write f.", "checks": tests}, {"problem": "Write g.", "checks": None})
    candidates, counts = read(path, ("code",), domain="code", columns={"tests": "checks"})
    assert [c.problem.tests for c in candidates] == [tests]
    assert counts["no_gold"] == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"problem": "p", "answer": "1"', "JSON"),
        ("[1, 2]", "object"),
        ('{"problem": "p", "answer": NaN}', "NaN"),
        ('{"problem": "p", "answer": 1e999}', "too big"),
        ('{"problem": "\\ud800", "answer": "1"}', "surrogates"),
        ('{"problem": 3, "answer": "1"}', "must be text"),
        ('{"problem": " ", "answer": "1"}', "is empty"),
        ('{"problem": "p", "answer": ["1"]}', "must be text"),
        ('{"question": "p", "answer": "1"}', "no column 'problem' among answer, question"),
        ('{"problem": "p", "answer": true}', "must be text"),
    ],
)
def test_a_row_that_is_not_understood_is_named_by_file_and_line(tmp_path, line, said):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"problem": "fine", "answer": "1"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=said) as error:
        read(path)
    assert f"{path}:3: " in str(error.value)


@pytest.mark.parametrize("tests", ["assert f(1) == 2", {"kind": "assert", "code": ""}, {"kind": "stdin", "cases": []}])
def test_tests_that_decide_nothing_are_refused(jsonl, tests):
    path = jsonl("c.jsonl", {"problem": "Write f.", "tests": tests})
    with pytest.raises(DataError, match=r"c\.jsonl:1: "):
        read(path, ("code",), domain="code", columns={"tests": "tests"})


def test_bytes_that_are_not_utf8_are_named_by_file_and_line(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"problem": "caf\xe9", "answer": "1"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl:1: .*UTF-8"):
        read(path)


def test_a_missing_file_is_named_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl can't be read \(No such file.*correct the path"):
        read(tmp_path / "none.jsonl")


def test_a_gsm8k_answer_without_its_mark_is_refused(jsonl):
    with pytest.raises(DataError, match=r"g\.jsonl:1: .*####"):
        read(jsonl("g.jsonl", {"question": "q", "answer": "72"}), format="gsm8k")


def test_a_file_without_a_domain_is_refused(jsonl):
    with pytest.raises(DataError, match="has no domain"):
        read(jsonl("a.jsonl", {"problem": "p", "answer": "1"}), domain=None)


def test_texts_are_found_in_the_usual_columns_and_in_chats(jsonl):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    path = jsonl("t.jsonl", {"question": "a"}, {"text": "b", "problem": "c"}, {"prompt": chat})
    assert read_texts(path) == ["a", "c", "Be brief.\n1+1?"]
    with pytest.raises(DataError, match=r"t\.jsonl:1: none of the columns body"):
        read_texts(path, ["body"])
