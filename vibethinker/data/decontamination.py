"""Removal of training problems that are, or quote, an evaluation problem (docs/recipe.md, phase 0).

Prompt templates are taken off first (`templates`), since matching whole prompts flags every row. Then a training text
is held against every evaluation problem in three ways:

1. *n-grams*: one of its word n-grams occurs in an evaluation problem; both need at least n words. [1.5B: n = 10]
2. *verbatim*: it contains a whole evaluation problem of at least n words, whatever LaTeX's layout (`folding.tokens`).
3. *short*: it contains a whole evaluation problem of fewer than n words, and nothing else but words: a number or
   a variable beside it makes it another problem. One of fewer than three words must be all of it.

Each hit is of a class: `near_copy`, where half of the n-grams of either text are shared, or the whole text;
`shared_passage`, where fewer are; `stock_phrase`, where all that is shared lies within stock phrases of the field,
which unrelated problems have in common word by word. The last are hits only where the whitelist is off.

Left out: near copies that share no n-gram (reworded or translated problems), and drawings, which are compared
like text, so that two problems about one diagram count as overlapping.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from vibethinker.data.folding import ngrams, tokens, words
from vibethinker.data.templates import NO_TEMPLATES, Templates

Class = Literal["near_copy", "shared_passage", "stock_phrase"]

# Sentences that say how to answer, or set the usual scene, and that unrelated problems share word by word, whatever
# letters their variables have.
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
    r"can be written as m\sqrt{n} where m and n are positive integers and n is not divisible by the square of any "
    r"prime. Find m+n",
    r"can be written as \frac{a\sqrt{b}}{c} where a, b, and c are positive integers, a and c are relatively prime, and "
    r"b is not divisible by the square of any prime. Find a+b+c",
    r"can be expressed as \frac{m\sqrt{n}}{p} where m, n, and p are positive integers, m and p are relatively prime, "
    r"and n is not divisible by the square of any prime number. Find m+n+p",
    r"\frac{m}{n} where m and n are relatively prime integers. Find m+n",
    r"\frac{m}{n} where m and n are positive integers with a greatest common divisor of 1. What is m+n",
    r"Let a and b be positive real numbers such that",
    r"be positive real numbers. Find the minimum value of \frac",
    r"Find the sum of all positive integers n such that",
    r"Write your answer in the form (x, y), where",
    r"in rectangular coordinates to polar coordinates. Enter your answer in the form",
    r"Is f(x) even, odd, or neither? Enter odd, even, or neither",
    r"A palindrome is a number that reads the same forwards and backwards",
    r"Two seatings are considered the same if one is a rotation of the other",
    r"How many cubic inches are in the volume of the",
    r"How many degrees are in the measure of the smaller angle",
    r"What is the probability that the product of the two numbers",
    r"What is the probability that the sum of the numbers",
    r"1, 2, 3, 4, 5, 6, 7, 8, 9, 10",
    r"A, B, C, D, E, F, G, H, I, J",
    # MBPP words most of its problems so.
    r"Write a python function to check whether the given number is",
    r"Write a python function to check whether the given number can be",
    r"Write a python function to check whether the given string is",
    r"Write a python function to check whether the given two",
    r"Write a python function to check whether the count of",
    r"Write a python function to check whether all the",
    r"Write a python function to find the minimum number of",
    r"Write a python function to find the length of the",
    r"Write a python function to find the sum of",
    r"Write a python function to count the number of",
    r"Write a function to check whether the given month number contains",
)


_NEAR = 0.5  # share of n-grams from which a hit is a near copy
_ANCHOR = 8  # tokens by which a verbatim copy is looked for
_LETTER = re.compile(r"\b[a-z]\b")
_SHORTEST = 3  # words of an evaluation problem that a longer text may contain


@dataclass(frozen=True)
class Overlap:
    """What a training problem shares with an evaluation problem.

    Attributes:
        kind: the hit's class.
        shared: the first shared n-gram, or the whole evaluation problem, folded.
        share: shared n-grams of all n-grams of the training problem; 1 for a whole problem.
        evaluation: index of the evaluation problem that shares most.
    """

    kind: Class
    shared: str
    share: float
    evaluation: int


class Decontaminator:
    """An index of evaluation problems that training problems are looked up in; its size grows with theirs."""

    def __init__(
        self,
        evaluation: Iterable[str],
        *,
        n: int = 10,
        templates: Templates = NO_TEMPLATES,
        stock_phrases: Iterable[str] = STOCK_PHRASES,
    ) -> None:
        self.n = n
        self.templates = templates
        self._stock = {_any_letters(gram) for phrase in stock_phrases for gram in ngrams(words(phrase), n)}
        self._grams: dict[str, int] = {}
        self._counts: list[int] = []
        self._longs: dict[str, _Wholes] = {}
        self._shorts: dict[str, _Wholes] = {}
        self._wholes: dict[str, int] = {}
        self._starts: set[tuple[str, str]] = set()
        for index, text in enumerate(evaluation):
            body = templates.body(text)
            grams = ngrams(words(body), n)
            self._counts.append(len(grams))
            for gram in grams:
                self._grams.setdefault(gram, index)
            self._add_whole(tokens(body), index)
        for wholes in (*self._longs.values(), *self._shorts.values()):
            wholes.sort()

    def _add_whole(self, parts: list[str], index: int) -> None:
        whole = " ".join(parts)
        if not whole or whole in self._wholes:
            return
        self._wholes[whole] = index
        if len(parts) >= _SHORTEST:
            self._starts.add((parts[0], parts[1]))
        if len(parts) >= max(self.n, _ANCHOR):
            self._longs.setdefault(" ".join(parts[:_ANCHOR]), _Wholes()).add(parts)
        elif len(parts) >= _SHORTEST:
            self._shorts.setdefault(" ".join(parts[:_SHORTEST]), _Wholes()).add(parts)

    def overlap(self, text: str) -> Overlap | None:
        """What `text` shares with the evaluation problems, stock phrases included; None where it is nothing."""
        body = self.templates.body(text)
        if (found := self._whole(tokens(body))) is not None:
            return found
        grams = ngrams(words(body), self.n)
        shared = [gram for gram in grams if gram in self._grams]
        if not shared:
            return None
        telling = [gram for gram in shared if _any_letters(gram) not in self._stock]
        among = telling or shared
        by_problem: dict[int, int] = {}
        for gram in among:
            index = self._grams[gram]
            by_problem[index] = by_problem.get(index, 0) + 1
        best = max(by_problem, key=lambda index: (by_problem[index], -index))
        share = by_problem[best] / min(len(grams), self._counts[best])
        kind: Class = "stock_phrase" if not telling else "near_copy" if share >= _NEAR else "shared_passage"
        return Overlap(kind, next(g for g in among if self._grams[g] == best), len(among) / len(grams), best)

    def _whole(self, parts: list[str]) -> Overlap | None:
        """A whole evaluation problem within the text, or all of it."""
        joined = " ".join(parts)
        if joined and (index := self._wholes.get(joined)) is not None:
            return Overlap("near_copy", joined, 1.0, index)
        odd: tuple[int, int] | None = None
        for at in [at for at, pair in enumerate(pairwise(parts)) if pair in self._starts]:
            longs = self._longs.get(" ".join(parts[at : at + _ANCHOR]))
            if longs and (held := longs.at(parts, at)):
                return self._copy_of(held)
            shorts = self._shorts.get(" ".join(parts[at : at + _SHORTEST]))
            if shorts and (held := shorts.at(parts, at)):
                odd = odd or _odd(parts)
                alone = [whole for whole in held if at <= odd[0] and odd[1] <= at + whole.count(" ")]
                if alone:
                    return self._copy_of(alone)
        return None

    def _copy_of(self, held: list[str]) -> Overlap:
        """The hit of a text that holds these evaluation problems; the first of them counts."""
        whole = min(held, key=self._wholes.__getitem__)
        return Overlap("near_copy", whole, 1.0, self._wholes[whole])


class _Wholes:
    """Problems that start alike, among which those that a text holds are found by bisection, however many there are.

    All problems that one text starts with start each other too, so each leads to the longest that it starts with.
    """

    def __init__(self) -> None:
        self._texts: list[str] = []  # each with a space behind, so that none ends within a token
        self._shorter: list[int | None] = []
        self._longest = 0  # tokens

    def add(self, parts: list[str]) -> None:
        self._texts.append(" ".join(parts) + " ")
        self._longest = max(self._longest, len(parts))

    def sort(self) -> None:
        """Make it ready to be asked."""
        self._texts.sort()
        chain: list[int] = []
        for index, text in enumerate(self._texts):
            while chain and not text.startswith(self._texts[chain[-1]]):
                chain.pop()
            self._shorter.append(chain[-1] if chain else None)
            chain.append(index)

    def at(self, parts: list[str], at: int) -> list[str]:
        """The problems that stand at a position of a text."""
        text = " ".join(parts[at : at + self._longest]) + " "
        # The last text that isn't behind this one in order leads to all that this one starts with.
        index: int | None = bisect_right(self._texts, text) - 1
        found = []
        while index is not None and index >= 0:
            if text.startswith(self._texts[index]):
                found.append(self._texts[index][:-1])
            index = self._shorter[index]
        return found


def _odd(parts: list[str]) -> tuple[int, int]:
    """Where the first and the last token of a text stand that are no words: a short problem stands alone where it has
    them all."""
    found = [at for at, part in enumerate(parts) if not (part in ("a", "i") or (len(part) > 1 and part.isalpha()))]
    return (found[0], found[-1]) if found else (len(parts), -1)


def _any_letters(gram: str) -> str:
    return _LETTER.sub("x", gram)
