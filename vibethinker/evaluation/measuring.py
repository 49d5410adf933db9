"""Draw n samples a problem, grade them, and keep what the estimators and the reader need.

Probing, the evaluation step and the commands `probe` and `evaluate` all measure through `measure`, so equal
settings mean equal numbers. A sample whose verifier failed counts neither for nor against: it is left out of
the problem's n.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vibethinker.data.prompts import all_prompt_ids
from vibethinker.data.schema import Problem
from vibethinker.evaluation.consensus import consensus
from vibethinker.evaluation.estimators import bootstrap, pass_at_k
from vibethinker.generation import Completion, Engine
from vibethinker.settings import Evaluation, Probing, Prompts
from vibethinker.verification import Item, Verdict, Verifier

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vibethinker.generation.kept import KeptEngine

Score = dict[str, float | int]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outcome:
    """One problem with its graded samples, completion by completion."""

    problem: Problem
    completions: tuple[Completion, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def samples(self) -> int:
        """Samples that count, n: those whose verifier did not fail."""
        return sum(verdict.counts is not None for verdict in self.verdicts)

    @property
    def correct(self) -> int:
        """Samples that are right, c."""
        return sum(verdict.counts is True for verdict in self.verdicts)

    @property
    def left_out(self) -> int:
        """Samples whose verifier failed."""
        return len(self.verdicts) - self.samples

    @property
    def without_room(self) -> bool:
        """Whether the prompt fills the model's positions, so that nothing could be answered."""
        return not any(completion.tokens for completion in self.completions)

    @property
    def truncated(self) -> float:
        """Share of the completions that ended at the length limit."""
        return sum(completion.truncated for completion in self.completions) / len(self.completions)

    @property
    def mean_tokens(self) -> float:
        """Mean length of the completions, in tokens."""
        return sum(completion.tokens for completion in self.completions) / len(self.completions)

    def row(self) -> dict[str, Any]:
        """What outcomes.jsonl keeps."""
        return {
            "id": self.problem.id,
            "correct": self.correct,
            "samples": self.samples,
            "verdicts": [verdict.verdict for verdict in self.verdicts],
            "tokens": [completion.tokens for completion in self.completions],
            "truncated": [completion.truncated for completion in self.completions],
        }

    def generations(self) -> dict[str, Any]:
        """What generations.jsonl keeps, for people to read."""
        return {
            "id": self.problem.id,
            "problem": self.problem.problem,
            "gold": self.problem.answer,
            "samples": [
                {
                    "text": completion.text,
                    "extracted": verdict.extracted,
                    "verdict": verdict.verdict,
                    "tokens": completion.tokens,
                    "truncated": completion.truncated,
                }
                for completion, verdict in zip(self.completions, self.verdicts, strict=True)
            ],
        }


def measure(
    engine: Engine | KeptEngine,
    tokenizer: PreTrainedTokenizerBase,
    verifier: Verifier,
    problems: Sequence[Problem],
    settings: Probing | Evaluation,
    prompts: Prompts,
    seed: int,
    progress: Progress | None = None,
    first: int = 0,
    reward: str | None = None,
) -> list[Outcome]:
    """Sample and grade `settings.samples` completions of each problem, in the problems' order; what has been sampled is
    graded while the rest is.

    Args:
        seed: of the samples; see `derived_seed`.
        progress: called with sampled and all completions, and whether it is `sampling` or `grading`.
        first: see `Engine.generate`.
        reward: see `grading_item`.
    """
    report = progress or (lambda done, total, text: None)
    grading = verifier.submit([])
    places: dict[tuple[int, int], int] = {}

    def ended(index: int, sample: int, completion: Completion) -> None:
        places[index, sample] = grading.add(grading_item(problems[index], completion.text, reward))

    sampled = engine.generate(
        all_prompt_ids(tokenizer, problems, prompts),
        samples=settings.samples,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=seed,
        first=first,
        progress=lambda done, total: report(done, total, "sampling"),
        ended=ended,
    )
    count = len(problems) * settings.samples
    report(count, count, "grading")
    verdicts = grading.verdicts(lambda done, total: report(count, count, f"grading, {done} of {total}"))
    return [
        Outcome(problem, tuple(completions), tuple(verdicts[places[i, s]] for s in range(settings.samples)))
        for i, (problem, completions) in enumerate(zip(problems, sampled, strict=True))
    ]


def longest_sequence(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], prompts: Prompts, max_tokens: int
) -> int:
    """The longest that a prompt and its completion can be together, in tokens: what an engine needs room for."""
    return max_tokens + max(map(len, all_prompt_ids(tokenizer, problems, prompts)), default=0)


def faults(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Sentences about problems that couldn't be measured as they should."""
    if left_out := sum(o.left_out for o in outcomes):
        yield f"the verifier failed on {left_out} samples, which are left out."
    if without_room := sum(o.without_room for o in outcomes):
        yield (
            f"{without_room} prompts fill the model's positions, so that their problems count as unanswered: use a "
            "model with more positions, base_model.rope_scaling or shorter problems."
        )


def grading_item(problem: Problem, text: str, reward: str | None = None) -> Item:
    """The verifier's item for one response: code where the problem has tests, else what `reward` names; None is
    mathematics."""
    if problem.tests is not None:
        return Item("code", text, problem.tests)
    return Item(reward or "math", text, problem.answer, problem.problem)


def pass_scores(outcomes: Sequence[Outcome], ks: Iterable[int]) -> dict[int, Score]:
    """K → the mean unbiased Pass@K over the problems with at least K samples that count, with its interval.

    Raises:
        DataError: no problem has that many.
    """
    return {
        k: score([pass_at_k(o.samples, o.correct, k) for o in outcomes if o.samples >= k], len(outcomes[0].verdicts))
        for k in ks
    }


def votes(
    outcomes: Sequence[Outcome], settings: Evaluation, verifier: Verifier, progress: Progress | None = None
) -> dict[str, float]:
    """id → the majority vote's score, of the mathematical problems with samples that count."""
    n = settings.samples

    def voting(done: int, total: int) -> None:
        if progress:
            progress(n * len(outcomes), n * len(outcomes), f"comparing answers, {done} of {total}")

    voted = [o for o in outcomes if o.samples and o.problem.tests is None]
    return dict(zip((o.problem.id for o in voted), consensus(voted, verifier, voting), strict=True))


def scores(
    outcomes: Sequence[Outcome], settings: Evaluation, voted: Mapping[str, float] | None = None
) -> dict[str, Score]:
    """metric → value, interval, problems and samples, as scores.json has them.

    `avg@n`, `pass@k` for each k, `cons@n` where there are mathematical problems, `truncated`, `mean_tokens`.

    Args:
        voted: see `votes`.
    """
    n = settings.samples
    graded = [o for o in outcomes if o.samples]
    result = {f"avg@{n}": score([o.correct / o.samples for o in graded], n)}
    result |= {f"pass@{k}": value for k, value in pass_scores(outcomes, settings.k).items()}
    if cast := [voted[o.problem.id] for o in graded if voted and o.problem.id in voted]:
        result[f"cons@{n}"] = score(cast, n)
    result["truncated"] = score([o.truncated for o in outcomes], n)
    result["mean_tokens"] = score([o.mean_tokens for o in outcomes], n)
    return result


def tables(
    outcomes: Sequence[Outcome], settings: Evaluation, voted: Mapping[str, float]
) -> dict[str, dict[str, dict[str, Score]]]:
    """`domain` and `level` → label → scores of the problems that have it, where a set has more than one label; a
    level is what the set's column of difficulty says. Labels none of whose problems could be graded are left out."""
    found = {}
    for kind, label in (("domain", _domain), ("level", _level)):
        labels = sorted({one for o in outcomes if (one := label(o)) is not None}, key=_in_order)
        if len(labels) > 1:
            parts = {one: [o for o in outcomes if label(o) == one] for one in labels}
            found[kind] = {
                one: scores(part, settings, voted)
                for one, part in parts.items()
                if max(o.samples for o in part) >= max(settings.k, default=1)
            }
    return found


def labelled(name: str, outcome: Outcome, voted: Mapping[str, float]) -> dict[str, Any]:
    """The row of outcomes.jsonl: `Outcome.row` with its set, domain and level, and the vote's score as `cons`."""
    row = {"set": name, "domain": outcome.problem.domain, "level": outcome.problem.difficulty, **outcome.row()}
    return row | ({"cons": voted[outcome.problem.id]} if outcome.problem.id in voted else {})


def _domain(outcome: Outcome) -> str | None:
    return outcome.problem.domain or None


def _level(outcome: Outcome) -> str | None:
    level = outcome.problem.difficulty
    return None if level is None else str(level)


def _in_order(label: str) -> tuple[int, str]:
    return (int(label), "") if label.isdigit() else (0, label)


def score(values: Sequence[float], samples: int) -> Score:
    """One entry of scores.json from one value a problem."""
    mean, low, high = bootstrap(values)
    return {"value": mean, "low": low, "high": high, "problems": len(values), "samples": samples}


def derived_seed(seed: int, *purpose: str) -> int:
    """A seed of its own for each purpose, so that no two sets of problems share random numbers."""
    return int.from_bytes(hashlib.sha256("/".join([str(seed), *purpose]).encode()).digest()[:8], "big")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSONL file with sorted keys: equal rows give equal bytes."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row, sort_keys=True, ensure_ascii=False) + "\n")
