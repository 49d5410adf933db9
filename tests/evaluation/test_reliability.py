"""Votes weighed by claims that a model checks, with replies that the tests write."""

from __future__ import annotations

import pytest

from vibethinker.evaluation.measuring import Outcome
from vibethinker.evaluation.reliability import CLAIMS, choose, judged, listed, reliability
from vibethinker.generation import Completion
from vibethinker.settings import Evaluation, Prompts
from vibethinker.verification import Verdict


class Replying:
    """An engine whose replies a function of the prompt's text makes."""

    def __init__(self, tokenizer, reply) -> None:
        self.tokenizer, self.reply, self.seen = tokenizer, reply, []

    def generate(self, prompts, *, samples, max_tokens, temperature, top_p, seed, progress=None):
        texts = [self.tokenizer.decode(ids) for ids in prompts]
        self.seen.append((texts, temperature, top_p, seed))
        return [[Completion(self.reply(text), 3, False, ())] * samples for text in texts]


@pytest.fixture
def outcome(problem):
    """A function answers → outcome of a problem whose gold is 7; None answers nothing."""

    def make(*answers):
        texts = ["nothing …" if a is None else f"<think>…</think>Because of it, \\boxed{{{a}}}" for a in answers]
        verdicts = [Verdict("no_answer" if a is None else "correct" if a == "7" else "wrong", a, 0.0) for a in answers]
        completions = [Completion(text, 10, a is None, ()) for text, a in zip(texts, answers, strict=True)]
        return Outcome(problem("p"), tuple(completions), tuple(verdicts))

    return make


SETTINGS = Evaluation(samples=5, k=(1,), temperature=0.7, top_p=0.9)


def test_the_answer_whose_claims_are_upheld_wins_over_the_majority(outcome, verifier, tiny_tokenizer):
    one = outcome("1/2", "0.5", "\\frac12", "7", None)

    def reply(text):
        if "List the" in text:
            kind = "sound" if "boxed{7}" in text else "shaky"
            return "<think>hm</think>\n" + "\n".join(f"{n}. The {kind} claim {n}" for n in range(1, 8))
        sound = "The sound claim" in text or "claim 1\n" in text
        return f"I checked. \\boxed{{{int(sound)}}}"

    engine = Replying(tiny_tokenizer, reply)
    found = reliability(engine, tiny_tokenizer, [one], SETTINGS, Prompts(system="Be brief."), 3)
    assert found.upheld == [[1, 1, 1, 5, None]] and found.weights() == [[1, 1, 1, 3125, 0]]
    assert (found.claims.requests, found.judgements.requests) == (4, 4 * CLAIMS)
    assert found.claims.completion_tokens == 12 and found.judgements.prompt_tokens > found.claims.prompt_tokens
    asked, judging = engine.seen
    assert all("Be brief." in text and "What is p?" in text for text in (*asked[0], *judging[0]))
    assert asked[1:3] == judging[1:3] == (0.7, 0.9) and asked[3] != judging[3]
    assert not any("boxed{7}" in text or "Because of it" in text for text in judging[0]), "a claim is judged alone"
    majority, claims = choose([one], found, verifier, 5)
    assert (majority["value"], claims["value"]) == (0.0, 1.0) and claims["samples"] == 5


def test_where_nothing_is_upheld_the_majority_decides(outcome, verifier, tiny_tokenizer):
    some = [outcome("7", "7", "8"), outcome("7", "8", "8")]
    for reply in ("no list", "1. A claim"):
        found = reliability(
            Replying(tiny_tokenizer, lambda _, r=reply: r), tiny_tokenizer, some, SETTINGS, Prompts(), 3
        )
        assert found.weights() == [[0] * 3] * 2
        majority, claims = choose(some, found, verifier, 3)
        assert majority == claims and claims["value"] == 0.5


def test_claims_and_judgements_are_taken_from_what_a_model_writes():
    assert listed("Claims:\n1. One\n 2) Two\n- Three\n* \n10: Ten\nnot this") == ["One", "Two", "Three", "Ten"]
    assert listed("<think>1. no</think>1. yes") == ["yes"] and listed("") == []
    assert len(listed("\n".join(f"{i}. c" for i in range(99)))) == CLAIMS and len(listed("1. " + "x" * 9999)[0]) == 600
    for text, expected in (
        ("\\boxed{1}", 1), ("\\boxed{0}", 0), ("\\boxed{11}", 0), ("\\boxed{1} then \\boxed{0}", 0), ("it is 1", 1),
        ("1 or rather 0", 0), ("10", 0), ("1.5", 0), ("true", 0), ("", 0), ("<think>1</think> no", 0),
    ):  # fmt: skip
        assert judged(text) == expected, text


def test_braces_in_problems_and_claims_stay_what_they_are(outcome, tiny_tokenizer):
    one = outcome("{0}", "7")
    engine = Replying(tiny_tokenizer, lambda text: "1. {problem} \\boxed{1}" if "List the" in text else "\\boxed{1}")
    found = reliability(engine, tiny_tokenizer, [one], SETTINGS, Prompts(), 3)
    assert found.upheld == [[1, 1]] and all("{problem} \\boxed{1}" in text for text in engine.seen[1][0])
