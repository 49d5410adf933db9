"""What a run has spent, over its starts, and when its budget lets no step begin or go on."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from vibethinker import energy, spending
from vibethinker.config import load
from vibethinker.energy import CPU, Energy
from vibethinker.errors import BudgetError, ConfigurationError
from vibethinker.operations import Budget
from vibethinker.spending import FILE, Spending

ESTIMATES = {"a": {"seconds": 60.0, "usd": 0.5}, "b": {"seconds": None, "usd": None}}


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_seconds_and_money_are_counted_while_steps_run_and_over_starts(tmp_path: Path, clock: Clock) -> None:
    first = Spending(tmp_path, price=3.6)
    clock.now += 5
    with first.running("a", 1.0):
        clock.now += 10
        with first.running("b", 0.5):
            clock.now += 20
    clock.now += 7
    first.tick(save=True)
    again = Spending(tmp_path, price=3.6)
    with pytest.raises(ZeroDivisionError), again.running("a", 1.0):
        clock.now += 100
        raise ZeroDivisionError  # whatever becomes of a step, it has cost
    found = again.document()
    assert found["steps"] == {"a": {"seconds": 130.0, "usd": 0.13}, "b": {"seconds": 20.0, "usd": 0.01}}
    assert found["total"] == {"elapsed": 142.0, "seconds": 130.0, "usd": 0.14}


def test_what_was_saved_last_is_what_a_killed_run_has_spent(tmp_path: Path, clock: Clock) -> None:
    one = Spending(tmp_path, price=None)
    with one.running("a", 1.0):
        for _ in range(20):
            clock.now += 1
            one.tick()
        kept = json.loads((tmp_path / FILE).read_text())
        assert 20 - spending.SAVE_SECONDS <= kept["steps"]["a"]["seconds"] <= 20
        assert "usd" not in kept["steps"]["a"]
    (tmp_path / FILE).write_text("{")
    assert Spending(tmp_path, None).document()["steps"] == {}


@pytest.mark.parametrize(
    ("budget", "step", "passed", "sentence"),
    [
        ({"hours": 100 / 3600}, "a", 30, None),
        ({"hours": 100 / 3600}, "a", 50, "before a, which would take about 1.0 min after 50 s, since budget.hours is"),
        ({"hours": 100 / 3600}, "b", 99, None),  # nothing is known of it
        ({"hours": 100 / 3600}, "b", 100, "before b, which would take about 0 s after 1.7 min"),
        ({"usd": 0.55}, "a", 30, None),
        ({"usd": 0.52}, "a", 30, "before a, which would take about 0.50 USD after 0.03 USD, since budget.usd is 0.52"),
        ({"hours": 100 / 3600}, "", 97.5, None),
        ({"hours": 100 / 3600}, "", 99, r"after 1.\d min, .* its steps saved what they had: raise it \(--set"),
        ({}, "a", 10**9, None),
    ],
)
def test_a_budget_lets_nothing_begin_or_go_on_that_would_exceed_it(
    tmp_path: Path, clock: Clock, budget: dict[str, float], step: str, passed: float, sentence: str | None
) -> None:
    one = Spending(tmp_path, price=3.6)
    with one.running("other", 1.0):
        clock.now += passed
        if sentence is None:
            one.check(Budget(**budget), step, ESTIMATES, leave_seconds=30)
            return
        with pytest.raises(BudgetError, match=f"The run was paused {sentence}"):
            one.check(Budget(**budget), step, ESTIMATES, leave_seconds=30)


def test_of_a_step_that_was_begun_before_only_the_rest_counts_and_running_ones_cost_too(
    tmp_path: Path, clock: Clock
) -> None:
    one = Spending(tmp_path, price=3.6)
    with one.running("a", 1.0):
        clock.now += 55
    one.check(Budget(hours=65 / 3600), "a", ESTIMATES)
    with one.running("a", 1.0):
        estimates = {**ESTIMATES, "c": {"seconds": 1.0, "usd": 0.4}}
        one.check(Budget(usd=0.91), "c", estimates)
        with pytest.raises(BudgetError, match=r"after 0\.06 USD"):
            one.check(Budget(usd=0.89), "c", estimates)  # 0.055 spent, 0.445 for a and 0.4 for c to come


def test_money_needs_a_price() -> None:
    with pytest.raises(ConfigurationError, match=r"budget\.usd needs a price: set execution\.price"):
        load("tiny", overrides=["budget.usd=5"], environ={})


def test_energy_is_shared_by_the_steps_that_take_it(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    zone = tmp_path / "intel-rapl:0"
    for folder in (zone, tmp_path / "intel-rapl:0:0"):
        folder.mkdir()
        (folder / "energy_uj").write_text("900000000")
        (folder / "max_energy_range_uj").write_text("1000000000")
    monkeypatch.setattr(energy.shutil, "which", lambda name: name)
    monkeypatch.setattr(energy, "_watts", lambda: {"0": 300.0, "1": 100.0})
    one = Spending(tmp_path, None, Energy(True, tmp_path))
    with one.running("a", 0.5, ["0"]), one.running("b", 1.0):
        clock.now += 10
        (zone / "energy_uj").write_text("50000000")  # wrapped around: 150 J
    assert one.document()["steps"]["a"]["joules"] == pytest.approx(3000 + 50)
    assert one.document()["steps"]["b"]["joules"] == pytest.approx(100)
    assert one.document()["total"]["joules"] == pytest.approx(3150)


def test_energy_that_can_not_be_read_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl:0").mkdir()  # for root alone
    assert Energy(False, tmp_path).take(last=True) == {}
    one = Spending(tmp_path, None, Energy(False, tmp_path))
    with one.running("a", 1.0):
        pass
    assert "joules" not in one.document()["total"]
    assert CPU not in Energy(False, tmp_path / "absent").take()
