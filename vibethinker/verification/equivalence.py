r"""The full comparison of single values, by latex2sympy, sympy and math-verify. Runs in a worker only: parsing can
hang.

Answers are parsed as LaTeX alone: math-verify's parser of plain expressions ends in an `eval`. Numbers are compared
by their difference, to 100 digits; expressions so at random points, which tells equal from different far faster and
surer than simplifying; equations and whatever can't be evaluated by math-verify's own comparison. Its time-outs are
switched off, as the worker is killed instead.
"""

from __future__ import annotations

import logging
import random
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy.core.relational import Relational

from vibethinker.verification import answers, literals, units

logging.getLogger("math_verify").setLevel(logging.CRITICAL)

_CONVERSION = ConversionConfig(lowercase_symbols=False)
_CLEANING = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
)
_DECIMAL = re.compile(r"(\d*)\.(\d+)")
_SEPARATOR = re.compile(r"(?<=\d)[, ](?=\d{3}(?!\d))")
# What the parser would pass over in silence.
_DROPPED = re.compile(r"\d ?(?:_|'|\^\{?(?:\\text\{)?[A-Z'])|\\equiv")
_E_NOTATION = re.compile(r"(?<=\d)[eE]([+-]?\d+)")
_NEGATIVE_ODD_ROOT = re.compile(r"\\sqrt\[(\d*[13579])\]\{-([^{}]*)\}")
_MIXED = re.compile(r"(\d+) (\d+)/(\d+)")
_SCALE = re.compile(rf" ?(?:\\text\{{)?({'|'.join(literals.SCALES)})s?\}}?")
_TOWER = re.compile(r"\d+(?:\^\d+)+")
_EXPONENT = re.compile(r"\^\{([\d^ ]+)\}")
_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")
_MOST_DIGITS = 1_000_000  # of a power of integers, which sympy computes on sight
_DIGITS = 40
_PRECISION, _TOLERANCE = 200, sympy.Rational(1, 10**100)
_TRIED_POINTS, _AGREEING_POINTS = 20, 8
_SCALES = (3, 3, 100_000, 50)  # of the points tried, one after the other
_NO_VALUE = (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError)  # as sympy says it
_TURNED = {">": "<", ">=": "<="}


class UnreadableGoldError(Exception):
    """The gold answer isn't LaTeX that the parser knows."""


def judge(gold: str, answer: str, exact: bool = True) -> str:
    """The verdict on `answer`: correct, wrong, or error where the gold answer itself can't be read.

    Without `exact` every leaf goes the long way; for the test that the short way never disagrees.
    """

    def leaves(first: str, second: str) -> answers.Decision:
        if exact and (decided := answers.exact(first, second)) is not None:
            return decided
        return answers.quantities(units.split(first), units.split(second), _equal)

    try:
        return "correct" if answers.decide(gold, answer, leaves) else "wrong"
    except UnreadableGoldError:
        return "error"
    except (RecursionError, MemoryError):
        return "wrong"  # no gold answer is so deep or large that it takes this


def _equal(gold: str, answer: str) -> bool:
    expected = _expression(gold)
    if expected is None:
        raise UnreadableGoldError(gold)
    try:
        return _equals(gold, answer, expected, _expression(answer))
    except (RecursionError, MemoryError):
        raise
    except Exception:  # of sympy, which raises all sorts: the gold could be read, so the answer is at fault
        return False


def _equals(gold: str, answer: str, expected: Any, given: Any) -> bool:
    if given is None:
        return False
    for written, other in ((gold, given), (answer, expected)):
        literal = literals.read(written)
        if literal is not None and literal.places and other.is_number:
            return _rounds_to(other, literal)
    if isinstance(expected, sympy.Expr) and isinstance(given, sympy.Expr):
        same = _same_value(expected, given)
        if same is not None:
            return same
    if isinstance(expected, Relational) or isinstance(given, Relational):
        # A name in front of a value has been dropped already: what is left says something of a variable.
        return isinstance(expected, Relational) and isinstance(given, Relational) and _same_relation(expected, given)
    return bool(verify(expected, given, timeout_seconds=None))


def _rounds_to(exact: sympy.Expr, written: literals.Literal) -> bool:
    if exact.is_Rational:
        return literals.same(literals.Literal(Fraction(int(exact.p), int(exact.q)), None), written)
    value = exact.evalf(_DIGITS)
    if not (value.is_real and value.is_finite):
        return False
    found = Fraction(str(sympy.Float(value, _DIGITS)))
    return abs(found - written.value) <= abs(found) / 10**30 or literals.rounds_to(found, written)


def _same_relation(first: Relational, second: Relational) -> bool:
    """Whether two equations or inequalities say the same: one is the other times a constant, denominators cleared."""
    sides = []
    for relation in (first, second):
        difference = relation.lhs - relation.rhs
        if isinstance(relation, sympy.GreaterThan | sympy.StrictGreaterThan):
            difference = -difference
        sides.append(difference)
    operators = {_TURNED.get(relation.rel_op, relation.rel_op) for relation in (first, second)}
    if len(operators) > 1:
        return False
    symmetric = operators <= {"==", "!="}
    if symmetric:
        sides = [sympy.fraction(sympy.together(side))[0] for side in sides]
    symbols = sorted(sides[0].free_symbols | sides[1].free_symbols, key=str)
    point = {s: sympy.Rational(3 + 2 * n, 7 + n) for n, s in enumerate(symbols)}
    ratio = (sides[0] / sides[1]).subs(point).evalf(_DIGITS)
    if not ratio.is_number or not ratio.is_finite or ratio == 0 or not (symmetric or ratio.is_positive):
        return False
    return _same_value(sides[0], sides[1] * sympy.nsimplify(ratio, rational=True)) is True


def _same_value(first: sympy.Expr, second: sympy.Expr) -> bool | None:
    """Whether two expressions have the same value wherever both have one; None where too few points have."""
    try:
        first, second = first.doit(), second.doit()
    except _NO_VALUE:
        return None
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    if not symbols:
        return _close(first, second, {})
    chance = random.Random(0)
    agreed = 0
    for attempt in range(_TRIED_POINTS):
        # Every other point is positive: some functions have values there alone.
        scale = _SCALES[attempt // 2 % len(_SCALES)]
        low = 0 if attempt % 2 else -1
        point = {s: scale * (low + sympy.Rational(chance.randrange(1, 1994), 997) / (1 + attempt % 2)) for s in symbols}
        same = _close(first, second, point)
        if same is False:
            return False
        agreed += same is True
        if agreed == _AGREEING_POINTS:
            return True
    return None


def _close(first: sympy.Expr, second: sympy.Expr, point: dict[sympy.Symbol, sympy.Expr]) -> bool | None:
    """Whether two expressions have the same value at a point; None where one has none there."""
    try:
        if not point and first.is_Rational and second.is_Rational:
            return bool(first == second)
        a, b = (expression.evalf(_DIGITS, subs=point) for expression in (first, second))
    except _NO_VALUE:
        return None
    if not (a.is_number and b.is_number) or any(part.has(sympy.nan, sympy.zoo) for part in (a, b)):
        return None
    if a.is_infinite or b.is_infinite:
        return bool(a == b)
    try:
        size = max(abs(a), abs(b))
        gap = abs((first - second).evalf(15, subs=point, maxn=_PRECISION))
        return bool(gap <= _TOLERANCE * size)
    except (TypeError, ValueError):
        return None


@lru_cache(maxsize=1024)  # the rollouts of a group share their gold
def _expression(text: str) -> Any:
    """What sympy makes of a leaf; None if it can't, or if it would be a number of millions of digits."""
    flat, before = text, ""
    while flat != before:
        flat, before = _EXPONENT.sub(r"^\1 ", flat), flat
    if any(map(_explodes, _TOWER.findall(flat))) or _DROPPED.search(text):
        return None
    written = _MIXED.sub(r"\1\\frac{\2}{\3}", _SEPARATOR.sub("", text))
    written = _NEGATIVE_ODD_ROOT.sub(r"(-\\sqrt[\1]{\2})", _E_NOTATION.sub(r"\\cdot 10^{\1}", written))
    written = _SCALE.sub(lambda m: f"\\cdot 10^{{{literals.SCALES[m[1]]}}}", written)
    exact = _DECIMAL.sub(lambda m: f"\\frac{{{m[1]}{m[2]}}}{{1{'0' * len(m[2])}}}", written)
    real = not (_IMAGINARY.search(exact) or should_treat_as_complex(exact))
    try:
        parsed = latex2sympy(
            exact,
            is_real=real,
            convert_degrees=True,
            normalization_config=_CLEANING,
            conversion_config=_CONVERSION,
        )
        if isinstance(parsed, sympy.Basic) and parsed.has(sympy.nan, sympy.zoo):
            return None
        if isinstance(parsed, sympy.Expr) and not real and "\\sum" not in text and "\\prod" not in text:
            parsed = parsed.subs({s: sympy.I for s in parsed.free_symbols if s.name == "i"})
        if isinstance(parsed, sympy.Basic):
            # Whether a text speaks of i mustn't make two variables of one.
            parsed = parsed.xreplace({s: sympy.Symbol(s.name, real=True) for s in parsed.free_symbols})
        return parsed
    except (RecursionError, MemoryError):
        raise
    except Exception:  # the parser raises bare Exceptions
        return None


def _explodes(tower: str) -> bool:
    *bases, top = map(int, tower.split("^"))
    for base in reversed(bases):
        if top * len(str(base)) > _MOST_DIGITS:
            return True
        top = base**top
    return False
