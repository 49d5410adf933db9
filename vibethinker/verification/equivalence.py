"""Mathematical equivalence by math-verify. Runs in a worker only: its parser can hang and exhaust memory.

Answers are parsed as LaTeX alone: math-verify's parser of plain expressions ends in an `eval`. Its own
time-outs are switched off, as the worker is killed instead. Its conventions hold: numbers agree to six
decimals, 50% equals both 50 and 0.5, units behind a number are dropped, `x=5` equals 5.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

logging.getLogger("math_verify").setLevel(logging.CRITICAL)
_LATEX = [LatexExtractionConfig()]


def judge(gold: str, answer: str) -> str:
    """The verdict on `answer`: correct, wrong, or error where the gold answer itself can't be read."""
    expected = _parse_gold(gold)
    if not expected:
        return "error"
    return "correct" if verify(expected, _parse(answer), timeout_seconds=None) else "wrong"


def _parse(text: str) -> list[Any]:
    return parse(f"\\boxed{{{text}}}", _LATEX, parsing_timeout=None)


# The rollouts of a group share their gold.
_parse_gold = lru_cache(maxsize=256)(_parse)
