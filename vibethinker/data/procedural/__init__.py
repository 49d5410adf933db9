"""Procedural problems: exact, seeded, with several genuinely different written solutions each.

They feed the embedded base, a model of some 0.4 M parameters that sees about half a million tokens a
domain, so texts are short, phrasings few, numbers small, and every step is one operation of the times
tables or of addition and subtraction below 144 (difficulty 1; 2 and 3 have bigger numbers or more steps).
Each domain has a few families, some nearly always solved and some rarely, and the solutions of a problem
differ in how easily a model gets them right: this is the spread that probing and reinforcement learning
live on. `vibethinker.plugins` has the domains' names, those that others bring among them.

Algorithm: the families of a domain take turns; each draws until it has a problem whose text is new and
which has at least two different solutions. A family that finds nothing new any more is exhausted and the
others go on.

Texts either have fewer than ten words or carry all their numbers in every ten, so that decontamination by
word 10-grams does not take two problems of one template for copies.

Left out: reasoning-gym. None of its families holds worked solutions, the geometry and calculus ones carry
30 to 140 words of instructions, and the short ones (simple_equations) ask what `algebra.linear` asks.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from random import Random

from vibethinker import plugins
from vibethinker.data.procedural.common import Draft, Family
from vibethinker.data.schema import Problem
from vibethinker.errors import DataError

DIFFICULTIES: tuple[int, ...] = (1, 2, 3)

# A family is exhausted after this many draws without a new problem: under 1 % of its space is left then.
_PATIENCE = 400


@dataclass(frozen=True)
class ProceduralProblem:
    """A problem and its solutions, at least two, each a full completion: reasoning, then the boxed answer
    or code."""

    problem: Problem
    solutions: tuple[str, ...]


def generate(domain: str, count: int, seed: int, difficulty: int = 1) -> list[ProceduralProblem]:
    """`count` problems of a domain, their texts all distinct; the same arguments give the same problems.

    A problem's id is a digest of its text, so the same problem has the same id whatever the seed. Raises
    ConfigurationError for an unknown domain, or a plugin's that can't be imported, and DataError for an unknown
    difficulty, and when the domain has fewer than `count` problems.
    """
    families: list[Family] = list(plugins.load(plugins.DOMAINS, domain))
    if difficulty not in DIFFICULTIES:
        raise DataError(f"difficulty {difficulty!r} does not exist; choose 1, 2 or 3")
    rng = Random(f"{domain}:{difficulty}:{seed}")
    problems: dict[str, ProceduralProblem] = {}
    while families and len(problems) < count:
        for family in tuple(families):
            draft = _new_draft(family, rng, difficulty, problems)
            if draft is None:
                families.remove(family)
            elif len(problems) < count:
                problems[draft.text] = _finish(draft, domain, difficulty)
    if len(problems) < count:
        raise DataError(
            f"{domain} has only about {len(problems)} distinct problems at difficulty {difficulty}, "
            f"so {count} cannot be made; ask for fewer or for another difficulty"
        )
    return list(problems.values())


def _new_draft(family: Family, rng: Random, difficulty: int, known: dict[str, ProceduralProblem]) -> Draft | None:
    for _ in range(_PATIENCE):
        draft = family(rng, difficulty)
        if draft is not None and draft.text not in known and len(set(draft.solutions)) > 1:
            return draft
    return None


def _finish(draft: Draft, domain: str, difficulty: int) -> ProceduralProblem:
    digest = hashlib.sha256(draft.text.encode()).hexdigest()[:12]
    problem = Problem(
        id=f"{domain}-{digest}",
        domain=domain,
        problem=draft.text,
        source="procedural",
        licence="MIT",
        answer=draft.answer,
        tests=draft.tests,
        difficulty=difficulty,
    )
    return ProceduralProblem(problem, tuple(dict.fromkeys(draft.solutions)))
