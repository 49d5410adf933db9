"""Verdicts on mathematical answers, through a real worker where one is needed."""

from __future__ import annotations

import json
import random

import pytest

from vibethinker.verification import Item, Verdict, Verifier


@pytest.mark.parametrize(
    ("verdict", "counts"),
    [
        ("correct", True),
        ("passed", True),
        ("wrong", False),
        ("no_answer", False),
        ("timeout", False),
        ("wrong_answer", False),
        ("time_limit", False),
        ("memory_limit", False),
        ("runtime_error", False),
        ("no_code", False),
        ("error", None),
        ("infrastructure", None),
    ],
)
def test_failures_of_the_verifier_are_left_out_and_all_else_counts(verdict, counts):
    assert Verdict(verdict, None, 0.0).counts is counts


PAIRS = [
    ("7", "7", "correct"),
    ("7", "8", "wrong"),
    ("6x+2", "2(3x+1)", "correct"),
    ("6x+2", "2(3x+2)", "wrong"),
    ("3\\sqrt{2}", "\\sqrt{18}", "correct"),
    ("\\frac{1}{3}", "0.333333", "correct"),
    ("(x-1)(x+1)", "x^2-1", "correct"),
    ("[0,1)", "[0,1]", "wrong"),
    ("[0,1)", "[0, 1)", "correct"),
    ("(1,2)", "(2,1)", "wrong"),
    ("\\{1,2\\}", "\\{2,1\\}", "correct"),
    ("2\\pm\\sqrt{3}", "2-\\sqrt{3},2+\\sqrt{3}", "correct"),
    ("2^{25}26!", "2^{25}\\cdot 26!", "correct"),
    ("\\text{(B)}", "B", "correct"),
    ("\\text{(B)}", "C", "wrong"),
    ("x=5", "5", "correct"),
    ("5", "5\\text{ cm}", "correct"),
    ("50\\%", "0.5", "correct"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}", "wrong"),
    # listing guesses gains nothing
    ("5", "1,2,3,4,5", "wrong"),
    ("5", "4 or 5", "wrong"),
]


def test_equivalent_forms_are_correct_and_others_wrong(grade_boxed):
    assert grade_boxed([(gold, answer) for gold, answer, _ in PAIRS]) == [verdict for *_, verdict in PAIRS]


def test_order_is_kept_and_what_was_extracted_is_told(verifier):
    items = [
        Item("math", r"\boxed{\sqrt{4}}", "2"),
        Item("math", "no idea", "2"),
        Item("code", "```python\nprint(2)\n```", {"kind": "stdin", "cases": [{"input": "", "output": "2"}]}),
        Item("math", r"\boxed{3}", "2"),
    ]
    verdicts = verifier.grade(items)
    assert [v.verdict for v in verdicts] == ["correct", "no_answer", "passed", "wrong"]
    assert [v.extracted for v in verdicts] == [r"\sqrt{4}", None, "print(2)\n", "3"]
    assert all(v.seconds >= 0 for v in verdicts)


def test_without_a_gold_answer_the_verdict_is_an_error(verifier):
    assert verifier.grade([Item("math", r"\boxed{3}", " ")])[0].verdict == "error"


def test_an_unknown_kind_is_refused(verifier):
    with pytest.raises(ValueError, match="essay"):
        verifier.grade([Item("essay", "", "")])


def test_code_hidden_in_an_answer_never_runs(grade_boxed, tmp_path):
    target = tmp_path / "touched"
    attempts = [
        f"__import__('os').system('touch {target}')",
        f"\\text{{__import__('os').system('touch {target}')}}",
        f"open('{target}','w')",
        f"\\operatorname{{eval}}(__import__('pathlib').Path('{target}').touch())",
        f"(lambda: __import__('os').mknod('{target}'))()",
    ]
    assert grade_boxed([("5", attempt) for attempt in attempts]) == ["wrong"] * len(attempts)
    assert not target.exists()


def test_absurd_answers_are_wrong_at_once(grade_boxed):
    absurd = ["1" * 1_000_000, "{" * 5000 + "}" * 5000, "(" * 900 + "1" + ")" * 900, "\\frac" * 400, "\u0000", "\ud800"]
    assert grade_boxed([("5", answer) for answer in absurd]) == ["wrong"] * len(absurd)


@pytest.mark.slow
def test_a_stuck_answer_times_out_alone():
    hanging = "9^{9^{9}}"
    with Verifier(math_seconds=1.0) as verifier:
        answers = ["\\sqrt{9}", hanging, "\\sqrt{16}", hanging, "1+2"]
        verdicts = verifier.grade([Item("math", f"\\boxed{{{answer}}}", "3") for answer in answers])
        assert [v.verdict for v in verdicts] == ["correct", "timeout", "wrong", "timeout", "correct"]
        # and the worker that was lost is replaced
        assert verifier.grade([Item("math", r"\boxed{\sqrt{9}}", "3")])[0].verdict == "correct"


def golds(shared_data, name: str) -> list[str]:
    rows = [json.loads(line) for line in (shared_data / name).read_text().splitlines()]
    return [row["answer"].rpartition("####")[2].strip() for row in rows]


@pytest.mark.parametrize("name", ["gsm8k_test.jsonl", "math500_test.jsonl"])
def test_every_gold_answer_equals_itself(shared_data, grade_boxed, name):
    answers = golds(shared_data, name)
    assert set(grade_boxed([(answer, answer) for answer in answers])) == {"correct"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gsm8k_test.jsonl", "math500_test.jsonl"])
def test_shuffled_gold_answers_are_wrong_unless_equal(shared_data, grade_boxed, name):
    answers = golds(shared_data, name)
    shuffled = random.Random(0).sample(answers, len(answers))
    verdicts = grade_boxed(list(zip(answers, shuffled, strict=True)))
    plain = {answer: answer.replace(" ", "").replace(",", "").replace("\\!", "") for answer in answers}
    for gold, answer, verdict in zip(answers, shuffled, verdicts, strict=True):
        assert (verdict == "correct") == (plain[gold] == plain[answer]), (gold, answer, verdict)
