"""A verifier, and an engine that says what a test has written down."""

from __future__ import annotations

import pytest

from vibethinker.data.schema import Problem
from vibethinker.generation import Completion
from vibethinker.verification import Verifier


@pytest.fixture(scope="session")
def verifier():
    with Verifier() as verifier:
        yield verifier


@pytest.fixture
def problem():
    """A function id, gold → problem."""

    def make(id: str, answer: str = "7", domain: str = "algebra") -> Problem:
        return Problem(id=id, domain=domain, problem=f"What is {id}?", source="test", licence="MIT", answer=answer)

    return make


class Scripted:
    """An engine that answers from a list of texts a prompt; an answer that ends in … is truncated."""

    def __init__(self, answers: list[list[str]]) -> None:
        self.answers = answers

    def generate(self, prompts, *, samples, max_tokens, temperature, top_p, seed, first=0, progress=None, ended=None):
        assert len(prompts) == len(self.answers) and all(len(texts) == samples for texts in self.answers)
        if progress:
            progress(len(prompts) * samples, len(prompts) * samples)
        generated = [
            [Completion(text, len(text), text.endswith("…"), tuple(range(len(text)))) for text in texts]
            for texts in self.answers
        ]
        for index, completions in reversed(list(enumerate(generated))):  # any order will do
            for sample, completion in enumerate(completions):
                ended(index, sample, completion)
        return generated


@pytest.fixture
def scripted():
    return Scripted
