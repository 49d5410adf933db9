"""Pass@K, majority votes, bootstrap intervals and sign-flip tests, against closed forms and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from vibethinker.errors import ConfigurationError, DataError
from vibethinker.evaluation import estimators
from vibethinker.evaluation.estimators import bootstrap, cons_at_k, paired_bootstrap, pass_at_k, sign_flip


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_sample(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        samples = [True] * c + [False] * (n - c)
        subsets = list(itertools.combinations(samples, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_pass_at_k_has_its_closed_forms():
    for n, c in ((5, 2), (32, 7), (1000, 999)):
        assert pass_at_k(n, c, 1) == c / n
        assert pass_at_k(n, c, n) == 1.0
        assert pass_at_k(n, 0, n) == 0.0
    assert pass_at_k(1000, 1, 500) == 0.5


def test_pass_at_k_is_unbiased():
    p, n, k = 0.3, 10, 4
    binomial = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    expected = sum(share * pass_at_k(n, c, k) for c, share in enumerate(binomial))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_more_draws_than_samples_are_refused():
    with pytest.raises(ConfigurationError, match="Pass@9 can't be estimated from 8 samples"):
        pass_at_k(8, 3, 9)
    with pytest.raises(ConfigurationError):
        pass_at_k(8, 3, 0)
    with pytest.raises(ValueError, match="9"):
        pass_at_k(8, 9, 1)


def test_a_majority_vote_needs_the_largest_group_and_shares_ties():
    assert cons_at_k(3, [2, 2, 1]) == 1.0
    assert cons_at_k(2, [3]) == 0.0
    assert cons_at_k(2, [2, 1]) == 0.5
    assert cons_at_k(1, [1, 1, 1]) == 0.25
    assert cons_at_k(0, []) == 0.0
    assert cons_at_k(1, []) == 1.0


def test_a_bootstrap_interval_holds_the_mean_and_repeats_for_a_seed():
    values = np.random.default_rng(3).random(50)
    first = bootstrap(values, seed=1)
    assert first.mean == pytest.approx(values.mean()) and first.low < first.mean < first.high
    assert bootstrap(values, seed=1) == first != bootstrap(values, seed=2)


@pytest.mark.slow
def test_a_bootstrap_interval_agrees_with_the_normal_one_for_many_problems():
    values = np.random.default_rng(4).random(4000)
    found, error = bootstrap(values), values.std() / math.sqrt(len(values))
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.1 * error)


@pytest.mark.slow
def test_bootstrap_intervals_cover_the_true_mean_about_nineteen_times_in_twenty():
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        found = bootstrap(generator.binomial(8, 0.3, size=60) / 8, seed=trial)
        covered += found.low <= 0.3 <= found.high
    assert 0.91 <= covered / 300 <= 0.98


def test_equal_values_have_an_interval_of_no_width():
    assert bootstrap([0.25] * 7) == (0.25, 0.25, 0.25)


def test_a_paired_interval_is_narrower_than_the_unpaired_one_and_signed_towards_the_second():
    generator = np.random.default_rng(6)
    first = generator.random(200)
    second = np.clip(first + 0.05 + 0.02 * generator.standard_normal(200), 0, None)
    found = paired_bootstrap(first, second)
    assert found.mean == pytest.approx((second - first).mean()) and found.low > 0
    unpaired = bootstrap(second)
    assert found.high - found.low < 0.3 * (unpaired.high - unpaired.low)
    backwards = paired_bootstrap(second, first)
    assert backwards.mean == -found.mean and backwards.high < 0


def test_nothing_to_average_and_unequal_pairs_are_refused():
    with pytest.raises(DataError, match="no graded problems"):
        bootstrap([])
    with pytest.raises(ValueError, match="paired"):
        paired_bootstrap([1.0], [1.0, 2.0])


def test_a_sign_flip_test_is_the_share_of_sign_patterns():
    assert sign_flip([0.0, 0.0]) == 1.0
    assert sign_flip([1.0]) == 0.5  # one sum is as far as the other: both count half
    for data in ([1, 1, 1, 1], [0.5, -0.25, 1.0, 0.75, -0.5], [3, 1, 0, 2]):
        telling = [d for d in data if d]
        sums = [abs(sum(s * d for s, d in zip(signs, telling, strict=True)))
                for signs in itertools.product((1, -1), repeat=len(telling))]  # fmt: skip
        observed = abs(sum(telling))
        brute = sum((s > observed) + (s == observed) / 2 for s in sums) / len(sums)
        assert sign_flip(data) == pytest.approx(brute, abs=1e-12)
    with pytest.raises(DataError, match="no graded problems"):
        sign_flip([])


def test_a_sampled_sign_flip_test_agrees_with_the_exact_one_and_repeats():
    data = np.random.default_rng(7).normal(0.25, 1.0, 15)
    patterns = 1 - 2 * (np.arange(1 << 15)[:, None] >> np.arange(15) & 1)
    exact = np.mean(np.abs(patterns @ data) > abs(data.sum()) - 1e-12) - 1 / (1 << 15)
    assert sign_flip(data) == pytest.approx(exact, abs=0.01) == sign_flip(data)
    assert sign_flip(-data) == pytest.approx(sign_flip(data), abs=0.01)
    assert sign_flip(data + 2) < 0.001


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "samples"), [(30, 64), (100, 8), (300, 4)])
def test_equal_models_differ_significantly_one_time_in_twenty(problems, samples):
    generator = np.random.default_rng(problems)
    trials = 3000
    chance = generator.beta(0.5, 0.5, (trials, problems))  # most problems are nearly always, or never, solved
    a, b = (generator.binomial(samples, chance) / samples for _ in range(2))
    rejected = sum(sign_flip(row, seed, flips=599) < 0.05 for seed, row in enumerate(b - a))
    assert 0.04 <= rejected / trials <= 0.06


@pytest.mark.parametrize("problems", [1, 7, 400, 70_001])
def test_an_interval_is_the_same_however_many_values_are_drawn_at_once(problems: int, monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(1).random(problems).tolist()
    monkeypatch.setattr(estimators, "RESAMPLES", 50)
    found = bootstrap(values)
    monkeypatch.setattr(estimators, "_DRAWN", 3 * problems)
    assert bootstrap(values) == found
