"""From written solutions to traces: only those whose final answer verifies against gold, several a problem.

Of a problem's solutions the first `data.solutions` that differ and verify are kept, in the source's order.
Maths goes through the verifier whatever its source. Generated programs don't: the generator makes the tests'
expected values and the programs together, its own tests run them, and running ten thousand programs would
cost minutes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vibethinker import verifiers
from vibethinker.data.schema import Problem, Trace
from vibethinker.data.sources import GENERATED, Candidate
from vibethinker.settings import CODE_DOMAIN, DataSettings
from vibethinker.steps import StepContext
from vibethinker.verification import Item, Verdict, extract_program


@dataclass(frozen=True)
class Draft:
    """A solution that isn't verified yet; `proven` ones are right by construction."""

    problem: Problem
    text: str
    teacher: str
    sampling: dict[str, Any] = field(default_factory=dict)
    proven: bool = False


def make_traces(
    train: Mapping[str, Sequence[Candidate]],
    data: DataSettings,
    context: StepContext,
    counts: Mapping[str, Counter[str]],
) -> dict[str, list[Trace]]:
    """domain → traces of its training problems, in the problems' order.

    Adds to each domain's `counts`: `solutions` offered, those left out because they are `unverified` or the
    verifier failed on them (`ungraded`), `traces` kept, and problems `without_trace`, which are trained on by
    reinforcement alone.
    """
    problems = [candidate.problem for candidates in train.values() for candidate in candidates]
    drafts = [
        Draft(
            c.problem,
            text,
            c.problem.source,
            proven=c.origin == GENERATED and c.problem.domain == CODE_DOMAIN,
        )
        for candidates in train.values()
        for c in candidates
        for text in dict.fromkeys(c.solutions)
    ]

    def grade(items: Sequence[Item]) -> list[Verdict]:
        return grader.grade(items, lambda done, total: context.emit.progress(done, total, "verifying traces"))

    with verifiers.of_step(context) as grader:
        kept = _verified(drafts, data.solutions, grade, counts)
        if data.teacher.model is not None:
            from vibethinker.data.teacher import ask

            lacking = [problem for problem in problems if problem.id not in kept]
            kept |= _verified(ask(lacking, data, context), data.solutions, grade, counts)
    traces: dict[str, list[Trace]] = {domain: [] for domain in train}
    for problem in problems:
        of_problem = kept.get(problem.id, [])
        traces[problem.domain] += of_problem
        counts[problem.domain]["traces"] += len(of_problem)
        counts[problem.domain]["without_trace"] += not of_problem
    return traces


def _verified(
    drafts: Sequence[Draft],
    limit: int,
    grade: Callable[[Sequence[Item]], Sequence[Verdict]],
    counts: Mapping[str, Counter[str]],
) -> dict[str, list[Trace]]:
    """problem id → its first `limit` right traces."""
    verdicts = iter(grade([_item(draft) for draft in drafts if not draft.proven]))
    kept: dict[str, list[Trace]] = {}
    for draft in drafts:
        verdict = Verdict("passed", extract_program(draft.text), 0.0) if draft.proven else next(verdicts)
        count = counts[draft.problem.domain]
        count["solutions"] += 1
        if not verdict.counts:
            count["ungraded" if verdict.counts is None else "unverified"] += 1
            continue
        traces = kept.setdefault(draft.problem.id, [])
        if len(traces) < limit:
            traces.append(_trace(draft, verdict))
    return kept


def _item(draft: Draft) -> Item:
    if draft.problem.tests is not None:
        return Item("code", draft.text, draft.problem.tests)
    return Item("math", draft.text, draft.problem.answer)


def _trace(draft: Draft, verdict: Verdict) -> Trace:
    return Trace(
        problem_id=draft.problem.id,
        domain=draft.problem.domain,
        problem=draft.problem.problem,
        text=draft.text,
        teacher=draft.teacher,
        verdict=verdict.verdict,
        answer=verdict.extracted,
        sampling=draft.sampling,
    )
