"""Intervals that cover what they say, adjusted p-values, and a distribution without SciPy."""

from __future__ import annotations

import numpy as np
import pytest

from vibethinker.errors import DataError
from vibethinker.experiments.statistics import Paired, holm, hopeless, paired, standardised
from vibethinker.experiments.student import quantile, two_sided

TRIALS = 400


def drawn(generator: np.random.Generator, mean: float, seeds: int, problems: int, *sizes: float) -> Paired:
    """Differences that vary with the seed, the problem and both, by these standard deviations."""
    of_seed, of_problem, of_both = sizes
    table = mean + of_seed * generator.standard_normal((seeds, 1)) + of_problem * generator.standard_normal(problems)
    table = table + of_both * generator.standard_normal((seeds, problems))
    return paired({s: {("set", str(p)): value for p, value in enumerate(row)} for s, row in enumerate(table)})


def test_student_s_t_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for df in (1, 4, 30, 10_000):
        for t in (0.0, 0.1, 1, 2.5, 10, 80):
            assert two_sided(t, df) == pytest.approx(2 * stats.t.sf(t, df), rel=1e-8, abs=1e-12)
        for upper in (0.3, 0.025, 0.001):
            assert quantile(upper, df) == pytest.approx(stats.t.isf(upper, df), rel=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [(0.0, 0.0, 0.3), (0.02, 0.1, 0.3), (0.1, 0.1, 0.3), (0.3, 0.05, 0.05), (0.0, 0.2, 0.2)]
)
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_cover_the_true_difference(seeds: int, sizes: tuple[float, float, float]):
    """Also those of a single question of many, and where seeds and problems count about the same, which is hardest."""
    generator, trials = np.random.default_rng(seeds), TRIALS
    found = [drawn(generator, 0.05, seeds, 60, *sizes) for _ in range(trials)]
    for level in (0.95, 0.995):
        ends = [one.interval(level) for one in found]
        missed = sum(not low <= 0.05 <= high for low, high in ends) / trials
        assert missed < 1 - level + 2 * ((1 - level) * level / trials) ** 0.5  # two standard errors above


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_p_is_1_less_the_level_of_the_interval_that_ends_at_0(seeds: int):
    found = drawn(np.random.default_rng(3), 0.1, seeds, 50, 0.02, 0.1, 0.2)
    assert 0 < found.p < 1
    assert found.interval(1 - found.p)[0] == pytest.approx(0, abs=1e-6)
    assert found._replace(difference=-found.difference).p == found.p
    assert found._replace(difference=1e9).p < 1e-9


def test_where_seeds_differ_in_nothing_but_the_problems_these_alone_count():
    found = Paired(0.1, ((0.0, 1), (0.05, 99)), 2, 100, "seeds and problems")
    assert found.p == pytest.approx(two_sided(2.0, 99))
    assert found.interval() == pytest.approx((0.1 - 0.05 * quantile(0.025, 99), 0.1 + 0.05 * quantile(0.025, 99)))


def test_seeds_that_vary_widen_what_problems_alone_would_say():
    generator = np.random.default_rng(1)
    alike, apart = (drawn(generator, 0.0, 4, 200, of_seed, 0.1, 0.2) for of_seed in (0.0, 0.2))
    assert apart.error > 3 * alike.error
    assert [df for _, df in alike.errors] == [3, 199]
    assert alike.method == "seeds and problems"


def test_seeds_with_problems_of_their_own_are_one_value_each():
    found = paired({s: {("set", f"{s}-{p}"): value for p in range(9)} for s, value in enumerate((0.1, 0.2, 0.3))})
    assert (found.method, found.seeds, found.problems, found.errors[0][1]) == ("seeds", 3, 27, 2)
    assert found.difference == pytest.approx(0.2)
    assert found.interval() == pytest.approx((0.2 - 4.302653 * 0.1 / 3**0.5, 0.2 + 4.302653 * 0.1 / 3**0.5), abs=1e-6)


def test_one_seed_speaks_of_its_problems_alone():
    found = paired({7: {("set", str(p)): p / 10 for p in range(10)}})
    assert (found.method, found.seeds, found.problems) == ("problems", 1, 10)
    with pytest.raises(DataError, match="says nothing"):
        paired({7: {("set", "only"): 1.0}})
    with pytest.raises(DataError, match="no graded problem in common"):
        paired({7: {}})


def test_no_difference_at_all_is_no_evidence():
    found = paired({s: {("set", str(p)): 0.0 for p in range(4)} for s in range(3)})
    assert (found.p, found.interval(), found.upper(0.05)) == (1.0, (0.0, 0.0), 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(0.0, 0.1, 0.3), (0.02, 0.1, 0.3), (0.1, 0.05, 0.1)])
def test_an_arm_worth_having_is_rarely_given_up_and_a_hopeless_one_often(sizes: tuple[float, float, float]):
    def share_given_up(true: float) -> float:
        generator, given_up = np.random.default_rng(9), 0
        for _ in range(TRIALS):
            table = true + sizes[0] * generator.standard_normal((3, 1)) + sizes[1] * generator.standard_normal(100)
            table = table + sizes[2] * generator.standard_normal((3, 100))
            given_up += any(
                hopeless([paired({s: {("set", str(p)): v for p, v in enumerate(table[s])} for s in range(n)})],
                         gain=0.02, risk=0.1 / 2)[1]
                for n in (2, 3)
            )  # fmt: skip
        return given_up / TRIALS

    assert share_given_up(0.02) < 0.1 + 2 * (0.1 * 0.9 / TRIALS) ** 0.5  # the risk, and two standard errors
    assert share_given_up(-0.3) > 0.5


def test_one_seed_gives_nobody_up_nor_does_one_hopeless_metric_of_two():
    bad = paired({s: {("set", str(p)): -0.5 + 0.01 * (p % 2) for p in range(9)} for s in range(3)})
    good = bad._replace(difference=0.5)
    alone = paired({1: {("set", str(p)): -0.5 + 0.01 * (p % 2) for p in range(9)}})
    assert hopeless([bad], 0.01, 0.05)[1]
    assert not hopeless([bad, good], 0.01, 0.05)[1]
    assert hopeless([alone], 0.01, 0.05) == ([None], False)
    assert hopeless([None], 0.01, 0.05) == ([None], False)


def test_holm_s_procedure():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_few_seeds_say_little_of_a_standardised_effect():
    assert standardised([0.1, 0.2]) is None
    assert standardised([0.2, 0.2, 0.2]) is None
    assert standardised([0.1, 0.2, 0.3]) == pytest.approx(2 * (1 - 3 / 7))
