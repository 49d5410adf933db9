"""Splits by problem, in an order that depends on the seed and each problem's text alone.

Each problem's rank is sha256(seed, folded text). A split takes the next problems of the smallest rank, so the
order of the input, duplicates and traces don't matter. Sizes are fixed counts: a set that grows keeps every
pair of problems in the same order, but new problems of small rank push as many others over a split's end,
into the next one. To freeze a held-out set for good, write it to a file and name it under `data.evaluation`.

A problem whose words (letters and digits, without signs) are those of a held-out problem is left out of
everything that comes later, so that no training problem is a held-out one in other punctuation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from vibethinker.data.decontamination import words

_SPACE = re.compile(r"\s+")
_SPACE_AT_SIGN = re.compile(r" ?([^\w ]) ?")


class HasText(Protocol):
    """Anything with a problem's text."""

    @property
    def text(self) -> str: ...


Item = TypeVar("Item", bound=HasText)


def fold(text: str) -> str:
    """The text by which two problems are the same: case and spacing are ignored, signs are not."""
    return _SPACE_AT_SIGN.sub(r"\1", _SPACE.sub(" ", text.strip().lower()))


def seeded_order(items: Iterable[Item], seed: int) -> list[Item]:
    """The items by rank."""
    return sorted(items, key=lambda item: hashlib.sha256(f"{seed}:{fold(item.text)}".encode()).digest())


def hold_out(ordered: Sequence[Item], count: int, held: set[str]) -> tuple[list[Item], list[Item]]:
    """Take the first `count` items whose words aren't those of an item held out before.

    Args:
        ordered: items in the order of `seeded_order`.
        count: how many to take; fewer are taken where there are fewer.
        held: signatures of all problems held out so far; those taken now are added.

    Returns:
        The items taken, and all others in order. Of these, the ones whose signature is in `held` belong in no
        split.
    """
    taken: list[Item] = []
    rest: list[Item] = []
    for item in ordered:
        if len(taken) < count and (key := signature(item.text)) not in held:
            held.add(key)
            taken.append(item)
        else:
            rest.append(item)
    return taken, rest


def signature(text: str) -> str:
    """The folded words of a text in order; for a text without any, the folded text itself."""
    return " ".join(words(text)) or fold(text)
