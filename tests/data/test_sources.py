"""A source's rows as problems: columns, labels, selections, and the presets of well-known sets."""

from __future__ import annotations

import base64
import json
import pickle
import zlib
from pathlib import Path

import pytest

from vibethinker.data.presets import presets
from vibethinker.data.readers import Bad
from vibethinker.data.settings import AUTO, DataFile
from vibethinker.data.sources import origins, read, read_all, read_texts, resolve, row_text, rows
from vibethinker.errors import DataError

GSM8K = {
    "question": "Natalia sold 48 clips, then half as many. How many in all?",
    "answer": "She sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72.\n#### 72",
}
MBPP = {
    "task_id": 601,
    "text": "Write a function to add one.",
    "code": "def f(x):\r\n    return x + 1",
    "test_list": ["assert f(1) == 2", "assert f(2) == 3"],
    "test_setup_code": "",
}


def settings(path: Path, **more) -> DataFile:
    return DataFile(path=str(path), **{"domain": "algebra", **more})


def found(path: Path, **more):
    return [one.found for one in read(settings(path, **more), [path])]


def test_relative_paths_start_at_the_directory_and_absolute_ones_stay():
    assert resolve("a.jsonl", "/data") == Path("/data/a.jsonl")
    assert resolve("/other/a.jsonl", "/data") == Path("/other/a.jsonl")
    assert resolve("a.jsonl", ".").is_absolute()


def test_a_gsm8k_row_loses_calculator_marks_and_ends_with_the_boxed_gold(jsonl):
    (candidate,) = found(jsonl("g.jsonl", GSM8K), format="gsm8k", licence="MIT")
    assert candidate.problem.answer == "72"
    assert candidate.problem.licence == "MIT"
    assert candidate.solutions == ("She sold 48/2 = 24 clips.\nIn all 48+24 = 72.\nThe answer is \\boxed{72}.",)


@pytest.mark.parametrize(
    ("body", "gold", "read_gold"),
    [("1,000 + 500", "1,500", "1500"), ("it is 2.50", "$2.5", "2.5"), ("4 - 7 = -3", "-3", "-3")],
)
def test_gsm8k_golds_lose_separators_and_the_currency_sign(jsonl, body, gold, read_gold):
    row = {"question": "How many?", "answer": f"{body}, so {read_gold}\n#### {gold}"}
    (candidate,) = found(jsonl("g.jsonl", row), format="gsm8k")
    assert candidate.problem.answer == read_gold
    assert candidate.solutions[0].endswith(f"The answer is \\boxed{{{read_gold}}}.")


def test_a_gsm8k_solution_that_never_names_the_gold_is_not_given_it(jsonl):
    row = {"question": "How many?", "answer": "48 + 16 = <<48+16=64>>64 points\n#### 66"}
    (candidate,) = found(jsonl("g.jsonl", row), format="gsm8k")
    assert candidate.solutions == ("48 + 16 = 64 points",)


def test_columns_walk_into_objects_and_ids_come_from_the_file(jsonl):
    row = {"item": {"body": "2+2?", "gold": {"value": 4.0}}, "how": "\\boxed{4}", "n": 7, "level": "Level 3"}
    columns = {"problem": "item.body", "answer": "item.gold.value", "solution": "how", "id": "n", "difficulty": "level"}
    (candidate,) = found(jsonl("mine.jsonl", row), columns=columns)
    problem = candidate.problem
    assert (problem.id, problem.problem, problem.answer, problem.difficulty) == ("mine-7", "2+2?", "4", 3)
    assert candidate.solutions == ("\\boxed{4}",)
    assert candidate.origin == "mine.jsonl:1"


def test_a_problem_of_several_columns_and_a_chat_are_one_text(jsonl):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1? Think."}]
    path = jsonl("c.jsonl", {"prompt": chat, "a": "x", "b": "y", "answer": 2})
    assert found(path, columns={"problem": "prompt"}, strip=["Think."])[0].body == "1+1?"
    assert found(path, columns={"problem": ["a", "b"]})[0].body == "x\ny"


def test_several_solutions_a_row_are_kept(jsonl):
    row = {"problem": "p", "answer": "1", "generations": ["<think>a</think>\\boxed{1}", None, "b"]}
    (candidate,) = found(jsonl("o.jsonl", row), columns={"solution": "generations"})
    assert candidate.solutions == ("<think>a</think>\\boxed{1}", "b")


def test_labels_are_mapped_whatever_their_case_and_unknown_ones_have_no_domain(jsonl):
    rows = [
        {"problem": f"p{i}", "answer": "1", "subject": s} for i, s in enumerate(("Algebra", "Number Theory", "Art"))
    ]
    path = jsonl("m.jsonl", *rows)
    labels = {"algebra": "algebra", "number theory": "algebra"}
    domains = [c.problem.domain for c in found(path, columns={"domain": "subject"}, labels=labels, domain=None)]
    assert domains == ["algebra", "algebra", ""]
    assert [c.label for c in found(path, columns={"domain": "subject"}, labels=labels)] == [r["subject"] for r in rows]
    assert [c.problem.domain for c in found(path, domain=AUTO)] == [AUTO] * 3


def test_derived_ids_depend_on_the_text_alone(jsonl):
    one = found(jsonl("a.jsonl", {"problem": "x?", "answer": "1"}, {"problem": "y?", "answer": "1"}))
    other = found(jsonl("a.jsonl", {"problem": "y?", "answer": "2"}))
    assert one[1].problem.id == other[0].problem.id != one[0].problem.id


def test_answers_that_are_none_and_rows_out_of_range_are_left_out(jsonl):
    rows = [{"problem": f"p{i}", "answer": a, "n": i} for i, a in enumerate(["1", "proof", None, " ", "5"])]
    path = jsonl("m.jsonl", *rows)
    assert [c.problem.answer for c in found(path, no_answer=["proof"])] == ["1", None, None, None, "5"]
    assert [c.problem.problem for c in found(path, select={"n": [1, 3]}, limit=2)] == ["p1", "p2"]


def test_select_compares_numbers_whatever_the_file_makes_of_them_and_tells_what_it_leaves_out(tmp_path):
    path = tmp_path / "m.csv"
    path.write_text("problem,answer,n\n" + "".join(f"p{i},1,{n}\n" for i, n in enumerate(["1", "+2", "", "x", "10"])))
    left_out: list[str] = []
    kept = [row["problem"] for _, row in rows(settings(path, select={"n": [1, 3]}), [path], left_out=left_out.append)]
    assert kept == ["p0", "p1"]
    assert left_out == ["m.csv:4", "m.csv:5", "m.csv:6"]
    path = tmp_path / "m.json"
    path.write_text(json.dumps([{"problem": f"p{i}", "n": n} for i, n in enumerate([1.0, 3.5, None, "3", [2]])]))
    assert [row["problem"] for _, row in rows(settings(path, select={"n": [1, 3]}), [path])] == ["p0", "p3"]
    levels = ["Level 2", "Level ?", "Level 4", "12", "A3"]
    path.write_text(json.dumps([{"problem": f"p{i}", "n": n} for i, n in enumerate(levels)]))
    assert [row["problem"] for _, row in rows(settings(path, select={"n": [1, 3]}), [path])] == ["p0"]


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / "all" / folder).mkdir(parents=True)
        (tmp_path / "all" / folder / "rows.jsonl").write_text('{"problem": "p", "answer": "1"}\n7\n')
    place = tmp_path / "all"
    found = [one.origin for one in read(settings(place), [place])]
    assert found == [f"{folder}/rows.jsonl:{line}" for folder in ("one", "two") for line in (1, 2)]
    with pytest.raises(DataError, match=f"{place}/one/rows.jsonl:2: not a JSON object"):
        read_all(settings(place), place)
    files = [place / "one" / "rows.jsonl", place / "two" / "rows.jsonl"]
    assert [*map(origins(files), files)] == ["one/rows.jsonl", "two/rows.jsonl"]
    assert origins(files[:1])(files[0]) == "rows.jsonl"
    assert origins([Path("rows.jsonl")])(Path("rows.jsonl")) == "rows.jsonl"


def test_a_value_nested_too_deeply_to_show_is_a_bad_row():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    found = row_text({"problem": deep})
    assert isinstance(found, Bad) and "must be text" in found.reason


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"problem": 3, "answer": "1"}, "must be text"),
        ({"problem": " ", "answer": "1"}, "is empty"),
        ({"problem": "p", "answer": ["1"]}, "must be text"),
        ({"question": "p", "answer": "1"}, "no column 'problem' among question, answer"),
        ({"problem": "p", "answer": True}, "must be an answer"),
        ({"problem": "Find $\\frac{1}{2$.", "answer": "1"}, "brace"),
        ({"problem": "Find it.", "answer": "\\frac{1}{2"}, "brace"),
        ({"problem": "Find\0it.", "answer": "1"}, "NUL"),
        ({"problem": "Find it.", "answer": "1", "solution": "a\0b"}, "NUL"),
    ],
)
def test_a_row_that_is_not_meant_is_told_with_place_and_reason(jsonl, row, said):
    path = jsonl("bad.jsonl", {"problem": "fine", "answer": "1", "solution": None}, row)
    columns = {"solution": "solution"} if "solution" in row else {}
    first, bad = read(settings(path, columns=columns), [path])
    assert not isinstance(first.found, Bad)
    assert bad.origin == "bad.jsonl:2" and said in bad.found.reason
    with pytest.raises(DataError, match=r"bad\.jsonl:2: .*correct or remove the row"):
        read_all(settings(path, columns=columns), path)


def test_damaged_latex_stays_where_others_measure_on_it(jsonl):
    path = jsonl("e.jsonl", {"problem": "Find $\\frac{1}{2$.", "answer": "1"})
    (one,) = read(settings(path), [path], as_published=True)
    assert one.found.problem.problem == "Find $\\frac{1}{2$."


def test_mbpp_shows_one_test_and_is_compared_without_it(jsonl):
    (candidate,) = found(jsonl("m.jsonl", MBPP), format="mbpp", domain="code")
    assert candidate.body == MBPP["text"]
    assert candidate.problem.problem == f"{MBPP['text']}\nYour code should pass this test:\nassert f(1) == 2"
    assert candidate.problem.tests == {"kind": "assert", "code": "assert f(1) == 2\nassert f(2) == 3"}
    assert candidate.solutions == ("```python\ndef f(x):\r\n    return x + 1\n```",)


def test_apps_rows_become_stdin_and_function_tests(jsonl):
    stdin = {"inputs": ["1\n", ["2", "3"]], "outputs": ["2\n", ["4"]]}
    called = {"fn_name": "f", "inputs": [[1], [2]], "outputs": [[2], 3]}
    rows = [
        {"id": 1, "question": "Add.", "solutions": json.dumps(["print(1)"]), "input_output": json.dumps(stdin)},
        {
            "id": 2,
            "question": "Call.",
            "starter_code": "def f(x):",
            "solutions": "",
            "input_output": json.dumps(called),
        },
        {"id": 3, "question": "None.", "solutions": "", "input_output": ""},
        {"id": 4, "question": "Bad.", "solutions": "", "input_output": '{"inputs": [1], "outputs"'},
    ]
    first, second, third, bad = found(jsonl("apps.jsonl", *rows), preset="apps")
    assert first.problem.tests["cases"] == [{"input": "1\n", "output": "2\n"}, {"input": "2\n3", "output": "4"}]
    assert first.solutions == ("```python\nprint(1)\n```",)
    cases = [{"args": [1], "expected": 2}, {"args": [2], "expected": 3}]
    assert second.problem.tests == {"kind": "function", "entry_point": "f", "cases": cases}
    assert (second.body, "def f(x):" in second.problem.problem) == ("Call.", True)
    assert third.problem.tests is None
    assert "isn't JSON" in bad.reason


def packed(value) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


class Hostile:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_livecodebench_tests_are_read_without_unpickling(jsonl, capsys):
    case = {"input": "1\n", "output": "2\n", "testtype": "stdin"}
    row = {"question_id": "q", "question_content": "Add one.", "starter_code": "", "metadata": "{}"}
    row["public_test_cases"] = json.dumps([case])
    rows = [{**row, "private_test_cases": packed(json.dumps([{**case, "input": "5\n"}]))}]
    rows += [{**row, "private_test_cases": packed(Hostile())}, {**row, "private_test_cases": "!!!"}]
    rows += [
        {**row, "metadata": '{"func_name": "f"}', "public_test_cases": json.dumps([{"input": "1\n[2]", "output": "3"}])}
    ]
    whole, hostile, broken, called = found(jsonl("l.jsonl", *rows), preset="livecodebench")
    assert [c["input"] for c in whole.problem.tests["cases"]] == ["1\n", "5\n"]
    assert "isn't the pickle of one string" in hostile.reason
    assert "can't be unpacked" in broken.reason
    assert called.problem.tests["cases"] == [{"args": [1, [2]], "expected": 3}]
    assert capsys.readouterr().out == ""


def test_rows_of_another_form_than_the_format_are_bad(jsonl):
    path = jsonl("x.jsonl", {"question": "q", "answer": "72"}, {"problem": "p"})
    for name in ("gsm8k", "mbpp", "humaneval", "livecodebench", "boxed"):
        assert all(isinstance(one, Bad) for one in found(path, format=name)), name


def test_every_preset_names_a_pinned_place_and_takes_a_local_copy(tmp_path):
    assert {"math", "gsm8k", "aime24", "apps", "livecodebench", "numinamath", "openr1"} <= presets().keys()
    for name in presets():
        file = DataFile(preset=name)
        assert file.title == name and len(file.hub.revision) == 40 and file.licence != "unstated"
        local = DataFile(preset=name, path=str(tmp_path))
        assert (local.path, local.format, local.columns) == (str(tmp_path), file.format, file.columns)
    with pytest.raises(ValueError, match="did you mean 'gsm8k'"):
        DataFile(preset="gms8k")


def test_a_folder_with_a_copy_of_a_hub_data_set_gives_the_files_that_are_named(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "main").mkdir()
    for name in ("train", "test"):
        row = {"question": f"How many {name}?", "answer": "1 + 1 = 2\n#### 2"}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "main" / f"{name}-00000-of-00001.parquet")
    for name, preset in (("train", "gsm8k"), ("test", "gsm8k-test")):
        file = DataFile(preset=preset, path=str(tmp_path))
        assert [one.found.body for one in read(file, [tmp_path])] == [f"How many {name}?"]
    other = DataFile(preset="mbpp", path=str(tmp_path), format="gsm8k", columns={"id": None})
    assert len(list(read(other, [tmp_path]))) == 2


def test_texts_are_found_in_the_usual_columns_and_in_chats(jsonl):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    path = jsonl("t.jsonl", {"question": "a"}, {"text": "b", "problem": "c"}, {"prompt": chat})
    assert [text for _, text in read_texts(path)] == ["a", "c", "1+1?"]
    assert all(isinstance(text, Bad) for _, text in read_texts(path, ["body"]))


def test_humaneval_and_math_in_the_shared_data_are_read_whole(shared_data):
    path = shared_data / "HumanEval.jsonl.gz"
    problems = [c.problem for c in found(path, preset="humaneval")]
    assert len(problems) == 164 and all("check(" in p.tests["code"] for p in problems)
    aime = DataFile(path="aime25.parquet", columns={"problem": "prompt", "answer": "reward_model.ground_truth"})
    assert next(c.found.problem.answer for c in read(aime, [shared_data / "aime25.parquet"], as_published=True)) == "70"
