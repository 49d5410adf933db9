"""Micro-batches bounded by tokens."""

from __future__ import annotations

import pytest

from vibethinker.training.batches import split

LENGTHS = [3, 9, 4, 8, 1, 2]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("most", [1, 5, 9, 12, 18, 30])
def test_every_row_is_in_one_micro_batch_of_at_most_so_many_tokens(padded, most):
    parts = split(LENGTHS, most, padded=padded)
    assert sorted(row for part in parts for row in part) == list(range(len(LENGTHS)))
    for part in parts:
        lengths = [LENGTHS[row] for row in part]
        assert len(part) == 1 or (max(lengths) * len(part) if padded else sum(lengths)) <= most


def test_rows_of_similar_length_go_together():
    assert split(LENGTHS, 18, padded=True) == [[1, 3], [2, 0, 5, 4]]
    assert split(LENGTHS, 18, padded=False) == [[1, 3], [2, 0, 5, 4]]


def test_a_single_micro_batch_keeps_the_order():
    assert split(LENGTHS, 27, padded=False) == [[0, 1, 2, 3, 4, 5]]


def test_a_longer_row_has_a_micro_batch_of_its_own():
    assert split([50, 2], 10, padded=False) == [[0], [1]]


def test_there_are_as_many_micro_batches_as_the_other_processes_have():
    assert split([5, 5, 5, 5], 100, padded=False, least=2) == [[0, 1], [2, 3]]
    assert sorted(map(len, split([5, 5], 100, padded=False, least=3))) == [0, 1, 1]
