"""Claim-level reliability at test time [3B]: which of many answers rests on claims that the model itself upholds.

Of each of a problem's K samples the model writes down the CLAIMS claims that its answer rests on most; each is judged
by the same model, alone and without the rest, as 1 or 0; the sample weighs r = (mean of the judgements)^POWER, and the
answer of the largest Σ r over equivalent answers is chosen. A claim that isn't written or not judged counts 0. Where
all samples of a problem that answer weigh 0, each counts once, which is the majority vote.

Samples without an answer don't vote, so they are asked nothing. What a model writes here is data: it is put into
prompts and searched for numbers, nothing more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vibethinker.data.prompts import conversation_ids
from vibethinker.evaluation.consensus import consensus
from vibethinker.evaluation.measuring import Outcome, Score, derived_seed, score
from vibethinker.generation import Completion
from vibethinker.settings import Evaluation, Prompts
from vibethinker.verification import Verifier
from vibethinker.verification.extraction import after_thinking, extract_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLAIMS, POWER = 5, 5
CLAIM_TOKENS, JUDGEMENT_TOKENS = 1024, 1024  # longest list of claims, longest judgement
_SOLUTION, _CLAIM = 6000, 600  # characters of a solution's end, and of a claim, that are shown
_ITEM = re.compile(r"^[ \t]*(?:\d{1,2}[.):]|[-*•])[ \t]+(.+)$", re.MULTILINE)
_NUMBER = re.compile(r"(?<![\d.])[01](?![\d.])")

_ASK_CLAIMS = """Here is a problem and a solution of it.

Problem:
{problem}

Solution:
{solution}

List the {count} claims that the solution's final answer rests on most. Each must be a statement that can be checked \
without the solution. Write them as a numbered list, one a line, and nothing else."""

_ASK_JUDGEMENT = """Here is a problem and a claim about it.

Problem:
{problem}

Claim:
{claim}

Check the claim step by step. End with \\boxed{{1}} if it is true, or with \\boxed{{0}} if it is false or you can't \
tell."""

Progress = Callable[[int, int, str], None]


class Sampler(Protocol):
    """What samples completions: an `Engine`, or one that keeps what it samples."""

    def generate(self, prompts: Sequence[Sequence[int]], **how: Any) -> list[list[Completion]]:
        """See `Engine.generate`."""


@dataclass(frozen=True)
class Cost:
    """Tokens of prompts and of completions, and how many requests they were for."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def row(self) -> dict[str, int]:
        """As JSON has it."""
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }


@dataclass(frozen=True)
class Reliability:
    """What the claims of a set's problems came to.

    Attributes:
        upheld: of each problem's samples, claims judged 1; None of samples that weren't asked.
        claims, judgements: what asking did cost.
    """

    upheld: list[list[int | None]]
    claims: Cost
    judgements: Cost

    def weights(self) -> list[list[int]]:
        """r of each sample, times CLAIMS^POWER so that it is whole."""
        return [[(count or 0) ** POWER for count in some] for some in self.upheld]


def reliability(
    engine: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    outcomes: Sequence[Outcome],
    settings: Evaluation,
    prompts: Prompts,
    seed: int,
    progress: Progress | None = None,
) -> Reliability:
    """Ask for the claims of all samples that answer, and for a judgement on each.

    Args:
        settings: temperature and nucleus.
        seed: see `derived_seed`.
    """
    report = progress or (lambda done, total, text: None)

    def ask(texts: Sequence[str], longest: int, purpose: str, doing: str) -> tuple[list[str], Cost]:
        asked = [_conversation(text, prompts) for text in texts]
        ids = conversation_ids(tokenizer, asked, prompts)
        found = engine.generate(
            ids,
            samples=1,
            max_tokens=longest,
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=derived_seed(seed, purpose),
            progress=lambda done, total: report(done, total, doing),
        )
        cost = Cost(len(ids), sum(map(len, ids)), sum(one.tokens for [one] in found))
        return [one.text for [one] in found], cost

    places = [
        (i, s)
        for i, outcome in enumerate(outcomes)
        for s, completion in enumerate(outcome.completions)
        if extract_answer(completion.text, outcome.problem.problem)
    ]
    texts = [
        _ASK_CLAIMS.format(
            problem=outcomes[i].problem.problem,
            solution=after_thinking(outcomes[i].completions[s].text).strip()[-_SOLUTION:],
            count=CLAIMS,
        )
        for i, s in places
    ]
    lists, claims = ask(texts, CLAIM_TOKENS, "claims", "listing claims")
    single = [(place, claim) for place, text in zip(places, lists, strict=True) for claim in listed(text)]
    texts = [_ASK_JUDGEMENT.format(problem=outcomes[i].problem.problem, claim=claim) for (i, _), claim in single]
    answers, judgements = ask(texts, JUDGEMENT_TOKENS, "judgements", "judging claims")
    upheld: list[list[int | None]] = [[None] * len(outcome.completions) for outcome in outcomes]
    for i, s in places:
        upheld[i][s] = 0
    for ((i, s), _), text in zip(single, answers, strict=True):
        upheld[i][s] = (upheld[i][s] or 0) + judged(text)
    return Reliability(upheld, claims, judgements)


def listed(text: str) -> list[str]:
    """The first CLAIMS claims of a list that a model wrote."""
    return [claim.strip()[:_CLAIM] for claim in _ITEM.findall(after_thinking(text)) if claim.strip()][:CLAIMS]


def judged(text: str) -> int:
    """1 where a judgement says that its claim is true, else 0: what stands in its box, else its last 0 or 1."""
    answer = extract_answer(text)
    if answer is not None:
        return int(answer.strip() == "1")
    numbers = _NUMBER.findall(after_thinking(text))
    return int(bool(numbers) and numbers[-1] == "1")


def choose(outcomes: Sequence[Outcome], found: Reliability, verifier: Verifier, samples: int) -> tuple[Score, Score]:
    """The scores of the majority vote and of the claims' over the same samples, of mathematical problems.

    Raises:
        DataError: no sample could be graded.
    """
    graded = [(o, w) for o, w in zip(outcomes, found.weights(), strict=True) if o.samples]
    some = [outcome for outcome, _ in graded]
    majority = consensus(some, verifier)
    weighted = consensus(some, verifier, weights=[weights for _, weights in graded])
    return score(majority, samples), score(weighted, samples)


def _conversation(text: str, prompts: Prompts) -> list[dict[str, str]]:
    system = [] if prompts.system is None else [{"role": "system", "content": prompts.system}]
    return [*system, {"role": "user", "content": text}]
