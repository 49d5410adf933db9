"""The data step from its settings to its files: splits, verified traces, decontamination and counts."""

from __future__ import annotations

import filecmp
import json
from collections import Counter

import pytest
from click.testing import CliRunner

from vibethinker.cli import cli
from vibethinker.data.folding import signature
from vibethinker.errors import ConfigurationError, DataError

pytestmark = pytest.mark.slow

DOMAINS = ("algebra", "geometry", "calculus", "statistics", "code")
GENERATED = {"problems": 120, "evaluation": 10}


def plain(i: int, **more) -> dict:
    """A row whose words are shared with no other row."""
    return {"problem": f"Find w{i}, x{i} and y{i}.", "answer": str(i), "solution": f"So \\boxed{{{i}}}", **more}


def files(train, evaluation=None, **more):
    """Settings of `data` for files with worked solutions."""
    columns = {"solution": "solution"}
    settings = {"source": "files", "train": [{"path": str(train), "domain": "algebra", "columns": columns}]}
    if evaluation:
        settings["evaluation"] = [{"path": str(evaluation), "domain": "algebra"}]
    return {**settings, **more}


def disjoint(prepared) -> bool:
    """Whether no problem is in two parts, by its words alone, and every trace belongs to a training problem."""
    parts = [[signature(p.problem) for p in prepared.problems(part)] for part in PARTS]
    held = [set(part) for part in parts]
    shared = any(a & b for i, a in enumerate(held) for b in held[i + 1 :])
    train = {(p.id, p.problem) for p in prepared.problems("rl")}
    return not shared and all((t.problem_id, t.problem) in train for t in prepared.traces())


PARTS = ("rl", "probe", "validation", "evaluation")


@pytest.fixture(scope="session")
def big_numbers():
    return [plain(i) for i in range(40)]


def test_generated_problems_are_split_without_overlap_and_with_exact_counts(prepare):
    prepared = prepare(DOMAINS, procedural=GENERATED)
    assert disjoint(prepared)
    for part, count in (("probe", 4), ("validation", 4), ("evaluation", 10)):
        assert Counter(p.domain for p in prepared.problems(part)) == dict.fromkeys(DOMAINS, count)
    rl = Counter(p.domain for p in prepared.problems("rl"))
    for domain, counts in prepared.card["domains"].items():
        removed = counts.get("contaminated", 0) + counts.get("same_words", 0)
        assert rl[domain] == counts["train"] == counts["rows"] - 8 - counts["reserved"] - removed > 15
    assert all(t.verdict in ("correct", "passed") for t in prepared.traces())
    assert prepared.warnings == []
    ids = [p.id for part in PARTS for p in prepared.problems(part)]
    assert len(set(ids)) == len(ids)


def test_several_different_traces_are_kept_a_problem(prepare):
    kept = Counter((t.problem_id, t.text) for t in prepare(("algebra",), procedural=GENERATED).traces())
    assert max(kept.values()) == 1
    assert max(Counter(problem for problem, _ in kept).values()) == 3
    one = prepare(("algebra",), procedural=GENERATED, solutions=1)
    assert set(Counter(t.problem_id for t in one.traces()).values()) == {1}


def test_the_same_settings_give_the_same_bytes_and_another_seed_does_not(prepare):
    first, again, other = (prepare(("algebra", "code"), seed=s, procedural=GENERATED) for s in (1, 1, 2))
    names = sorted(str(p.relative_to(first.folder)) for p in first.folder.rglob("*") if p.is_file())
    assert len(names) == 15
    assert filecmp.cmpfiles(first.folder, again.folder, names, shallow=False) == (names, [], [])
    assert (first.folder / "rl/algebra.parquet").read_bytes() != (other.folder / "rl/algebra.parquet").read_bytes()


def test_wrong_solutions_are_left_out_and_their_problems_stay_for_rl(prepare, jsonl):
    rows = [plain(i) for i in range(20)] + [plain(i, solution=f"So \\boxed{{{i + 1}}}") for i in range(20, 40)]
    prepared = prepare(("algebra",), **files(jsonl("train.jsonl", *rows)))
    train = {p.answer for p in prepared.problems("rl")}
    assert 20 < len(train) <= 32
    assert {t.answer for t in prepared.traces()} == {a for a in train if int(a) < 20}
    counts = prepared.card["domains"]["algebra"]
    assert counts["unverified"] == counts["without_trace"] == sum(int(a) >= 20 for a in train) > 0
    assert counts["traces"] == len(prepared.traces())


def test_an_equivalent_final_answer_verifies(prepare, jsonl):
    rows = [plain(i, answer=r"\frac{1}{2}", solution="So \\boxed{0.5}") for i in range(20)]
    assert {t.answer for t in prepare(("algebra",), **files(jsonl("t.jsonl", *rows))).traces()} == {"0.5"}


def test_rows_of_one_problem_become_one_problem_with_their_solutions(prepare, jsonl):
    rows = [plain(i) for i in range(20)]
    again = {"solution": "Thus it is easily seen to be \\boxed{%d}"}
    rows += [plain(i, problem=f"FIND w{i},  X{i} and y{i}.", solution=again["solution"] % i) for i in range(20)]
    rows += [plain(0, answer="99")]
    prepared = prepare(("algebra",), **files(jsonl("train.jsonl", *rows)))
    train = len(prepared.problems("rl"))
    assert list(Counter(t.problem_id for t in prepared.traces()).values()) == [2] * train
    counts = prepared.card["domains"]["algebra"]
    assert (counts["repeated"], counts["conflicting"]) == (20, 1)
    assert train + counts["probe"] + counts["validation"] + counts["reserved"] == 20


def test_problems_that_are_evaluated_on_are_nowhere_else(prepare, jsonl, big_numbers):
    # The last has the words of an evaluation problem, though it is another text.
    train = jsonl("train.jsonl", *big_numbers, plain(100, problem="Find: W3-x3 and y3"))
    evaluation = jsonl("held.jsonl", *big_numbers[:5])
    for enabled in (True, False):
        decontamination = {"enabled": enabled}
        prepared = prepare(("algebra",), **files(train, evaluation, decontamination=decontamination))
        assert disjoint(prepared)
        counts = prepared.card["domains"]["algebra"]
        assert counts["train"] == 35 - counts["probe"] - counts["validation"] - counts["reserved"]
    assert prepared.card["decontamination"]["enabled"] is False


def test_overlaps_are_removed_counted_and_shown(prepare, jsonl, big_numbers):
    long = "Ann has seven red apples and gives two of them to her brother Bob."
    leak = plain(77, problem=f"Listen: {long} How many has she left over?")
    other = jsonl("other.jsonl", {"question": long + " How many are left?"})
    settings = files(jsonl("train.jsonl", *big_numbers, leak), decontamination={"against": [str(other)]})
    prepared = prepare(("algebra",), **settings)
    assert prepared.card["domains"]["algebra"]["contaminated"] == prepared.metrics["contaminated"] == 1
    (example,) = prepared.card["decontamination"]["examples"]
    assert example["origin"] == "train.jsonl:41"
    assert example["evaluation_set"] == "other.jsonl"
    assert (example["class"], example["kept"]) == ("near_copy", False)
    assert example["shared"] == "ann has seven red apples and gives two of them"
    assert prepared.lines("overlaps") == [example]
    (removed,) = prepared.lines("removed")
    assert (removed["filter"], removed["origin"]) == ("contaminated", "train.jsonl:41")
    assert leak["problem"] not in {p.problem for part in PARTS[:3] for p in prepared.problems(part)}


def test_the_evaluation_limit_takes_the_same_problems_whatever_the_seed(prepare, jsonl, big_numbers):
    train, held = jsonl("train.jsonl", *big_numbers), jsonl("held.jsonl", *(plain(i) for i in range(100, 130)))
    first, other = (
        prepare(("algebra",), seed=s, **files(train, held, evaluation_limit=7)).problems("evaluation") for s in (1, 2)
    )
    assert first == other
    assert len(first) == 7
    assert [int(p.answer) for p in first] != list(range(100, 107))


def test_max_problems_caps_the_training_problems(prepare, jsonl, big_numbers):
    prepared = prepare(("algebra",), **files(jsonl("train.jsonl", *big_numbers), max_problems=6))
    assert len(prepared.problems("rl")) == 6
    assert prepared.card["domains"]["algebra"]["reserved"] == 40 - 8 - 6


def test_one_problem_in_two_domains_is_trained_in_one(prepare, jsonl, big_numbers):
    first, second = jsonl("a.jsonl", *big_numbers), jsonl("b.jsonl", *big_numbers[:10], *map(plain, range(50, 70)))
    settings = files(first)
    settings["train"].append({"path": str(second), "domain": "geometry"})
    prepared = prepare(("algebra", "geometry"), **settings)
    assert disjoint(prepared)
    trained = Counter(p.domain for p in prepared.problems("rl"))
    reserved = {domain: prepared.card["domains"][domain]["reserved"] for domain in trained}
    assert trained == {"algebra": 32 - reserved["algebra"], "geometry": 12 - reserved["geometry"]}
    assert any("geometry has no verified trace" in warning for warning in prepared.warnings)


def test_programs_are_run_and_only_those_that_pass_become_traces(prepare, jsonl):
    def row(i: int, program: str) -> dict:
        cases = [{"args": [1], "expected": 1 + i}]
        tests = {"kind": "function", "entry_point": "f", "cases": cases}
        return {"problem": f"Write f{i} adding n{i}.", "tests": tests, "solution": f"```python\n{program}\n```"}

    rows = [row(i, f"def f(x):\n    return x + {i if i % 2 else i + 1}") for i in range(9)]
    path = jsonl("code.jsonl", *rows)
    columns = {"answer": None, "tests": "tests", "solution": "solution"}
    train = [{"path": str(path), "domain": "code", "columns": columns}]
    prepared = prepare(("code",), source="files", train=train, probe=1, validation=1, filters={"min_words": 1})
    right = {p.id for p in prepared.problems("rl") if int(p.problem[7]) % 2}
    assert {t.problem_id for t in prepared.traces()} == right != set()
    assert {t.verdict for t in prepared.traces()} == {"passed"}


def test_a_domain_without_enough_problems_is_named_with_file_and_mend(prepare, jsonl):
    train = jsonl("train.jsonl", *map(plain, range(2)))
    with pytest.raises(DataError, match=r"domain algebra has no problem for .* in train \(rows 2.*add rows"):
        prepare(("algebra",), **files(train))
    with pytest.raises(DataError, match=r"domain geometry has no problem for train and .* in train \(no row\)"):
        prepare(("geometry", "algebra"), **files(train, probe=1, validation=1))
    with pytest.raises(DataError, match=r"raise data\.procedural\.problems"):
        prepare(("algebra",), procedural={"problems": 16, "evaluation": 1}, held_out=0.01)


def test_evaluation_files_must_have_gold_and_names_of_their_own(prepare, jsonl, big_numbers):
    train = jsonl("train.jsonl", *big_numbers)
    blank = jsonl("blank.jsonl", {"problem": "p", "answer": None})
    with pytest.raises(DataError, match=r"set blank has 1 problems without gold"):
        prepare(("algebra",), **files(train, blank))
    with pytest.raises(DataError, match=r"set empty has no problem"):
        prepare(("algebra",), **files(train, jsonl("empty.jsonl")))
    settings = files(train, jsonl("held.jsonl", plain(100)))
    with pytest.raises(ValueError, match=r"give one of them another `name`"):
        prepare(("algebra",), **{**settings, "evaluation": settings["evaluation"] * 2})


def test_an_id_of_two_problems_is_refused_with_both_places(prepare, jsonl):
    train = jsonl("train.jsonl", plain(1, n="a"), plain(2, n="a"))
    settings = files(train)
    settings["train"][0]["columns"]["id"] = "n"
    with pytest.raises(DataError, match=r"train\.jsonl:2: the id 'train-a' is also that of train\.jsonl:1"):
        prepare(("algebra",), **settings)


def test_gsm8k_is_prepared_without_leaks(prepare, shared_data):
    common = {"format": "gsm8k", "domain": "algebra", "licence": "MIT"}
    prepared = prepare(
        ("algebra",),
        source="files",
        train=[{"path": str(shared_data / "gsm8k_train.jsonl"), "limit": 1500, **common}],
        evaluation=[{"path": str(shared_data / "gsm8k_test.jsonl"), **common}],
        evaluation_limit=50,
    )
    assert disjoint(prepared)
    assert prepared.metrics["evaluation"] == len(prepared.problems("evaluation")) == 50
    counts = prepared.card["domains"]["algebra"]
    assert (counts["rows"], counts["contaminated"]) == (1500, 5)
    assert counts["train"] == 1500 - 5 - 8 - counts["reserved"] - counts.get("near_copy", 0)
    assert counts["traces"] + counts["unverified"] + counts.get("looping", 0) == counts["train"]
    assert all(t.text.endswith(f"The answer is \\boxed{{{t.answer}}}.") for t in prepared.traces())
    assert not any("<<" in t.text or "####" in t.text for t in prepared.traces())


# ---- the commands ----


def invoke(*args: object):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def test_the_command_prepares_into_a_new_folder_only(tmp_path):
    output = tmp_path / "new" / "data"
    settings = ["data.procedural.problems=300", "data.procedural.evaluation=4", "data.probe=4", "data.validation=4"]
    args = ["data", "prepare", "--profile", "tiny", *(a for s in settings for a in ("--set", s)), "--output", output]
    done = invoke(*args)
    assert done.exit_code == 0, done.output
    assert json.loads((output / "card.json").read_text())["domains"]["algebra"]["probe"] == 4
    assert [p.name for p in output.parent.iterdir()] == ["data"]
    assert isinstance(invoke(*args).exception, ConfigurationError)


def test_a_failed_prepare_leaves_nothing(tmp_path):
    output = tmp_path / "data"
    failed = invoke("data", "prepare", "--set", "data.procedural.problems=16", "--output", output)
    assert isinstance(failed.exception, DataError)
    assert list(tmp_path.iterdir()) == []


def test_the_command_keeps_clean_rows_unchanged_and_in_order(tmp_path, jsonl):
    rows = [b'{"question":  "keep one?"}\n', b'{"question": "What is 1 + 1?", "a": 2}\n', b"\n", b'{"question": "b"}']
    train, kept = tmp_path / "train.jsonl", tmp_path / "kept.jsonl"
    train.write_bytes(b"".join(rows))
    first, second = jsonl("e1.jsonl", {"problem": "other"}), jsonl("e2.jsonl", {"text": "WHAT is 1 1"})
    done = invoke("data", "decontaminate", train, "--against", first, second, "--output", kept)
    assert done.exit_code == 0, done.output
    assert kept.read_bytes() == rows[0] + rows[3] + b"\n"
    assert "3 rows read, 1 removed, 2 kept" in done.output
    assert "train.jsonl:2 near_copy 100% with e2.jsonl:1" in done.output
    assert isinstance(
        invoke("data", "decontaminate", train, "--against", first, "--output", train).exception, ConfigurationError
    )


def test_the_command_describes_a_file(jsonl):
    done = invoke("data", "stats", jsonl("f.jsonl", plain(1, domain="algebra"), plain(1, domain="code"), plain(2)))
    assert done.exit_code == 0, done.output
    assert "rows      3" in done.output
    assert "2 different, 1 of them repeated" in done.output
    assert "algebra 1, code 1" in done.output
