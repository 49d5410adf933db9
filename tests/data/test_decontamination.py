"""Overlaps between training and evaluation problems, and what is none: stock phrases and templates."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vibethinker.data import templates
from vibethinker.data.decontamination import Decontaminator
from vibethinker.data.templates import Templates, find_templates

EVALUATION = [
    "A train leaves at noon and travels 60 miles an hour for three hours. How far does it go?",
    "Compute 17 times 23.",
]


@pytest.mark.parametrize(
    "copy",
    [
        EVALUATION[0].upper(),
        EVALUATION[0].replace(" ", " - "),
        "Please think. " + EVALUATION[0] + " Give one number.",
        "One day, a train leaves at noon, and travels 60 miles an hour!",
        "COMPUTE:  $17$ times $23$",
    ],
)
def test_copies_are_found_whatever_their_case_punctuation_and_surroundings(copy):
    assert Decontaminator(EVALUATION).overlap(copy)


@pytest.mark.parametrize(
    "other",
    [
        "A train leaves at noon and travels 60 miles in an hour for three hours.",  # never ten words in a row
        "Compute 17 times 23 and add 4.",  # a short problem overlaps only as a whole
        "Compute 17 times 24.",
        "",
        "?!",
    ],
)
def test_less_than_an_ngram_in_common_is_no_overlap(other):
    assert Decontaminator([*EVALUATION, "!"]).overlap(other) is None


def test_an_overlap_says_how_much_is_shared_and_with_what():
    overlap = Decontaminator(EVALUATION, n=5).overlap("A train leaves at noon and comes back soon after that.")
    assert (overlap.shared, overlap.share) == ("a train leaves at noon", 2 / 7)
    assert (overlap.kind, overlap.evaluation) == ("shared_passage", 0)


def test_stock_phrases_do_not_count_unless_asked_to():
    tail = "where m and n are relatively prime positive integers. Find m+n."
    index = [f"The area is m/n, {tail}"]
    assert Decontaminator(index).overlap(f"The probability is m/n, {tail}").kind == "stock_phrase"
    other_letters = f"The chance is p/q, {tail}".replace("m ", "p ").replace("n ", "q ").replace("m+n", "p+q")
    index = [f"The area is p/q, {tail}".replace("m ", "p ").replace("n ", "q ").replace("m+n", "p+q")]
    assert Decontaminator(index).overlap(other_letters).kind == "stock_phrase"
    assert Decontaminator(index, stock_phrases=()).overlap(other_letters).kind != "stock_phrase"


def test_a_stock_phrase_hides_no_copy_of_a_problem_that_holds_it():
    text = "Ann draws three of ten cards. The chance is m/n, where m and n are relatively prime positive integers."
    assert Decontaminator([text]).overlap(text).kind == "near_copy"


def test_sentences_around_most_problems_are_templates():
    suffix = "Let's think step by step and put the final answer within \\boxed{}, as a single whole number."
    prompts = [f"Answer briefly. Question: What is {i} plus {i}?\n{suffix}" for i in range(10)]
    templates = find_templates([prompts, ["What is 1?"] * 3])
    assert templates.body(prompts[3]) == "What is 3 plus 3?"
    assert templates.body("What is 3 plus 3?") == "What is 3 plus 3?"


def test_a_template_shared_by_both_sides_is_no_overlap_and_hides_none():
    suffix = "Let us think step by step and output the final answer within boxed braces, please do."
    train = [f"What is {i} times 3?\n{suffix}" for i in range(10)]
    evaluation = [f"What is {i} times 3?\n{suffix}" for i in range(9, 20)]
    index = Decontaminator(evaluation, templates=find_templates([train, evaluation]))
    assert [i for i, text in enumerate(train) if index.overlap(text)] == [9]


def test_a_text_that_is_all_template_stays_whole():
    assert Templates(frozenset({"Go."}), frozenset({"Go."})).body("Go.") == "Go."


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).open()]


def brute_force(train: list[str], evaluation: list[str]) -> set[int]:
    """Contaminated indices, by comparing sets of ten-word tuples."""

    def folded(text: str) -> tuple[str, ...]:
        return tuple("".join(c if c.isalnum() else " " for c in text.lower()).split())

    def tens(folded: tuple[str, ...]) -> set[tuple[str, ...]]:
        return {folded} if len(folded) < 10 else set(zip(*(folded[i:] for i in range(10)), strict=False))

    everything = set().union(*(tens(folded(text)) for text in evaluation))
    return {index for index, text in enumerate(train) if tens(folded(text)) & everything}


@pytest.mark.slow
def test_gsm8k_hits_are_those_of_a_brute_force_search(shared_data):
    train = [row["question"] for row in rows(shared_data, "gsm8k_train.jsonl")]
    evaluation = [row["question"] for row in rows(shared_data, "gsm8k_test.jsonl")]
    index = Decontaminator(evaluation, stock_phrases=())
    hits = {i for i, text in enumerate(train) if index.overlap(text)}
    assert hits == brute_force(train, evaluation)
    assert len(hits) == 11
    classes = Counter(Decontaminator(evaluation).overlap(train[i]).kind for i in hits)
    assert classes == {"near_copy": 2, "shared_passage": 9}


@pytest.mark.slow
def test_math500_hits_without_whitelist_are_those_of_a_brute_force_search(shared_data):
    prefix = r"Return your final response within \boxed{}."
    train = [row["problem"] for row in rows(shared_data, "math_train.jsonl")]
    prompts = [row["problem"] for row in rows(shared_data, "math500_test.jsonl")]
    templates = find_templates([train, prompts])
    assert templates == Templates(opening=frozenset({prefix}))
    off = Decontaminator(prompts, templates=templates, stock_phrases=())
    hits = {i for i, text in enumerate(train) if off.overlap(text)}
    assert hits == brute_force(train, [text.removeprefix(prefix) for text in prompts])
    on = Decontaminator(prompts, templates=templates)
    classes = Counter(found.kind for text in train if (found := on.overlap(text)))
    assert classes.total() == len(hits) == 371
    assert 100 < classes["stock_phrase"] < 200 and 30 < classes["near_copy"] < 80


@given(st.text(" \t\n\u2028a.!:é", max_size=40))
def test_sentences_end_at_marks_and_at_line_ends(text):
    parts = re.split(r"(?<=[.!?:])\s+|\s*\n\s*", text.strip())
    assert templates._sentences(text) == [part for part in parts if part]


def test_long_runs_of_spaces_hang_nothing():
    code = "from vibethinker.data.templates import find_templates; find_templates([['a' + ' ' * 400_000 + 'b'] * 8])"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


TOKENS = st.lists(st.sampled_from(["a", "bb", "cc", "x", "7"]), max_size=10)


def holds(parts: list[str], problem: list[str], n: int) -> bool:
    """Whether a text holds a whole problem, by trying every position."""
    size = len(problem)
    if not problem or parts == problem:
        return bool(problem)
    at = [i for i in range(len(parts) - size + 1) if parts[i : i + size] == problem]
    if size >= max(n, 8):
        return bool(at)
    return size >= 3 and any({"x", "7"}.isdisjoint(parts[:i] + parts[i + size :]) for i in at)


@pytest.mark.slow
@given(TOKENS, st.lists(st.tuples(st.booleans(), TOKENS), max_size=8), TOKENS, st.integers(2, 12))
def test_whole_problems_are_found_as_by_trying_each(start, ends, around, n):
    """Of problems many of which start alike, or with one another."""
    problems = [start * shared + end for shared, end in ends]
    index = Decontaminator(map(" ".join, problems), n=n)
    for middle in [start, *problems]:
        parts = [*around[:3], *middle, *around[3:6]]
        held = [" ".join(problem) for problem in problems if holds(parts, problem, n)]
        found = index._whole(parts)
        assert (found is not None) == bool(held)
        assert found is None or (found.shared in held and " ".join(problems[found.evaluation]) == found.shared)


class Counted(list):
    """A list that counts how often it is looked at."""

    looks = 0

    def __getitem__(self, at):
        self.looks += 1
        return super().__getitem__(at)


def test_a_row_is_not_compared_with_every_problem_that_starts_like_it():
    start = "You are given a list of numbers in a row and must"
    index = Decontaminator(f"{start} find item {i}, times {7 * i}." for i in range(2000))
    (alike,) = index._longs.values()
    alike._shorter = Counted(alike._shorter)
    assert index.overlap(f"{start} find item 1700, times 11900. Or not?").evaluation == 1700
    assert index.overlap(f"{start} find item 1700 now.").kind == "near_copy"
    assert 0 < alike._shorter.looks < 10
