"""The procedural problems: distinct, seeded, exact.

Gold answers are recomputed from the problem's text alone with sympy, geometry's shapes and the standard library;
the generator's formulas are not used.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from functools import cache, reduce
from itertools import combinations
from typing import Any

import pytest
import sympy
from sympy.abc import n, x, y

from vibethinker.data.decontamination import ngrams, words
from vibethinker.data.procedural import DIFFICULTIES, ProceduralProblem, generate
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.plugins import BUILT_IN
from vibethinker.plugins import DOMAINS as GROUP
from vibethinker.verification.schema import check_tests

pytestmark = pytest.mark.slow

DOMAINS = tuple(BUILT_IN[GROUP])
MATHS = [domain for domain in DOMAINS if domain != "code"]
LEVELS = [(domain, difficulty) for domain in DOMAINS for difficulty in DIFFICULTIES]
every_level = pytest.mark.parametrize(("domain", "difficulty"), LEVELS)
every_maths_level = pytest.mark.parametrize(("domain", "difficulty"), [one for one in LEVELS if one[0] != "code"])


@cache
def problems(domain: str, difficulty: int) -> list[ProceduralProblem]:
    return generate(domain, 3000, seed=7, difficulty=difficulty)


def sample(domain: str, difficulty: int) -> list[ProceduralProblem]:
    # Families take turns, so the step is no multiple of their number.
    return problems(domain, difficulty)[::23]


# --- counts, order, refusals ---------------------------------------------------------------------------------------


@every_level
def test_three_thousand_distinct_problems(domain: str, difficulty: int) -> None:
    made = [one.problem for one in problems(domain, difficulty)]
    assert len({problem.problem for problem in made}) == len({problem.id for problem in made}) == 3000
    assert {(problem.domain, problem.difficulty) for problem in made} == {(domain, difficulty)}


@every_level
def test_the_same_arguments_give_the_same_problems(domain: str, difficulty: int) -> None:
    first = generate(domain, 60, seed=3, difficulty=difficulty)
    assert first == generate(domain, 60, seed=3, difficulty=difficulty)
    assert first != generate(domain, 60, seed=4, difficulty=difficulty)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_problem_is_the_same_whatever_seed_found_it(domain: str) -> None:
    other = {one.problem.id: one for one in generate(domain, 3000, seed=8)}
    shared = [one for one in problems(domain, 1) if one.problem.id in other]
    assert len(shared) > 100
    assert all(one == other[one.problem.id] for one in shared)


def test_asking_for_more_than_there_is_says_how_much_there_is() -> None:
    with pytest.raises(DataError, match=r"geometry has only about \d{4} distinct problems at difficulty 1"):
        generate("geometry", 100_000, seed=0)


def test_unknown_domain_and_difficulty_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no domain of generated problems 'haiku'; valid names are algebra"):
        generate("haiku", 1, seed=0)
    with pytest.raises(DataError, match="difficulty 4 does not exist"):
        generate("algebra", 1, seed=0, difficulty=4)


@every_level
def test_no_two_problems_share_a_word_10_gram(domain: str, difficulty: int) -> None:
    holders = defaultdict(set)
    for one in problems(domain, difficulty):
        for gram in ngrams(words(one.problem.problem), 10):
            holders[gram].add(one.problem.id)
    assert not [gram for gram, ids in holders.items() if len(ids) > 1]


@pytest.mark.parametrize("domain", DOMAINS)
def test_problems_and_solutions_are_short_at_difficulty_1(domain: str) -> None:
    token = re.compile(r"</?think>|\\boxed|```|\n +|[A-Za-z]+|\d|[^\sA-Za-z\d]")
    made = problems(domain, 1)
    assert max(len(one.problem.problem.split()) for one in made) <= 14
    lengths = [len(token.findall(solution)) for one in made for solution in one.solutions]
    assert max(lengths) <= 60
    assert statistics.mean(lengths) <= 40


# --- solutions -----------------------------------------------------------------------------------------------------


@every_level
def test_solutions_differ_in_their_steps_and_end_with_the_answer(domain: str, difficulty: int) -> None:
    for one in problems(domain, difficulty):
        assert len(one.solutions) >= 2
        assert all(first != second for first, second in combinations(one.solutions, 2))
        ending = re.escape(f"\\boxed{{{one.problem.answer}}}")
        if domain == "code":
            ending = r"\n```python\ndef f\(\w\):\n(    .+\n)+```"
        reasoning = r"<think>((?!</?think>).)+</think>"
        assert all(re.fullmatch(reasoning + ending, solution) for solution in one.solutions)


@every_level
def test_every_written_equation_is_true(domain: str, difficulty: int) -> None:
    operate: dict[str, Callable[[int, int], Fraction]] = {
        "+": lambda a, b: Fraction(a + b),
        "-": lambda a, b: Fraction(a - b),
        "*": lambda a, b: Fraction(a * b),
        "/": Fraction,
    }
    equation = re.compile(r"(?<![\w^)])(\d+)([-+*/])(\d+)=(-?\d+(?:/\d+)?)(?![\w^(])")
    seen = 0
    for one in problems(domain, difficulty):
        for solution in one.solutions:
            reasoning = solution.partition("</think>")[0]
            found = equation.findall(reasoning)
            assert len(found) == len(re.findall(r"\d=(?!=)", reasoning)), reasoning
            seen += len(found)
            for a, sign, b, result in found:
                assert operate[sign](int(a), int(b)) == Fraction(result), reasoning
    assert seen > 3000


# --- gold answers of maths -----------------------------------------------------------------------------------------


def expression(text: str) -> sympy.Expr:
    """A polynomial in x as the problems write it."""
    return sympy.sympify(re.sub(r"(\d)(?=[x(])", r"\1*", text).replace("^", "**"))


def only(roots: list[Any]) -> Any:
    (root,) = roots
    return root


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(", ")]


def trapezoid_area(a: int, b: int, h: int) -> Any:
    return abs(sympy.Polygon((0, 0), (a, 0), (b, h), (0, h)).area)


def of_a_bag(red: int, blue: int, asked: str) -> Fraction:
    bag = ["red"] * red + ["blue"] * blue
    return Fraction(bag.count(asked), len(bag))


def root_of(which: str, quadratic: str) -> Any:
    return {"larger": max, "smaller": min}[which](sympy.roots(expression(quadratic), x))


ORACLES: dict[str, Callable[..., Any]] = {
    r"Solve (.+)=(.+)\.": lambda left, right: only(sympy.solve(expression(left) - expression(right), x)),
    r"Find (\d+\(.+\)) for x=(\d+)\.": lambda text, at: expression(text).subs(x, int(at)),
    r"If x\+y=(\d+) and x-y=(\d+), find (.)\.": lambda s, d, asked: sympy.solve(
        [x + y - int(s), x - y - int(d)], [x, y]
    )[sympy.Symbol(asked)],
    r"Find the (larger|smaller) root of (.+)=0\.": root_of,
    r"Find the perimeter of a (\d+) by (\d+) rectangle\.": lambda a, b: (
        sympy.Polygon((0, 0), (int(a), 0), (int(a), int(b)), (0, int(b))).perimeter
    ),
    r"A rectangle has perimeter (\d+) and width (\d+)\. Find the length\.": lambda p, w: only(
        sympy.solve(2 * (x + int(w)) - int(p), x)
    ),
    r"Trapezoid with bases (\d+) and (\d+), height (\d+): find the area\.": lambda *abh: trapezoid_area(*map(int, abh)),
    r"Two angles of a triangle are (\d+) and (\d+)\. Find the third\.": lambda a, b: only(
        sympy.solve(x + int(a) + int(b) - 180, x)
    ),
    r"Find the distance from \((\d+),(\d+)\) to \((\d+),(\d+)\)\.": lambda a, b, c, d: sympy.Point(a, b).distance(
        sympy.Point(c, d)
    ),
    r"Differentiate (.+)\.": lambda f: sympy.diff(expression(f), x),
    r"Find f'\((\d+)\) for f\(x\)=(.+)\.": lambda at, f: sympy.diff(expression(f), x).subs(x, int(at)),
    r"Find x where (.+) has slope 0\.": lambda f: only(sympy.solve(sympy.diff(expression(f), x), x)),
    r"Integrate (.+) from (\d+) to (\d+)\.": lambda f, a, b: sympy.integrate(expression(f), (x, int(a), int(b))),
    r"Find the mean of (.+)\.": lambda values: statistics.mean(map(Fraction, numbers(values))),
    r"Find the median of (.+)\.": lambda values: statistics.median(numbers(values)),
    r"Find the range of (.+)\.": lambda values: max(numbers(values)) - min(numbers(values)),
    r"If (\d+), (\d+) and n have mean (\d+), find n\.": lambda a, b, m: only(
        sympy.solve((int(a) + int(b) + n) / 3 - int(m), n)
    ),
    r"(\d+) red, (\d+) blue balls\. Chance of (\w+)\?": lambda r, b, asked: of_a_bag(int(r), int(b), asked),
}


def recompute(text: str) -> Any:
    (match, oracle) = only(
        [(match, oracle) for pattern, oracle in ORACLES.items() if (match := re.fullmatch(pattern, text))]
    )
    return oracle(*match.groups())


@every_maths_level
def test_gold_is_what_an_independent_computation_gives(domain: str, difficulty: int) -> None:
    for one in sample(domain, difficulty):
        gold = expression(one.problem.answer)
        assert sympy.expand(gold - sympy.sympify(recompute(one.problem.problem))) == 0, one.problem


def test_every_family_of_maths_is_sampled() -> None:
    texts = [one.problem.problem for domain in MATHS for level in DIFFICULTIES for one in sample(domain, level)]
    assert all(any(re.fullmatch(pattern, text) for text in texts) for pattern in ORACLES)


@pytest.mark.parametrize("domain", MATHS)
def test_math_verify_accepts_the_solutions_and_refuses_another_answer(domain: str) -> None:
    math_verify = pytest.importorskip("math_verify")

    def parse(text: str) -> list[Any]:
        return math_verify.parse(text, parsing_timeout=None)

    for one, other in zip(sample(domain, 1)[:20], sample(domain, 1)[20:40], strict=True):
        gold = parse(f"${one.problem.answer}$")
        assert gold
        assert all(math_verify.verify(gold, parse(s), timeout_seconds=None) for s in one.solutions)
        if one.problem.answer != other.problem.answer:
            assert not math_verify.verify(gold, parse(other.solutions[0]), timeout_seconds=None)


# --- code ----------------------------------------------------------------------------------------------------------

WORDS: dict[str, Callable[[int, int], int]] = {
    "times": lambda value, amount: value * amount,
    "plus": lambda value, amount: value + amount,
    "minus": lambda value, amount: value - amount,
    "squared": lambda value, _: value**2,
}


def apply(operation: str, value: int) -> int:
    verb, _, amount = operation.partition(" ")
    return WORDS[verb](value, int(amount or 0))


def expected(text: str, argument: Any) -> Any:
    """What the function that a problem asks for returns, read from the words."""
    _, _, task = text.removesuffix(".").partition(": ")
    if match := re.fullmatch(r"linear, f\((\d+)\)=(\d+), f\((\d+)\)=(\d+)", task):
        a, fa, b, fb = map(int, match.groups())
        return int(sympy.interpolate([(a, fa), (b, fb)], x).subs(x, argument))
    if match := re.fullmatch(r"term n of (\d+), (\d+), (\d+)", task):
        terms = list(map(int, match.groups()))
        assert terms[2] - terms[1] == terms[1] - terms[0]
        while len(terms) < argument:
            terms.append(2 * terms[-1] - terms[-2])
        return terms[argument - 1]
    if match := re.fullmatch(r"keep within (\d+) of (\d+)(?:, (\w+))?", task):
        reach, centre = int(match[1]), int(match[2])
        items = [item for item in argument if -reach <= item - centre <= reach]
        return {"sum": sum, "count": len, None: list}[match[3]](items)
    if match := re.fullmatch(r"keep (\w+)(?: (\d+))?, each ([\w ]+?)(, sum)?", task):
        limit = int(match[2] or 0)
        keep = {
            "above": lambda item: item > limit,
            "below": lambda item: item < limit,
            "even": lambda item: not item & 1,
            "odd": lambda item: item & 1,
        }[match[1]]
        items = [apply(match[3], item) for item in argument if keep(item)]
        return sum(items) if match[4] else items
    return reduce(lambda value, operation: apply(operation, value), re.split(", then |, ", task), argument)


def program(solution: str) -> str:
    return re.search(r"```python\n(.*)```", solution, re.DOTALL)[1]


def passes(source: str, tests: dict[str, Any]) -> bool:
    """Whether a program passes; it is executed here, since the generator or a changed constant of it wrote it."""
    space: dict[str, Any] = {}
    exec(source, space)
    function = space[tests["entry_point"]]
    return all(function(*case["args"]) == case["expected"] for case in tests["cases"])


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_expected_values_are_what_the_words_say(difficulty: int) -> None:
    for one in problems("code", difficulty)[::8]:
        assert check_tests(one.problem.tests) is None
        assert 4 <= len(one.problem.tests["cases"]) <= 6
        for case in one.problem.tests["cases"]:
            assert case["expected"] == expected(one.problem.problem, *case["args"]), one.problem


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_code_solutions_pass_and_any_changed_constant_fails(difficulty: int) -> None:
    for one in problems("code", difficulty)[::8]:
        for source in map(program, one.solutions):
            assert passes(source, one.problem.tests), source
            for constant in re.finditer(r"\d+", source):
                for wrong in (int(constant[0]) + 1, abs(int(constant[0]) - 1)):
                    mutant = f"{source[: constant.start()]}{wrong}{source[constant.end() :]}"
                    assert not survives(mutant, one.problem.tests), (one.problem.problem, mutant)


def survives(source: str, tests: dict[str, Any]) -> bool:
    try:
        return passes(source, tests)
    except ZeroDivisionError:
        return False
