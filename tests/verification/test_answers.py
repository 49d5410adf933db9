"""The exact path, alone and against math-verify."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest

from vibethinker.verification.answers import decide, normalise


def quick(gold: str, answer: str) -> bool | None:
    return decide(normalise(gold), normalise(answer))


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "18"),
        ("18", " 18. "),
        ("18", "$18$"),
        ("18", r"\$18"),
        ("18", r"\(18\)"),
        ("18", "+18"),
        ("18", "018"),
        ("18", "18.0"),
        ("-3", "\u22123"),
        ("1234", "1,234"),
        ("1234567", r"1{,}234{,}567"),
        ("1000", r"1\,000"),
        ("1/2", "0.5"),
        ("1/2", ".5"),
        (r"\frac{1}{2}", r"\dfrac{2}{4}"),
        (r"\frac12", "1/2"),
        (r"-\frac{1}{2}", r"\frac{-1}{2}"),
        ("6x+2", "2 + 6x"),
        ("x^2-1", "-1+x^{2}"),
        ("2x+3x", "5x"),
        ("3x", r"3\cdot x"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"\text{Evelyn}", "evelyn"),
    ],
)
def test_equal_answers_are_accepted_without_a_worker(gold, answer):
    assert quick(gold, answer) is True


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "19"),
        ("18", "-18"),
        ("1/2", "0.51"),
        ("1/3", "0.333"),
        ("6x+2", "6x+3"),
        ("x^2", "y^2"),
        ("x", "0"),
        (r"\text{east}", "seat"),  # letters aren't a product
        ("5", "5" * 2001),
        ("5", "{" * 50 + "5" + "}" * 50),
    ],
)
def test_different_answers_are_refused_without_a_worker(gold, answer):
    # A polynomial against a plain number is left to the worker.
    assert quick(gold, answer) is (None if gold == "x" else False)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("1/3", "0.333333"),
        ("5", "5 cm"),
        ("50\\%", "50"),
        ("ab", "ba"),
        ("6t", "t*6"),
        ("5", "1/0"),
        ("5", "9" * 41),
        ("0.1", "0.1000000000000001"),
        ("3", r"\sqrt{9}"),
        ("1 1/2", "11/2"),
    ],
)
def test_doubtful_pairs_are_left_to_math_verify(gold, answer):
    assert quick(gold, answer) is None


def number(chance: random.Random) -> str:
    size = chance.choice([5, 20, 1000, 10**6, 10**12])
    whole, top, bottom = chance.randint(-size, size), chance.randint(-30, 30), chance.randint(1, 20)
    text = chance.choice(
        [
            str(whole),
            f"{whole:,}",
            f"{whole / chance.choice([1, 2, 3, 4, 10, 1000]):.{chance.randint(1, 2)}f}",
            f"{top}/{bottom}",
            f"\\frac{{{top}}}{{{bottom}}}",
            f"\\dfrac{{{top}}}{{{bottom}}}",
            f"-\\frac{{{abs(top)}}}{{{bottom}}}",
            f"\\frac{{{top}}}{{-{bottom}}}",
        ]
    )
    return chance.choice(["{}"] * 8 + ["${}$", "{}.", "\\${}"]).format(text)


def near(text: str, chance: random.Random) -> str:
    """The same number written otherwise, or one close to it, or any other."""
    value = Fraction(normalise(text).replace("\\frac{", "").replace("}{", "/").replace("}", "").replace("/-", "/"))
    value *= -1 if "}{-" in text and value else 1
    shifted = value + Fraction(chance.choice([1, -1]), chance.choice([1, 10, 10**5, 10**6]))
    return chance.choice(
        [
            number(chance),
            f"{value.numerator}/{value.denominator}",
            f"\\frac{{{value.numerator * 3}}}{{{value.denominator * 3}}}",
            f"{float(value):.2f}",
            f"{shifted.numerator}/{shifted.denominator}",
        ]
    )


def polynomial(chance: random.Random) -> list[str]:
    letter = chance.choice("xyz")
    terms = []
    for _ in range(chance.randint(1, 4)):
        factor, degree = chance.randint(1, 9), chance.choice([0, 1, 1, 2, 3, 10])
        power = "" if degree == 1 else chance.choice([f"^{degree}", f"^{{{degree}}}"])
        times = chance.choice(["", "", "", "*", "\\cdot "])
        terms.append(chance.choice("+-") + (f"{factor}{times}{letter}{power}" if degree else str(factor)))
    return terms


def generated_pairs(seed: int, count: int) -> list[tuple[str, str]]:
    chance = random.Random(seed)
    pairs = []
    for index in range(count):
        if index % 2:
            gold = number(chance)
            answer = near(gold, chance)
        else:
            terms = polynomial(chance)
            gold = "".join(terms).lstrip("+")
            other = polynomial(chance) if chance.random() < 0.3 else chance.sample(terms, len(terms))
            answer = "".join(other).lstrip("+")
        pairs.append((gold, answer) if chance.random() < 0.5 else (answer, gold))
    return pairs


@pytest.mark.slow
def test_the_exact_path_never_disagrees_with_math_verify():
    from vibethinker.verification.equivalence import judge

    decided = []
    for gold, answer in generated_pairs(seed=7, count=800):
        verdict = quick(gold, answer)
        if verdict is not None:
            decided.append(verdict)
            full = judge(normalise(gold), normalise(answer))
            assert full == ("correct" if verdict else "wrong"), (gold, answer)
    # The pairs exercise both verdicts, and most are decided.
    assert len(decided) > 600
    assert 0.2 < sum(decided) / len(decided) < 0.8
