"""Which split a problem falls into, by its words and the seed alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from vibethinker.data.folding import fold, ngrams, signature, tokens, words
from vibethinker.data.splits import place, split_of


@dataclass(frozen=True)
class Item:
    text: str


ITEMS = [Item(f"Find {i} plus {j}.") for i in range(40) for j in range(40)]


def split(item: Item, seed: int = 1) -> str:
    return split_of(place(item.text, seed), 0.1, evaluation=True)


def test_case_and_spacing_make_no_other_problem_and_signs_do():
    assert fold("  Solve 3x + 4 = 19. ") == fold("solve\n3x+4=19.")
    assert fold("3x-4") != fold("3x+4")
    assert fold("5 12") != fold("51 2")


def test_words_leave_out_signs_and_tokens_layout_too():
    assert words(r"Let $X_1 + \frac{1}{2}$, OK?") == ("let", "x", "1", "frac", "1", "2", "ok")
    spaced = r"$3\,x \quad \left( \dfrac{1}{2} \right)$"
    assert tokens(spaced) == tokens(r"3x (\frac{1}{2})") == ["3", "x", "frac", "1", "2"]


@given(st.lists(st.text("ab1é", min_size=1, max_size=4), max_size=30), st.integers(1, 12))
def test_ngrams_are_all_runs_of_n_words(parts, n):
    assert ngrams(parts, n) == [" ".join(parts[i : i + n]) for i in range(len(parts) - n + 1)]


def test_a_place_depends_on_seed_and_words_alone():
    assert place("Find  W1!", 1) == place("find w1", 1) != place("find w1", 2)
    assert len({place(item.text, 1) for item in ITEMS}) == len(ITEMS)


def test_each_split_has_about_its_share_and_the_rest_is_train():
    counts = Counter(map(split, ITEMS))
    assert all(110 < counts[name] < 210 for name in ("evaluation", "probe", "validation"))
    assert counts["train"] > 1000
    assert not {split_of(place(item.text, 1), 0.1, evaluation=False) for item in ITEMS} & {"evaluation"}


def test_problems_of_the_same_words_are_never_parted():
    assert all(split(Item(f"3x+{i}")) == split(Item(f"3X - {i}!")) for i in range(200))


def test_texts_without_any_word_have_a_signature_of_their_own():
    assert signature("∫") != signature("∑")


def test_long_texts_are_folded_alike_and_not_kept():
    short, long = "Find 3 x + 4. ", "Find 3 x + 4. " * 1000
    assert (words(long), fold(long)) == (words(short) * 1000, fold(short) * 1000)
    assert words(short) is words(short) and words(long) is not words(long)
    assert fold(short) is fold(short) and fold(long) is not fold(long)
