"""Removal of training problems that share words with an evaluation problem (RECIPE.md, Phase 0).

Texts are folded to their words: lower-case, every punctuation mark and symbol a space. A problem of at least
n words is contaminated if one of its word n-grams occurs in an evaluation problem; a shorter one if the whole
of it equals a whole evaluation problem. [1.5B: n = 10]

Only problem bodies are compared. A sentence that opens or closes at least half of a file's problems is that
file's prompt template, and is taken off wherever a text begins or ends with it, on both sides. n-grams that
lie within a stock phrase of the field don't count.

Left out: near copies that share no n-gram (reworded or translated problems), and drawings, which are compared
like text, so that two problems about one diagram count as overlapping.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Sentences that say how to answer, or set the usual scene, and that unrelated problems share word by word.
STOCK_PHRASES: tuple[str, ...] = (
    r"can be expressed as \frac{m}{n} where m and n are relatively prime positive integers, find m+n",
    r"can be written as \frac{m}{n} where m and n are relatively prime positive integers, what is m+n",
    r"the probability is \frac{m}{n} where m and n are relatively prime positive integers, find m+n",
    r"is m/n, where m and n are relatively prime positive integers. Find m+n",
    r"is \tfrac{m}{n}, where m and n are relatively prime positive integers. Find m+n",
    r"where a, b and c are positive integers and b is not divisible by the square of any prime",
    r"What is the number of square centimeters in the area of the",
    r"What is the number of square inches in the area of the",
    r"What is the number of square units in the area of the",
    r"Express your answer as a common fraction in simplest radical form",
    r"Express your answer as a decimal to the nearest hundredth",
    r"Enter your answer in the form Ax + By + Cz + D = 0, where A, B, C, D are integers such that A > 0 and "
    r"\gcd(|A|,|B|,|C|,|D|) = 1",
    r"Enter your answer in the form (r, \theta), where r > 0 and 0 \le \theta < 2 \pi",
    r"Enter your answer in the form (\rho,\theta,\phi), where \rho > 0, 0 \le \theta < 2 \pi, and "
    r"0 \le \phi \le \pi",
    r"(A) Line (B) Circle (C) Parabola (D) Ellipse (E) Hyperbola Enter the letter of the correct option",
    r"(A) Line (B) Circle (C) Plane (D) Sphere (E) Cylinder (F) Cone Enter the letter of the correct option",
    r"Let x, y, and z be positive real numbers such that",
    r"Let a, b, and c be positive real numbers such that",
)

_NOT_WORD = re.compile(r"[\W_]+")
_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+|\s*\n\s*")
# Fewer rows say nothing about what is a template and what is a coincidence.
_TEMPLATE_ROWS = 8


def words(text: str) -> list[str]:
    """The folded words of a text."""
    return _NOT_WORD.sub(" ", text.lower()).split()


def ngrams(tokens: Sequence[str], n: int) -> list[str]:
    """The word n-grams in order, each joined by spaces; none where there are fewer than n words."""
    return [" ".join(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


@dataclass(frozen=True)
class Templates:
    """Sentences that problem sets put before and after each problem."""

    opening: frozenset[str] = frozenset()
    closing: frozenset[str] = frozenset()

    def body(self, text: str) -> str:
        """The text without its template sentences, or all of it where nothing else would be left."""
        parts = _sentences(text)
        while len(parts) > 1 and parts[0] in self.opening:
            parts = parts[1:]
        while len(parts) > 1 and parts[-1] in self.closing:
            parts = parts[:-1]
        return " ".join(parts)


def find_templates(sets: Iterable[Sequence[str]]) -> Templates:
    """The sentences that open, or close, at least half of the texts of one of the sets.

    Found one at a time, so that a template of several sentences is taken off wholly.
    """
    opening: set[str] = set()
    closing: set[str] = set()
    for texts in sets:
        split = [_sentences(text) for text in texts]
        for at, found in ((0, opening), (-1, closing)):
            remaining = split
            while (sentence := _common(remaining, at)) is not None:
                found.add(sentence)
                remaining = [_without(parts, sentence, at) for parts in remaining]
    return Templates(frozenset(opening), frozenset(closing))


def _sentences(text: str) -> list[str]:
    return [part for part in _SENTENCE_END.split(text.strip()) if part]


def _common(split: list[list[str]], at: int) -> str | None:
    """The sentence at the start (0) or end (-1) of at least half of the texts, beside which something is
    left."""
    if len(split) < _TEMPLATE_ROWS:
        return None
    counts = Counter(parts[at] for parts in split if len(parts) > 1)
    sentence, count = max(counts.items(), key=lambda item: (item[1], item[0]), default=("", 0))
    return sentence if 2 * count >= len(split) else None


def _without(parts: list[str], sentence: str, at: int) -> list[str]:
    if len(parts) < 2 or parts[at] != sentence:
        return parts
    return parts[1:] if at == 0 else parts[:-1]


@dataclass(frozen=True)
class Overlap:
    """What a training problem shares with an evaluation problem.

    Attributes:
        shared: the first shared n-gram, or the whole folded text of a short problem.
        count: how many of the problem's n-grams are shared; 1 for a short problem.
        total: how many n-grams the problem has; 1 for a short problem. count near total is a near copy.
        evaluation: index of the first evaluation problem that holds `shared`.
    """

    shared: str
    count: int
    total: int
    evaluation: int


class Decontaminator:
    """An index of evaluation problems that training problems are looked up in."""

    def __init__(
        self,
        evaluation: Iterable[str],
        *,
        n: int = 10,
        templates: Templates = Templates(),
        stock_phrases: Iterable[str] = STOCK_PHRASES,
    ) -> None:
        self.n = n
        self.templates = templates
        stock = {gram for phrase in stock_phrases for gram in ngrams(words(phrase), n)}
        self._grams: dict[str, int] = {}
        self._wholes: dict[str, int] = {}
        for index, text in enumerate(evaluation):
            tokens = words(templates.body(text))
            if len(tokens) < n:
                self._wholes.setdefault(" ".join(tokens), index)
            for gram in ngrams(tokens, n):
                if gram not in stock:
                    self._grams.setdefault(gram, index)

    def overlap(self, text: str) -> Overlap | None:
        """What `text` shares with the evaluation problems; None if it is clean."""
        tokens = words(self.templates.body(text))
        if len(tokens) < self.n:
            whole = " ".join(tokens)
            index = self._wholes.get(whole) if whole else None
            return None if index is None else Overlap(whole, 1, 1, index)
        grams = ngrams(tokens, self.n)
        shared = [gram for gram in grams if gram in self._grams]
        return Overlap(shared[0], len(shared), len(grams), self._grams[shared[0]]) if shared else None
