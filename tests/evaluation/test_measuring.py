"""From problems to scores: outcomes, what is left out, seeds and tables."""

from __future__ import annotations

import dataclasses

import pytest

from vibethinker.errors import DataError
from vibethinker.evaluation.measuring import derived_seed, labelled, measure, pass_scores, scores, tables, votes
from vibethinker.settings import Evaluation, Prompts

RIGHT, WRONG, NONE = "so \\boxed{7}", "so \\boxed{8}", "well …"


@pytest.fixture
def measured(verifier, scripted, problem, tiny_tokenizer):
    """A function (texts a problem, settings, golds) → outcomes."""

    def run(answers, settings, golds=None, progress=None):
        golds = golds or ["7"] * len(answers)
        problems = [problem(f"p{i}", gold) for i, gold in enumerate(golds)]
        return measure(scripted(answers), tiny_tokenizer, verifier, problems, settings, Prompts(), 1, progress)

    return run


def test_outcomes_hold_verdicts_lengths_and_truncation(measured):
    [outcome] = measured([[RIGHT, WRONG, NONE, RIGHT]], Evaluation(samples=4, k=(2,)))
    assert outcome.row() == {
        "id": "p0",
        "correct": 2,
        "samples": 4,
        "verdicts": ["correct", "wrong", "no_answer", "correct"],
        "tokens": [12, 12, 6, 12],
        "truncated": [False, False, True, False],
    }
    readable = outcome.generations()
    assert readable["gold"] == "7" and [s["extracted"] for s in readable["samples"]] == ["7", "8", None, "7"]


def test_scores_are_means_over_problems(measured, verifier):
    settings = Evaluation(samples=4, k=(2, 4))
    outcomes = measured([[RIGHT, WRONG, WRONG, WRONG], [RIGHT] * 4, [NONE] * 4, [RIGHT, RIGHT, WRONG, NONE]], settings)
    found = scores(outcomes, settings, votes(outcomes, settings, verifier))
    assert list(found) == ["avg@4", "pass@2", "pass@4", "cons@4", "truncated", "mean_tokens"]
    assert found["avg@4"]["value"] == (0.25 + 1 + 0 + 0.5) / 4
    assert found["pass@2"]["value"] == pytest.approx((0.5 + 1 + 0 + 5 / 6) / 4)
    assert found["pass@4"]["value"] == 0.75
    assert found["cons@4"]["value"] == 0.5
    assert found["truncated"]["value"] == (1 + 0.25) / 4
    assert found["mean_tokens"]["value"] == (12 + 12 + 6 + 10.5) / 4
    for value in found.values():
        assert value["low"] <= value["value"] <= value["high"]
        assert value["problems"] == 4 and value["samples"] == 4


def test_samples_on_which_the_verifier_fails_are_left_out_of_n(measured, verifier):
    settings = Evaluation(samples=4, k=(2,))
    outcomes = measured([[RIGHT, WRONG, WRONG, WRONG], [RIGHT, RIGHT, NONE, NONE]], settings, ["7", ""])
    assert [(o.samples, o.correct, o.left_out) for o in outcomes] == [(4, 1, 0), (2, 0, 2)]
    outcomes = measured([[RIGHT, WRONG, WRONG, WRONG], [RIGHT] * 4], settings, ["7", ""])
    assert (outcomes[1].samples, outcomes[1].left_out) == (0, 4)
    found = scores(outcomes, settings, votes(outcomes, settings, verifier))
    assert found["avg@4"]["value"] == 0.25 and found["avg@4"]["problems"] == 1
    assert found["pass@2"]["problems"] == 1 and found["mean_tokens"]["problems"] == 2
    with pytest.raises(DataError, match="no graded problems"):
        pass_scores(outcomes[1:], [2])


@pytest.mark.slow
def test_code_problems_have_no_majority_vote(verifier, scripted, tiny_tokenizer):
    from vibethinker.data.schema import Problem
    from vibethinker.verification import CodeLimits, Verifier

    tests = {"kind": "function", "entry_point": "f", "cases": [{"args": [2], "expected": 4}]}
    code = Problem(id="c", domain="code", problem="Double it.", source="test", licence="MIT", tests=tests)
    answers = [["```python\ndef f(x):\n    return 2 * x\n```", "```python\ndef f(x):\n    return x\n```"]]
    settings = Evaluation(samples=2, k=(1,))
    with Verifier(code=CodeLimits(allow_unsafe=True)) as runner:
        outcomes = measure(scripted(answers), tiny_tokenizer, runner, [code], settings, Prompts(), 1)
        found = scores(outcomes, settings, votes(outcomes, settings, runner))
    assert [v.verdict for v in outcomes[0].verdicts] == ["passed", "wrong_answer"]
    assert found["avg@2"]["value"] == 0.5 and "cons@2" not in found


def test_progress_tells_sampling_from_grading(measured):
    seen = []
    measured([[RIGHT] * 2] * 3, Evaluation(samples=2, k=(1,)), progress=lambda *args: seen.append(args))
    assert seen == [(6, 6, "sampling"), (6, 6, "grading")]


def test_each_purpose_has_a_seed_of_its_own_that_stays():
    seeds = {derived_seed(s, *p) for s in (1, 2) for p in (("probe", "algebra"), ("validation", "algebra"), ("a", "b"))}
    assert len(seeds) == 6 and all(0 <= seed < 2**64 for seed in seeds)
    assert derived_seed(1, "probe", "algebra") == 16469129910317812083


def test_tables_split_a_set_by_domain_and_level(measured, verifier):
    settings = Evaluation(samples=2, k=(2,))
    outcomes = measured([[RIGHT, WRONG], [RIGHT, RIGHT], [WRONG, NONE]], settings)
    labels = [("algebra", 2), ("geometry", 10), ("algebra", None)]
    outcomes = [
        dataclasses.replace(o, problem=dataclasses.replace(o.problem, domain=domain, difficulty=level))
        for o, (domain, level) in zip(outcomes, labels, strict=True)
    ]
    voted = votes(outcomes, settings, verifier)
    found = tables(outcomes, settings, voted)
    assert {kind: list(parts) for kind, parts in found.items()} == {
        "domain": ["algebra", "geometry"],
        "level": ["2", "10"],
    }
    assert (
        found["domain"]["algebra"]["avg@2"]["value"] == 0.25 and found["domain"]["algebra"]["cons@2"]["value"] == 0.25
    )
    assert found["domain"]["algebra"]["pass@2"]["problems"] == 2 and found["level"]["10"]["avg@2"]["value"] == 1.0
    assert tables(outcomes[1:2], settings, voted) == {}
    row = labelled("s", outcomes[1], voted)
    assert (row["set"], row["domain"], row["level"], row["cons"], row["correct"]) == ("s", "geometry", 10, 1.0, 2)
