"""Verdicts on mathematical answers, through a real worker where one is needed."""

from __future__ import annotations

import pytest

from vibethinker.errors import ConfigurationError
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


@pytest.mark.slow
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
    with pytest.raises(ConfigurationError, match="no reward 'essay'"):
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
    absurd = [
        "1" * 1_000_000,
        "{" * 5000 + "}" * 5000,
        "(" * 900 + "1" + ")" * 900,
        "\\frac" * 400,
        "\\frac{" * 200 + "1" + "}{2}" * 200,
        "\\sqrt{" * 100 + "2" + "}" * 100,
        "9**9**9**9",
        "9^{9^{9^{9}}}",
        "\u0000",
        "\ud800",
        "1," * 900,
    ]
    assert grade_boxed([("5", answer) for answer in absurd]) == ["wrong"] * len(absurd)


@pytest.mark.slow
def test_a_stuck_answer_times_out_alone():
    hanging = "\\prod_{k=1}^{10^8} k"
    with Verifier(math_seconds=1.0) as verifier:
        answers = ["\\sqrt{9}", hanging, "\\sqrt{16}", hanging, "1+2"]
        verdicts = verifier.grade([Item("math", f"\\boxed{{{answer}}}", "3") for answer in answers])
        assert [v.verdict for v in verdicts] == ["correct", "timeout", "wrong", "timeout", "correct"]
        # and the worker that was lost is replaced
        assert verifier.grade([Item("math", r"\boxed{\sqrt{9}}", "3")])[0].verdict == "correct"
