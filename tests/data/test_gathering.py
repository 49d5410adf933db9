"""From sources to splits: quarantine, filters, near copies, growth, and going on after a kill."""

from __future__ import annotations

import filecmp
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from vibethinker.data.duplicates import bands, similarity
from vibethinker.data.prepare import run
from vibethinker.errors import DataError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def row(i: int, **more) -> dict:
    return {
        "problem": f"Find the {i}th of w{i}, x{i} and y{i}.",
        "answer": str(i),
        "solution": f"So \\boxed{{{i}}}",
        **more,
    }


def source(path: Path, **more) -> dict:
    return {"path": str(path), "domain": "algebra", "columns": {"solution": "solution"}, **more}


def test_bad_rows_are_quarantined_with_reasons_and_the_rest_is_used(prepare, jsonl, tmp_path):
    path = jsonl("train.jsonl", *(row(i) for i in range(100)))
    bad = [
        b'{"problem": 7, "answer": "1"}',
        b'{"problem": "Find \\u0000 it.", "answer": "1", "solution": ""}',
        json.dumps(row(200, problem="Find $\\frac{1}{2$.")).encode(),
        b'{"problem": "' + b"x" * (10 << 20) + b'", "answer": "1"}',
        b"not json",
    ]
    path.write_bytes(path.read_bytes() + b"\n".join(bad) + b"\n")
    prepared = prepare(("algebra",), source="files", train=[source(path)], bad_rows=0.05)
    quarantine = prepared.lines("quarantine")
    assert [q["origin"] for q in quarantine] == [f"train.jsonl:{n}" for n in range(101, 106)]
    reasons = ["must be text", "NUL", "brace", "longer than 4 MiB", "JSON"]
    assert all(said in q["reason"] for said, q in zip(reasons, quarantine, strict=True))
    assert all(len(q["row"]) <= 2000 for q in quarantine)
    (about,) = prepared.card["sources"]
    assert (about["rows"], about["bad"]) == (105, 5)
    assert prepared.card["domains"]["algebra"]["rows"] == 100


def test_too_many_bad_rows_stop_the_run_and_are_kept_in_a_file(data_context, jsonl):
    path = jsonl("train.jsonl", *(row(i) for i in range(50)), {"problem": 7})
    context = data_context(("algebra",), source="files", train=[source(path)])
    with pytest.raises(
        DataError, match=r"1 of 51 rows of train can't be used, more than .* 1\.00%.*train\.jsonl:51: col"
    ):
        run(context)
    (line,) = (context.checkpoints / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["origin"] == "train.jsonl:51"
    assert str(context.checkpoints / "quarantine.jsonl") in context.emit.warnings[-1]


def test_every_row_is_either_used_or_counted_with_its_reason(prepare, jsonl):
    leak = "The answer is 5. What is the answer to this question about w5?"
    rows = [row(i) for i in range(60)]
    rows += [
        row(100, problem="Why?"),
        row(101, problem="Find " + "very " * 1200 + "much of it."),
        row(102, problem="Berechne bitte die Summe aller natürlichen Zahlen von eins bis hundert und erkläre den Weg."),
        row(5, problem=leak),
        row(103, answer=None),
        row(104, problem="Find it again and again, " * 30 + "please."),
        row(105, subject="Cooking"),
    ]
    file = source(jsonl("train.jsonl", *rows), columns={"domain": "subject"}, labels={"maths": "algebra"})
    rows = [{"subject": "Maths", **one} for one in rows]
    file["path"] = str(jsonl("train.jsonl", *rows))
    prepared = prepare(("algebra",), source="files", train=[file])
    counts = prepared.card["domains"]["algebra"]
    (about,) = prepared.card["sources"]
    wanted = ["too_short", "too_long", "language", "leakage", "no_gold", "repetition", "unmapped"]
    assert about["counts"] == dict.fromkeys(sorted(wanted), 1)
    assert {r["filter"] for r in prepared.lines("removed")} == set(wanted)
    assert about["labels"] == {
        "Cooking": {"domain": None, "rows": 1},
        "Maths": {"domain": "algebra", "rows": 66},
    }
    used = sum(counts[name] for name in ("train", "probe", "validation", "reserved"))
    assert used == 60 == about["rows"] - sum(about["counts"].values())


def test_a_problem_that_first_comes_without_gold_gets_it_and_equal_golds_agree(prepare, jsonl):
    rows = [row(i, answer=None) for i in range(30)] + [row(i, answer=f"\\frac{{{i}}}{{2}}") for i in range(30)]
    rows += [row(i, answer=f"{i}/2") for i in range(30)] + [row(0, answer="99")]
    votes = {"enabled": True}
    prepared = prepare(
        ("algebra",), source="files", train=[source(jsonl("train.jsonl", *rows))], teacher={"votes": votes}
    )
    counts = prepared.card["domains"]["algebra"]
    assert (counts["repeated"], counts["conflicting"]) == (60, 1)
    assert {p.answer_source for p in prepared.problems("rl")} == {"gold"}
    assert sum(counts[name] for name in ("train", "probe", "validation", "reserved")) == 30


def test_programs_never_go_where_answers_are_judged_nor_answers_to_code(prepare, jsonl):
    tests = {"kind": "assert", "code": "assert f(1) == 2"}
    rows = [row(i) for i in range(30)]
    rows += [row(i, problem=f"Solve the equation w{i} by a program f{i}.", answer=None, tests=tests) for i in range(30)]
    rows += [row(i, problem=f"Write a python function g{i} and tell what it returns.") for i in range(30)]
    columns = {"solution": "solution", "tests": "tests"}
    file = source(jsonl("train.jsonl", *[{"tests": None, **one} for one in rows]), columns=columns, domain="auto")
    prepared = prepare(
        ("algebra", "code"),
        source="files",
        train=[file],
        classifier={"otherwise": "algebra"},
        duplicates={"near": None},
    )
    kinds = {(p.domain, p.tests is None) for part in ("rl", "probe", "validation") for p in prepared.problems(part)}
    assert kinds == {("algebra", True), ("code", False)}


def test_near_copies_of_problems_that_get_their_gold_later_go_too(prepare, jsonl):
    text = "Farmer w{} has many cows and hens, sells a third of the cows on a cold market day, and then goes home x{}."
    rows = [row(i, problem=text.format(i, i)) for i in range(40)]
    rows += [row(i, problem=text.format(i, i).replace("cold", "cold cold"), answer=None) for i in range(40)]
    prepared = prepare(
        ("algebra",), source="files", train=[source(jsonl("t.jsonl", *rows))], teacher={"votes": {"enabled": True}}
    )
    assert prepared.card["domains"]["algebra"]["near_copy"] == 40


def test_unreadable_evaluation_rows_stop_the_run_too(prepare, jsonl):
    train = jsonl("train.jsonl", *(row(i) for i in range(60)))
    held = jsonl("held.jsonl", row(100), row(101), {"problem": 7, "answer": "1"})
    settings = {"source": "files", "train": [source(train)], "evaluation": [{"path": str(held), "domain": "algebra"}]}
    with pytest.raises(DataError, match=r"1 of 3 rows of held, which training is held against.*held\.jsonl:3"):
        prepare(("algebra",), **settings)
    prepared = prepare(("algebra",), **settings, bad_rows=0.4)
    assert len(prepared.problems("evaluation")) == 2
    assert [q["source"] for q in prepared.lines("quarantine")] == ["held"]


def test_a_killed_process_of_the_pool_ends_the_step_instead_of_hanging_it(data_context, jsonl):
    import psutil

    from vibethinker.errors import InfrastructureError

    path = jsonl("train.jsonl", *(row(i) for i in range(20_000)))
    context = data_context(("algebra",), source="files", train=[source(path)])
    told = context.emit.progress

    def kill_one(done: int, total: int, text: str = "") -> None:
        told(done, total, text)
        for process in psutil.Process().children() if "rows of train" in text else ():
            process.kill()

    context.emit.progress = kill_one
    with pytest.raises(InfrastructureError, match=r"was killed.*goes on where it was"):
        run(context)


def test_near_copies_go_and_variants_stay(prepare, jsonl):
    text = "A farmer has {} cows and {} hens, sells a third of the cows on a cold market day, and goes home. How many?"
    rows = [row(i) for i in range(40)]
    rows += [row(50, problem=text.format(12, 7)), row(51, problem=text.format(15, 7))]  # other numbers
    rows += [row(50, problem=text.format(12, 7).replace("cold", "very cold"))]  # a near copy
    rows += [row(52, problem=text.format(12, 7).replace("cold", "rather cold"))]  # another answer
    prepared = prepare(("algebra",), source="files", train=[source(jsonl("train.jsonl", *rows))])
    (removed,) = prepared.lines("removed")
    assert (removed["filter"], removed["origin"], removed["similarity"] >= 0.8) == ("near_copy", "train.jsonl:43", True)
    assert prepared.card["duplicates"]["removed"] == 1 <= prepared.card["duplicates"]["variants"]
    kept = prepare(("algebra",), source="files", train=[source(jsonl("t.jsonl", *rows))], duplicates={"near": None})
    assert kept.lines("removed") == []


def test_bands_find_what_is_alike_and_only_with_equal_numbers():
    text = "A farmer has 12 cows and 7 hens, sells a third of the cows on a market day, and goes home by the long road."
    near = text.replace("long", "very long")
    assert similarity(text, near, 3) > 0.8
    assert set(bands(text, 3)) & set(bands(near, 3))
    assert not set(bands(text, 3)) & set(bands(near.replace("12", "13"), 3))
    assert bands(text, 3) == bands(text.upper(), 3)


def test_a_growing_set_moves_no_problem_to_another_split(prepare, jsonl):
    def places(rows) -> dict[str, str]:
        train = [source(jsonl("train.jsonl", *rows))]
        prepared = prepare(("algebra",), source="files", train=train, held_out=0.1, probe=500, validation=500)
        parts = {part: prepared.problems(part) for part in ("rl", "probe", "validation")}
        return {p.problem: part for part, some in parts.items() for p in some}

    few = places([row(i) for i in range(150)])
    many = places([row(i) for i in range(600)])
    both = few.keys() & many.keys()
    assert len(both) > 100
    assert all(few[text] == many[text] for text in both)
    assert {few[text] for text in both} == {"rl", "probe", "validation"}


def test_unlabelled_rows_are_classified_by_their_words(prepare, jsonl):
    texts = ["Find the area of the triangle with base {}.", "Solve the equation x + {} = 9 for x."]
    rows = [row(i, problem=texts[i % 2].format(i)) for i in range(80)] + [
        row(90, problem="How many loaves has Ann got?")
    ]
    settings = {"source": "files", "train": [source(jsonl("train.jsonl", *rows), domain="auto")], "held_out": 0.1}
    prepared = prepare(("algebra", "geometry"), **settings, duplicates={"near": None}, probe=2, validation=2)
    rows = {domain: prepared.card["domains"][domain]["rows"] for domain in ("algebra", "geometry")}
    assert rows == {"algebra": 40, "geometry": 40}
    classifier = prepared.card["classifier"]
    assert (classifier["decided"], classifier["undecided"]) == (80, 1)
    assert any("triangle" in keyword for keyword in classifier["keywords"]["geometry"])
    assert prepared.card["sources"][0]["counts"] == {"unmapped": 1}
    mapped = prepare(("algebra", "geometry"), **settings, classifier={"otherwise": "algebra"}, probe=2, validation=2)
    assert mapped.card["domains"]["algebra"]["rows"] == 41


def test_the_pool_of_processes_changes_nothing(data_context, jsonl):
    path = jsonl("train.jsonl", *(row(i) for i in range(700)), *(row(i) for i in range(40)))
    outputs = []
    for workers in (1, 2):
        context = data_context(("algebra",), source="files", train=[source(path)])
        context.execution["threads"] = workers
        run(context)
        outputs.append(context.output)
    assert same(*outputs)


def same(first: Path, second: Path) -> bool:
    names = sorted(str(p.relative_to(first)) for p in first.rglob("*") if p.is_file())
    return len(names) > 8 and filecmp.cmpfiles(first, second, names, shallow=False) == (names, [], [])


def test_a_killed_run_goes_on_and_gives_the_same_bytes(jsonl, tmp_path):
    rows = [row(i) for i in range(3000)] + [
        row(i, problem=f"find the {i}TH of w{i},  x{i} and y{i}.") for i in range(900)
    ]
    evaluation = [row(i) for i in range(20)]
    jsonl("train.jsonl", *rows)
    jsonl("held.jsonl", *evaluation)
    configuration = {
        "profile": "tiny",
        "domains": ["algebra"],
        "signal": {"stages": [{"name": "math", "context": 128, "steps": 1}]},
        "data": {
            "source": "files",
            "directory": str(tmp_path),
            "train": [source(Path("train.jsonl"))],
            "evaluation": [source(Path("held.jsonl"))],
        },
    }
    (tmp_path / "config.yaml").write_text(json.dumps(configuration))
    command = [sys.executable, "-m", "vibethinker", "data", "prepare", "--config", "config.yaml", "--output"]
    subprocess.run([*command, "whole"], cwd=tmp_path, check=True, capture_output=True)
    # It is killed once in each of its phases; a terminal is told every step of the work, so that this can be placed.
    for killed_at in (b"rows of train", b"splitting", b"verified"):
        ours, theirs = os.openpty()
        process = subprocess.Popen([*command, "killed"], cwd=tmp_path, stderr=theirs, start_new_session=True)
        os.close(theirs)
        said = b""
        while killed_at not in said:
            said += os.read(ours, 1 << 16)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "killed").exists()
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".killed.state-")]
    subprocess.run([*command, "killed"], cwd=tmp_path, check=True, capture_output=True)
    assert same(tmp_path / "whole", tmp_path / "killed")
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_its_processes_end_when_it_is_killed(jsonl, tmp_path):
    import psutil

    path = jsonl("train.jsonl", *(row(i) for i in range(20_000)))
    code = (
        "import sys; from vibethinker.cli import main; sys.argv[1:] = ['data', 'prepare', '--profile', 'tiny', "
        "'--set', 'domains=[algebra]', '--set', 'signal.stages=[{name: m, context: 128, steps: 1}]', "
        "'--set', 'data.source=files', "
        f"'--set', 'data.train=[{{path: {path}, domain: algebra}}]', '--output', 'out']; main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL)
    family = psutil.Process(process.pid)
    until = time.monotonic() + 60
    while not (children := family.children(recursive=True)) and time.monotonic() < until:
        time.sleep(0.05)
    assert children
    process.kill()
    process.wait()
    # One that was being started notices once it has imported what it needs, which takes a busy machine a while.
    assert psutil.wait_procs(children, timeout=40)[1] == []


# ---- the planted leak ----


def light_paraphrases(text: str, number: int) -> str:
    """The text verbatim after folding: another case, punctuation, LaTeX spacing, and sentences around it."""
    changes = [
        str.upper,
        str.lower,
        lambda t: t.replace(",", " ,").replace(".", " !"),
        lambda t: t.replace("$", " $ ").replace("\\frac", "\\dfrac").replace("{", "{ "),
        lambda t: f"Solve the following problem carefully. {t}",
        lambda t: f"{t} Please reason step by step, and put your final answer within \\boxed{{}}.",
        lambda t: f"Here is an exercise\n\n{t}\n\nShow all of your work",
        lambda t: t.replace(" ", "  ").replace("(", " \\left( ").replace(")", " \\right) "),
        lambda t: f"question {t.lower()} answer",
    ]
    return changes[number % len(changes)](text)


def test_every_planted_leak_is_found_among_50000_rows(shared_data, jsonl, tmp_path):
    from vibethinker.data.cleaning import decontaminate_file

    prefix = "Return your final response within \\boxed{}."
    held = [json.loads(line)["problem"].removeprefix(prefix) for line in (shared_data / "math500_test.jsonl").open()]
    held += [json.loads(line)["question"] for line in (shared_data / "gsm8k_test.jsonl").open()][:500]
    clean = [json.loads(line)["problem"] for line in (shared_data / "math_train.jsonl").open()]
    clean += [json.loads(line)["question"] for line in (shared_data / "gsm8k_train.jsonl").open()]
    texts = [clean[i % len(clean)] + (f" (Part {i}.)" if i >= len(clean) else "") for i in range(49_000)]
    evaluation = jsonl("held.jsonl", *({"problem": text} for text in held))
    first = tmp_path / "clean.jsonl"
    alone = jsonl("alone.jsonl", *({"problem": text} for text in texts))
    found_alone = decontaminate_file(alone, [evaluation], first).removed
    planted = {7 + 49 * i: light_paraphrases(text, i) for i, text in enumerate(held)}
    both = iter(texts)
    rows = [{"problem": planted[n] if n in planted else next(both), "n": n} for n in range(50_000)]
    listing = tmp_path / "hits.jsonl"
    result = decontaminate_file(jsonl("train.jsonl", *rows), [evaluation], tmp_path / "kept.jsonl", listing=listing)
    kept = {json.loads(line)["n"] for line in (tmp_path / "kept.jsonl").open()}
    assert result.rows == 50_000 and len(planted) == 1000
    missed = [planted[n] for n in planted.keys() & kept]
    assert missed == []
    # What else goes would go without the planted rows: precision is theirs of all that goes.
    assert result.removed == len(planted) + found_alone
    hits = [json.loads(line) for line in listing.open()]
    assert len(hits) == sum(result.classes.values())
    of_planted = Counter(hit["class"] for hit in hits if hit["row"] - 1 in planted)
    assert of_planted == {"near_copy": 1000}
