"""Problem sets as `evaluate` and `probe` find them: files of common forms, names, and local copies."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub.constants
import pytest

from vibethinker import config
from vibethinker.data.gathering import protect
from vibethinker.data.schema import Problem, write_records
from vibethinker.errors import ConfigurationError, DataError, InfrastructureError
from vibethinker.evaluation.benchmarks import load_sets, read_file


@pytest.fixture
def file(tmp_path):
    """A function rows → path of a JSONL file."""

    def write(*rows: dict, name: str = "set.jsonl") -> Path:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    return write


TESTS = {"kind": "function", "entry_point": "f", "cases": [{"args": [1], "expected": 1}]}


def test_the_forms_of_common_files_are_recognised(file):
    rows = [
        ({"question": "1+1?", "answer": "It is <<1+1=2>>2.\n#### 2"}, "1+1?", "2"),
        ({"problem": "1+1?", "answer": 2, "level": "easy"}, "1+1?", "2"),
        ({"prompt": "1+1?", "gold": "2", "unique_id": "a/1"}, "1+1?", "2"),
        ({"question": "1+1?", "answer": "2"}, "1+1?", "2"),
    ]
    for row, text, answer in rows:
        [found] = read_file(file(row))
        assert (found.problem, found.answer, found.tests) == (text, answer, None)
    [code] = read_file(file({"problem": "Write f.", "tests": TESTS}))
    assert (code.domain, code.tests, code.answer) == ("code", TESTS, None)


def test_the_projects_own_problem_files_are_read(tmp_path, problem):
    problems = [problem("one", "1"), problem("two", "2", domain="geometry")]
    write_records(tmp_path / "own.parquet", Problem, problems)
    found = read_file(tmp_path / "own.parquet")
    assert [(p.domain, p.problem, p.answer) for p in found] == [(p.domain, p.problem, p.answer) for p in problems]


def test_a_set_is_named_after_its_file_and_limited(file):
    rows = [{"problem": f"{i}?", "answer": i} for i in range(5)]
    paths = [str(file(*rows, name="a.jsonl")), str(file(*rows[:2], name="b.jsonl"))]
    found = load_sets(paths, config.load("tiny", environ={}), limit=3)
    assert {name: len(some.problems) for name, some in found.items()} == {"a": 3, "b": 2}


def test_a_name_means_the_configurations_own_evaluation_set(tmp_path):
    overrides = [
        "domains=[algebra]",
        "data.procedural.problems=64",
        "data.procedural.evaluation=8",
        "data.held_out=0.3",
    ]
    overrides.append("signal.stages=[]")
    settings = config.load("tiny", None, overrides, environ={})
    found = load_sets(["algebra"], settings)["algebra"].problems
    assert len(found) == 8 and {p.domain for p in found} == {"algebra"}
    assert found == load_sets(["algebra"], settings)["algebra"].problems


def test_what_cannot_be_measured_is_refused(file, tmp_path):
    settings = config.load("tiny", environ={})
    with pytest.raises(
        ConfigurationError, match=r"'aime23' is neither a file nor an evaluation set.*did you mean 'aime26'"
    ):
        load_sets(["aime23"], settings)
    with pytest.raises(DataError, match=r"absent\.jsonl can't be read"):
        load_sets([str(tmp_path / "absent.jsonl")], settings)
    path = file({"problem": "?", "answer": "1"})
    with pytest.raises(ConfigurationError, match="Two benchmarks are named 'set'"):
        load_sets([str(path), str(path)], settings)
    with pytest.raises(DataError, match=r"set\.jsonl:1: there is no column for the answer"):
        read_file(file({"problem": "?"}))
    with pytest.raises(DataError, match=r"set\.jsonl:1: there is no column for the problem"):
        read_file(file({"answer": "?"}))
    with pytest.raises(DataError, match="has no row"):
        read_file(file())
    with pytest.raises(DataError, match="1 of 2 problems without gold"):
        read_file(file({"problem": "?", "answer": "1"}, {"problem": "!", "answer": None}))
    path.write_text('{"problem": "?", "answer": "1"}\n{"problem": \n')
    with pytest.raises(DataError, match=r"set\.jsonl:2: "):
        read_file(path)


def test_a_file_set_by_name_has_the_problems_that_the_data_step_takes(file):
    path = file(*({"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(9)), name="sums.jsonl")
    against = file({"problem": "1+1?"}, name="other.jsonl")
    settings = config.load(
        "tiny",
        overrides=[
            "data.source=files",
            f"data.train=[{{path: '{path}', domain: algebra}}]",
            f"data.evaluation=[{{path: '{path}', domain: algebra, name: held}}]",
            "data.evaluation_limit=4",
            f"data.decontamination.against=['{against}']",
        ],
        environ={},
    )
    paths = {name: name for name in (str(path), str(against))}
    expected = protect(settings.data, settings.domains, settings.seed, paths, print).evaluation["held"]
    assert load_sets(["held"], settings)["held"].problems == expected
    assert len(expected) == 4
    generated = config.load("tiny", overrides=[f"data.decontamination.against=['{against}']"], environ={})
    assert len(load_sets(["algebra"], generated)["algebra"].problems) == generated.data.procedural.evaluation


def test_a_set_by_name_is_without_its_bad_rows_as_in_the_data_step(file):
    rows = [{"problem": f"{i}+1?", "answer": str(i + 1)} for i in range(9)]
    path = file(*rows, {"problem": 7, "answer": "1"}, {"problem": r"Halve $\frac{1}{2$.", "answer": "1"})

    def settings(share: float) -> config.Config:
        overrides = ["data.source=files", f"data.bad_rows={share}", f"data.evaluation=[{{path: '{path}'}}]"]
        return config.load("tiny", overrides=[*overrides, "data.train=[{path: train.jsonl}]"], environ={})

    allowed, bad = settings(0.1), []
    expected = protect(allowed.data, allowed.domains, 1, {str(path): str(path)}, lambda *row: bad.append(row))
    assert load_sets(["set"], allowed)["set"].problems == expected.evaluation["set"]
    assert (len(expected.evaluation["set"]), len(bad)) == (10, 1)
    with pytest.raises(DataError, match=r"1 of 11 rows of set.*set\.jsonl:10"):
        load_sets(["set"], settings(0.05))


def test_columns_are_mapped_by_the_caller(file):
    row = {"ask": "1+1?", "told": {"gold": 2}, "hard": "Level 4", "kind": "algebra", "answer": "a trap"}
    path, settings = str(file(row)), config.load("tiny", environ={})
    columns = {"problem": "ask", "answer": "told.gold", "difficulty": "hard", "domain": "kind"}
    [found] = load_sets([path], settings, columns=columns)["set"].problems
    assert (found.problem, found.answer, found.difficulty, found.domain) == ("1+1?", "2", 4, "algebra")
    with pytest.raises(ConfigurationError, match="--columns names 'gold', which no problem has"):
        load_sets([path], settings, columns={"gold": "told"})
    with pytest.raises(DataError, match="there is no column 'asked'"):
        load_sets([path], settings, columns={"problem": "asked"})
    code = str(file({"ask": "Write f.", "check": TESTS}, name="code.jsonl"))
    [found] = load_sets([code], settings, columns={"problem": "ask", "tests": "check"})["code"].problems
    assert (found.tests, found.domain) == (TESTS, "code")


def test_a_benchmark_is_read_from_a_local_copy_and_keeps_its_name_and_protocol(file, tmp_path, monkeypatch):
    rows = [{"question": f"{i}+1?", "answer": f"So <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"} for i in range(3)]
    settings = config.load("tiny", environ={})
    path = file(*rows)
    found = load_sets([f"GSM8K={path}"], settings, limit=2)["gsm8k"]
    assert [p.answer for p in found.problems] == ["1", "2"] and found.protocol["samples"] == 64
    assert found.problems[0].id.startswith("gsm8k-") and found.source["path"] == str(path)
    assert load_sets([str(path)], settings)["set"].protocol is None
    for name, value in {"HF_HUB_OFFLINE": True, "HF_HUB_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    with pytest.raises(InfrastructureError, match=r"reached for math-ai/aime26.*a copy is named by aime26=PATH\."):
        load_sets(["aime26"], settings)
    with pytest.raises(ConfigurationError, match="can't be chosen by date"):
        load_sets(["gsm8k@2024-01.."], settings)
    with pytest.raises(DataError, match="can't be read"):
        load_sets([f"gsm8k={path}.absent.jsonl"], settings)


def test_verls_files_and_those_of_well_known_sets_are_recognised(file):
    for row, text, answer in (
        ({"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"ground_truth": 2}}, "1+1?", "2"),
        ({"Body": "I have 1.", "Question": "And 1?", "Answer": 2.0}, "I have 1.\nAnd 1?", "2"),
        ({"question": "1+1?", "final_answer": ["2"], "answer_type": "Numerical", "id": 7}, "1+1?", "2"),
        ({"problem": "1+1?", "answer": "2", "level": "hard"}, "1+1?", "2"),
    ):
        [found] = read_file(file(row))
        assert (found.problem, found.answer) == (text, answer)
    assert found.difficulty == 3
    [found] = read_file(file({"text": "Add.", "code": "x", "test_list": ["assert f(1) == 2"], "task_id": 5}))
    assert found.id == "set-5" and found.tests == {"kind": "assert", "code": "assert f(1) == 2"}


def test_a_file_whose_golds_are_all_one_is_refused(file):
    rows = [{"problem": f"{i}?", "answer": "A"} for i in range(8)]
    with pytest.raises(DataError, match=r"All 8 problems of .*set\.jsonl have the same gold answer, 'A'"):
        read_file(file(*rows))
    assert len(read_file(file(*rows[:7]))) == 7
    assert len(read_file(file(*rows, {"problem": "8?", "answer": "B"}))) == 9
