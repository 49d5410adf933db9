from __future__ import annotations

from dataclasses import dataclass
from random import Random

from vibethinker.data.splits import fold, hold_out, seeded_order, signature


@dataclass(frozen=True)
class Item:
    text: str


ITEMS = [Item(f"Find {i} plus {j}.") for i in range(20) for j in range(10)]


def test_case_and_spacing_make_no_other_problem_and_signs_do():
    assert fold("  Solve 3x + 4 = 19. ") == fold("solve\n3x+4=19.")
    assert fold("3x-4") != fold("3x+4")
    assert fold("5 12") != fold("51 2")


def test_the_order_depends_on_seed_and_text_alone():
    order = seeded_order(ITEMS, 1)
    assert seeded_order(Random(0).sample(ITEMS, len(ITEMS)), 1) == order
    assert seeded_order(ITEMS, 2) != order
    assert sorted(order, key=ITEMS.index) == ITEMS


def test_a_growing_set_keeps_the_order_of_what_was_there():
    grown = [*ITEMS, *(Item(f"Find {i} times 3.") for i in range(100))]
    known = set(ITEMS)
    assert [item for item in seeded_order(grown, 1) if item in known] == seeded_order(ITEMS, 1)


def test_held_out_items_and_the_rest_make_the_whole():
    taken, rest = hold_out(ITEMS, 5, set())
    assert taken == ITEMS[:5]
    assert rest == ITEMS[5:]


def test_no_item_with_the_words_of_a_held_out_one_is_held_out():
    items = [Item("3x+4"), Item("3x-4"), Item("3x*5")]
    held: set[str] = set()
    first, rest = hold_out(items, 1, held)
    second, rest = hold_out(rest, 1, held)
    assert (first, second, rest) == ([items[0]], [items[2]], [items[1]])
    assert held == {"3x 4", "3x 5"}


def test_texts_without_any_word_have_a_signature_of_their_own():
    assert signature("∫") != signature("∑")
