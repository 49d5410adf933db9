"""The signs of a divergence, each on made-up metrics."""

from __future__ import annotations

import json
import math

import pytest

from vibethinker.operations import Divergence
from vibethinker.training.divergence import Sign, Watch, not_finite, repeats

WINDOW = 4
SOUND = {
    "loss": 0.1,
    "grad_norm": 1.0,
    "zero_variance": 0.2,
    "p": 0.5,
    "entropy": 1.0,
    "truncated": 0.1,
    "repeating": 0.0,
}
SHOWING = {
    "entropy_collapse": {"entropy": 0.01},
    "runaway_length": {"truncated": 0.95},
    "runaway_repetition": {"repeating": 0.6},
    "all_wrong": {"p": 0.0},
    "all_right": {"p": 1.0},
}
OFF = {
    "entropy_collapse": {"entropy": None},
    "runaway_length": {"truncated": None},
    "runaway_repetition": {"repeating": None},
    "all_wrong": {"all_wrong": 0},
    "all_right": {"all_right": 0},
}


def a_watch(rollouts: int = 64, **settings) -> Watch:
    return Watch(Divergence(**({"window": WINDOW, "all_wrong": WINDOW, "all_right": WINDOW} | settings)), rollouts)


def seen(watch: Watch, rows: list[dict]) -> Sign | None:
    """The first sign in further rows."""
    return next((sign for row in rows if (sign := watch.look(watch.remembered()["last"] + 1, row))), None)


@pytest.mark.parametrize("name", SHOWING)
def test_a_sign_counts_once_it_has_shown_for_a_window(name):
    watch = a_watch()
    assert seen(watch, [SOUND] * 10) is None
    assert seen(watch, [SOUND | SHOWING[name]] * (WINDOW - 1)) is None
    sign = seen(watch, [SOUND | SHOWING[name]])
    assert (sign.name, sign.since, sign.update) == (name, 11, 14)
    assert sign.curable == (name != "all_right")
    assert f"{WINDOW} updates" in sign.finding
    assert all(math.isfinite(number) for number in sign.numbers.values())


@pytest.mark.parametrize("name", SHOWING)
def test_one_sound_update_begins_the_window_anew(name):
    watch = a_watch()
    assert seen(watch, [SOUND] * 10) is None
    assert seen(watch, ([SOUND | SHOWING[name]] * (WINDOW - 1) + [SOUND]) * 5) is None


@pytest.mark.parametrize("name", SHOWING)
def test_a_sign_can_be_turned_off(name):
    watch = a_watch(**OFF[name])
    assert seen(watch, [SOUND] * 10 + [SOUND | SHOWING[name]] * 10 * WINDOW) is None


@pytest.mark.parametrize("name", ["entropy_collapse", "runaway_length", "runaway_repetition"])
def test_what_a_stage_began_with_is_no_sign(name):
    """A base model may loop, and a short context cut most rollouts, from the first update on."""
    assert seen(a_watch(), [SOUND | SHOWING[name]] * 10 * WINDOW) is None


def test_a_policy_that_was_never_right_has_not_collapsed():
    assert seen(a_watch(), [SOUND | {"p": 0.0}] * 10 * WINDOW) is None


def test_a_policy_that_is_seldom_right_may_miss_a_window():
    """1 in 64 rollouts right: four updates without any are a matter of luck, twenty are not."""
    watch = a_watch()
    assert seen(watch, [SOUND | {"p": 1 / 64}] * 10) is None
    sign = seen(watch, [SOUND | {"p": 0.0}] * 40)
    assert (sign.name, sign.since, sign.update) == ("all_wrong", 11, 30)


def test_updates_whose_rollouts_were_all_left_out_count_as_wrong():
    watch, row = a_watch(), dict(SOUND)
    del row["p"]
    seen(watch, [SOUND] * 10)
    assert seen(watch, [row] * WINDOW).name == "all_wrong"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_number_that_is_none_counts_at_once_in_every_training(name, value):
    sign = not_finite(7, {"loss": 1.0, "grad_norm": 1.0, name: value})
    assert (sign.name, sign.since, sign.update, sign.healthy) == ("not_finite", 7, 7, 5)
    assert sign.curable
    assert not not_finite(1, {"loss": value}).curable  # the start's own weights did that
    assert a_watch().look(7, {"loss": 1.0, name: value}) == sign


def test_supervised_training_shows_no_other_sign():
    assert seen(a_watch(), [{"loss": 0.0, "grad_norm": 0.0}] * 10 * WINDOW) is None


def test_an_update_accuses_the_one_before_it():
    """What update 11 measured, the weights of update 10 did, so those of 9 are the last beyond suspicion."""
    watch = a_watch()
    seen(watch, [SOUND] * 10)
    assert watch.healthy == 9  # nobody has measured the weights of 10 yet
    seen(watch, [SOUND | SHOWING["runaway_length"]] * 2)
    assert watch.healthy == 9
    seen(watch, [SOUND])
    assert watch.healthy == 12
    seen(watch, [SOUND | SHOWING["all_right"]] * 3)
    assert watch.healthy == 15


@pytest.mark.parametrize("at", range(1, 14))
def test_a_watch_that_forgets_and_recalls_sees_the_same(at):
    rows = [SOUND] * 10 + [SOUND | SHOWING["entropy_collapse"]] * WINDOW
    watch, later = a_watch(), a_watch()
    seen(watch, rows[:at])
    later.recall(json.loads(json.dumps(watch.remembered())))
    assert seen(later, rows[at:]) == seen(a_watch(), rows)


@pytest.mark.parametrize(
    ("ids", "loops"),
    [
        ([7] * 32, True),
        ([7] * 31, False),
        ([*range(100), *[1, 2, 3] * 11], True),
        ([*[1, 2, 3] * 20, 4], False),  # it went on after the loop
        ([*range(64)] * 4, True),
        ([*range(64)] * 3, False),
        ([*range(65)] * 8, False),
        (list(range(300)), False),
        ([], False),
    ],
)
def test_a_loop_is_one_passage_over_and_over_at_the_end(ids, loops):
    assert repeats(ids) is loops
