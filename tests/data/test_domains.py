"""The domain of a problem by its keywords; labels and a teacher's decisions are tested with their sources."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibethinker.data.domains import KEYWORDS, KeywordClassifier, label_domain, parse, question
from vibethinker.data.settings import Classifier
from vibethinker.errors import ConfigurationError
from vibethinker.settings import CODE_DOMAIN, MATH_DOMAINS

DOMAINS = (*MATH_DOMAINS, CODE_DOMAIN)
SUBJECTS = {
    "algebra": "algebra",
    "intermediate algebra": "algebra",
    "prealgebra": "algebra",
    "number theory": "algebra",
    "geometry": "geometry",
    "precalculus": "calculus",
    "counting & probability": "statistics",
}
ANY = st.text(st.characters(exclude_categories=()))


@pytest.fixture(scope="module")
def classifier() -> KeywordClassifier:
    return KeywordClassifier(DOMAINS, Classifier())


def classify(text: str, domains: tuple[str, ...] = DOMAINS, **keywords: tuple[str, ...]):
    return KeywordClassifier(domains, Classifier(keywords=keywords)).classify(text)


# --- keywords


# MATH has neither real calculus nor real statistics, so no measurement covers these.
@pytest.mark.parametrize(
    ("domain", "text"),
    [
        ("calculus", r"Find the derivative of the function $f(x) = x^3 - 2x$ at $x = 1$."),
        ("calculus", r"Evaluate $\int_0^1 x e^x\,dx$."),
        ("calculus", r"Compute $\lim_{x\to 0}\frac{\ln(1+x)}{x}$."),
        ("calculus", "The region bounded by y = x^2 and y = 4 is revolved about the x-axis. Find the volume."),
        ("calculus", "Solve the differential equation $y' = 2y$ with $y(0) = 3$."),
        ("calculus", "Determine the radius of convergence of the power series $\\sum x^n/n!$."),
        ("statistics", "Find the standard deviation of the data set 2, 4, 4, 4, 5, 5, 7, 9."),
        ("statistics", "Heights are normally distributed. What percent are more than two standard deviations away?"),
        ("statistics", "A random sample of 40 students has mean 72. Give a 95% confidence interval."),
        ("statistics", "In how many ways can 5 people sit in a row?"),
        ("geometry", r"In $\triangle ABC$, $AB = 3$ and $\angle B = 90^\circ$. Find the area."),
        ("algebra", "Solve for $x$: $3x + 5 = 20$."),
        ("code", "Write a Python function that returns the sum of the areas of a list of circles."),
        ("code", "You are given an array of n integers. Print the longest increasing subarray."),
    ],
)
def test_plain_problems_of_each_domain_are_decided(classifier, domain, text):
    assert classifier.classify(text).domain == domain


def test_a_decision_says_why():
    decision = classify(
        "The AREA of a Circle, another circle, is an\ninteger; its least-common multiple $\\log_2$ is 3."
    )
    assert decision.matched == (
        "geometry: area",
        "geometry: circle",
        "algebra: integer",
        "algebra: least common multiple",
        "algebra: \\log",
    )
    assert decision.scores == {"algebra": 6, "geometry": 2, "calculus": 0, "statistics": 0, "code": 0}
    assert decision.domain == "algebra"


@pytest.mark.parametrize(
    "text", ["", "How old is Anna?", "An integer and a circle.", "[asy] draw(circle((0,0),1)); [/asy]"]
)
def test_a_tie_or_no_keyword_decides_nothing(classifier, text):
    assert classifier.classify(text).domain is None


@pytest.mark.parametrize(
    ("text", "matched"),
    [
        ("triangles, matrices, inequalities", ("geometry: triangle", "calculus: matrices", "algebra: inequality")),
        ("differentiable", ("calculus: differentia*",)),
        (r"\sin x, \integer, \\int", ("calculus: \\sin", "calculus: \\int")),
        (r"\trianglelefteq rectangularly areal", ()),
        (r"\text{area}", ("geometry: area",)),
        ("a right triangle", ("geometry: right triangle",)),
        ("probabilities; the probability of it", ("statistics: probability", "statistics: the probability")),
        ("m/n for relatively prime positive integers. Output the final answer.", ()),
    ],
)
def test_keywords_are_whole_words_with_their_plurals_and_the_longest_counts(classifier, text, matched):
    assert classifier.classify(text).matched == matched


@pytest.mark.slow
def test_keywords_of_the_settings_are_added_and_leave_their_old_domain():
    text = "A matrix over a Galois field; galois."
    assert classify(text).domain == "calculus"
    assert classify(text, algebra=("matrix",)).scores == {**dict.fromkeys(KEYWORDS, 0), "algebra": 1}
    assert classify(text, algebra=(" Galois Field ", "x", r"\Z*")).matched == (
        "calculus: matrix",
        "algebra: galois field",
    )
    assert classify(text, (*DOMAINS, "fields"), fields=("field", "galois*")).domain == "fields"


@pytest.mark.parametrize("keyword", ["", " ", "*", "\\", "+"])
def test_a_keyword_that_could_match_anything_is_refused(keyword):
    with pytest.raises(ConfigurationError, match=r"data\.classifier\.keywords\.algebra"):
        classify("", algebra=(keyword,))


def test_a_domain_that_is_not_trained_competes_but_is_never_decided():
    text = "Find the perimeter of a triangle, an integer."
    assert classify(text).domain == "geometry"
    assert classify(text, ("algebra", "code")).domain is None


def test_no_keyword_stands_for_two_domains():
    counts = Counter(keyword for some in KEYWORDS.values() for keyword in some)
    assert [keyword for keyword, count in counts.items() if count > 1] == []
    assert tuple(KEYWORDS) == DOMAINS


@given(ANY)
def test_any_text_gets_the_same_decision_twice(classifier, text):
    decision = classifier.classify(text)
    assert decision == classifier.classify(text)
    assert decision.domain is None or decision.scores[decision.domain] > 0


@pytest.mark.slow
@given(st.lists(ANY.filter(lambda keyword: any(c.isalnum() for c in keyword)), max_size=5))
def test_any_keyword_with_a_letter_is_matched_as_it_is(keywords):
    KeywordClassifier(DOMAINS, Classifier(keywords={"algebra": tuple(keywords)})).classify(" ".join(keywords))


# The keywords were never tuned on these files; `domains` states what was measured on them.
def test_most_decisions_on_math500_are_right(shared_data, classifier):
    rows = [json.loads(line) for line in (shared_data / "math500_test.jsonl").read_text().splitlines()]
    decided: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for row in rows:
        problem = row["problem"].removeprefix(r"Return your final response within \boxed{}.")
        if (domain := classifier.classify(problem).domain) is not None:
            decided[domain] += 1
            right[domain] += domain == label_domain(row["subject"], SUBJECTS)
    assert decided.total() / len(rows) > 0.85
    assert right.total() / decided.total() > 0.84
    assert right["algebra"] / decided["algebra"] > 0.92
    assert right["calculus"] / decided["calculus"] > 0.85
    assert right["statistics"] / decided["statistics"] > 0.7
    assert right["geometry"] / decided["geometry"] > 0.4


def test_mbpp_is_code(shared_data, classifier):
    rows = [json.loads(line) for line in (shared_data / "mbpp.jsonl").read_text().splitlines()]
    found = Counter(classifier.classify(row["text"]).domain for row in rows if 11 <= row["task_id"] <= 510)
    assert found["code"] > 0.95 * found.total()
    assert found.keys() <= {"code", None}


# --- the teacher


def test_the_question_holds_the_problem_as_it_is_and_every_domain():
    asked = question(" What is {x} in {domains}? ", DOMAINS)
    assert "---\nWhat is {x} in {domains}?\n---" in asked
    assert asked.endswith(
        "algebra, geometry, calculus, statistics, code? Do not solve it. Answer with one word, the name of the domain."
    )


@pytest.mark.parametrize(
    "reply",
    [
        "geometry",
        " Geometry.\n",
        "**Geometry**",
        r"\boxed{\text{geometry}}",
        "The domain is geometry.",
        "<think>\ngeometry\nalgebra\ncode\n</think>\n\nGeometry",
        "algebra</think>geometry",
        "It has a triangle, so code is not it.\n\nAnswer: geometry\n",
        "geometry\n\nThis problem asks for an area, which algebra would give as well.",
        "Geometry\n**Geometry**",
    ],
)
def test_a_reply_that_names_one_domain_is_read(reply):
    assert parse(reply, DOMAINS) == "geometry"


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "\n\n",
        "physics",
        "geometry or algebra",
        "not geometry",
        "I am not sure whether it is geometry",
        "algebra\ngeometry",
        "- algebra\n- geometry\n- code",
        "geometric",
        "The answer is",
        "<think>geometry",
        "<think>\ngeometry\n",
        "```python\ncode = 1\n```",
    ],
)
def test_a_reply_that_names_none_or_several_is_none(reply):
    assert parse(reply, DOMAINS) is None


def test_names_of_several_words_are_read_however_they_are_joined():
    assert parse("The domain is Number Theory", ("number_theory", "domain")) is None
    assert parse("Number Theory", ("number_theory", "algebra")) == "number_theory"
    assert parse("answer", ("answer", "algebra")) == "answer"
    assert parse("\n", ("+", "algebra")) is None


@given(ANY | st.lists(st.sampled_from([*DOMAINS, "\n", "<think>", "</think>", "is ", " "])).map("".join))
def test_any_reply_is_a_domain_or_none(reply):
    assert parse(reply, DOMAINS) in {None, *DOMAINS}
    assert parse(reply, DOMAINS) == parse(reply, DOMAINS)


# --- labels


def test_labels_are_looked_up_in_lower_case():
    assert label_domain(" Intermediate Algebra\n", SUBJECTS) == "algebra"
    assert label_domain("Physics", SUBJECTS) is None
    assert label_domain(" Algebra", None) == "algebra"
    assert label_domain("algebra", {}) is None
