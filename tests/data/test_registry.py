"""Benchmarks by name: their pinned sources, protocols and columns, on rows made up in their form."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date

import pytest
from pydantic import ValidationError

from vibethinker import config
from vibethinker.data import registry
from vibethinker.data.gathering import protect
from vibethinker.data.readers import Bad
from vibethinker.data.settings import DataFile, DataSettings
from vibethinker.data.sources import read
from vibethinker.errors import ConfigurationError, DataError


def test_every_benchmark_names_a_pinned_source_and_the_papers_protocol():
    wanted = {"aime24", "aime25", "aime26", "hmmt25", "math500", "gsm8k", "amc", "olympiadbench", "svamp", "mbpp"}
    assert wanted | {"humaneval", "livecodebench", "gpqa"} <= set(registry.names())
    for name in registry.names():
        found = registry.benchmark(name)
        file = DataFile.model_validate(dict(found.source))
        assert file.title == name and len(file.hub.revision) == 40
        assert registry.problems(file.preset) >= 30
        assert found.protocol["samples"] == (8 if file.tests_programs else 64)
        assert found.protocol["temperature"] == (0.6 if file.tests_programs else 1.0)
        assert found.protocol["top_p"] == 0.95 and found.protocol["max_tokens"] == 40960
    assert registry.benchmark("MATH-500").name == "math500" and registry.benchmark("aime23") is None
    assert registry.problems("livecodebench-all") == 1055 and registry.problems("numinamath") is None


def test_livecodebench_goes_by_the_dates_of_its_contests(tmp_path):
    found = registry.benchmark("livecodebench@2024-08..2025-01-31")
    assert found.source["select"] == {"contest_date": (date(2024, 8, 1), date(2025, 1, 31))}
    assert found.name == "livecodebench-2024-08-01-2025-01-31"
    assert registry.benchmark("lcb@..2024-12").name == "livecodebench-until-2024-12-31"
    path = tmp_path / "lcb.jsonl"
    case = json.dumps([{"input": "1", "output": "2", "testtype": "stdin"}])
    row = {"question_content": "Add one.", "metadata": "{}", "public_test_cases": case}
    days = ["2024-07-31T23:59:59", "2024-08-01T00:00:00", "2025-01-31T09:00:00", "2025-02-01T00:00:00", None]
    levels = ["easy", "medium", "hard", "easy", "easy"]
    rows = [
        {**row, "question_id": str(i), "contest_date": day, "difficulty": level}
        for i, (day, level) in enumerate(zip(days, levels, strict=True))
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    file = DataFile.model_validate({**found.source, "path": str(path)})
    kept = [one.found.problem for one in read(file, [path])]
    assert [p.id.rpartition("-")[2] for p in kept] == ["1", "2"]
    assert [p.difficulty for p in kept] == [2, 3]
    assert DataFile.model_validate(file.semantic()) == file  # as a step's settings travel


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("aime24@2024-01..", "can't be chosen by date"),
        ("livecodebench@", "no range of dates"),
        ("livecodebench@..", "no range of dates"),
        ("livecodebench@2025-02-30..", "no range of dates"),
        ("livecodebench@2025-02..2025-01", "ends before it starts"),
    ],
)
def test_dates_that_are_none_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        registry.benchmark(text)


def test_a_run_evaluates_on_benchmarks_by_name():
    evaluation = ["aime24", "GSM8K", {"preset": "math500"}, "livecodebench@2025-01.."]
    settings = DataSettings.model_validate({"train": [{"preset": "gsm8k"}], "evaluation": evaluation})
    titles = ["aime24", "gsm8k-test", "math500", "livecodebench-2025-01-01-on"]
    assert [file.title for file in settings.evaluation] == titles
    with pytest.raises(ValidationError, match="there is no benchmark 'aime23'; did you mean 'aime26'"):
        DataSettings.model_validate({"evaluation": ["aime23"]})
    with pytest.raises(ConfigurationError, match="no benchmark 'aime23'"):
        config.load("tiny", overrides=["data.evaluation=[aime23]"], environ={})


def test_the_choices_of_gpqa_stand_in_an_order_that_the_question_alone_decides(tmp_path):
    path = tmp_path / "g.csv"
    names = ["Question", "Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3))]
    lines = [",".join(names), *(f"Which is {i}?,{i},{i}1,{i}2,{i}3" for i in range(24)), "Twice?,1,1,2,3"]
    path.write_text("\n".join(lines) + "\n")
    file = DataFile(path=str(path), format="gpqa", domain="math")
    *found, bad = [one.found for one in read(file, [path])]
    assert isinstance(bad, Bad) and "equal" in bad.reason
    golds = [one.problem.answer for one in found]
    assert set(golds) == set("ABCD")
    for i, one in enumerate(found):
        assert f"\n({one.problem.answer}) {i}\n" in one.problem.problem and one.body == f"Which is {i}?"
    path.write_text("\n".join([lines[0], *reversed(lines[1:-1])]) + "\n")
    assert [one.found.problem.answer for one in read(file, [path])] == golds[::-1]


def test_olympiadbench_has_lists_of_answers(tmp_path):
    path = tmp_path / "o.jsonl"
    rows = [
        {"question": "Solve it.", "final_answer": ["1", "$2$"], "context": "Let x be real.", "subfield": "Algebra"},
        {"question": "Prove it.", "final_answer": None, "context": None, "subfield": "Algebra"},
        {"question": "Solve it.", "final_answer": "1", "context": None, "subfield": "Algebra"},
    ]
    path.write_text("".join(json.dumps({**row, "id": i}) + "\n" for i, row in enumerate(rows)))
    whole, none, bad = [one.found for one in read(DataFile(preset="olympiadbench", path=str(path)), [path])]
    assert (whole.problem.problem, whole.problem.answer) == ("Let x be real.\nSolve it.", "1, $2$")
    assert none.problem.answer is None and isinstance(bad, Bad)


def test_a_set_whose_golds_are_all_one_is_refused(tmp_path):
    path = tmp_path / "gpqa.jsonl"
    overrides = ["data.source=files", f"data.evaluation=[{{path: '{path}'}}]", "data.train=[{path: t.jsonl}]"]
    settings = config.load("tiny", overrides=overrides, environ={})

    def protected(rows):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return protect(settings.data, settings.domains, 1, {str(path): str(path)}, print)

    rows = [{"problem": f"Which of {i}?", "answer": "A"} for i in range(198)]
    with pytest.raises(DataError, match=r"All 198 problems .* same gold answer, 'A'"):
        protected(rows)
    rows[7]["answer"] = "B"
    assert len(protected(rows).evaluation["gpqa"]) == 198
    assert len(protected(rows[:3]).evaluation["gpqa"]) == 3


@pytest.mark.slow
def test_the_registry_loads_no_torch():
    code = (
        "import sys; from vibethinker.data import registry; from vibethinker import plan;"
        "registry.benchmark('aime24'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
