"""What a run took beside its estimate, in words."""

from __future__ import annotations

from typing import Any

import pytest

from vibethinker.reporting import cost


def step(**values: Any) -> dict[str, Any]:
    return {"id": "signal-1", "fingerprint": "f" * 64, "state": "done", "seconds": 110.0, "metrics": {}, **values}


def row(of: dict[str, Any], **more: Any) -> dict[str, Any]:
    return cost.rows({"steps": [of], "models": [], **more})[0]


def test_an_estimate_stands_beside_what_a_step_took_and_cost() -> None:
    found = row(
        step(
            estimate={"seconds": 100.0, "usd": 0.2, "source": "measured"},
            spent={"seconds": 120.0, "usd": 1.234, "joules": 7.2e6},
        )
    )
    assert (found["estimated"], found["source"], found["took"]) == ("1 min 40 s", "measured", "1 min 50 s")
    assert (found["ratio"], found["usd"], found["energy"]) == ("+10 %", "1.23 USD", "2 kWh")
    assert float(found["mark"]) / float(found["bar"]) == pytest.approx(100 / 110, abs=0.01)


def test_what_is_not_known_is_left_out() -> None:
    texts = ("estimated", "source", "took", "ratio", "tokens", "energy", "usd", "bar", "mark")
    assert not any(row(step(state="waiting", seconds=None))[name] for name in texts)
    reused = row(step(state="cached", estimate={"seconds": 9.0, "usd": None, "source": "table"}))
    assert (reused["estimated"], reused["ratio"], reused["took"]) == ("", "", "1 min 50 s")
    unknown = row(step(estimate={"seconds": 0.0, "usd": None, "source": "table"}))
    assert (unknown["estimated"], unknown["mark"]) == ("", "")


@pytest.mark.parametrize(
    ("seconds", "guess", "ratio"), [(50.0, 100.0, "−50 %"), (100.0, 100.0, "+0 %"), (900.0, 100.0, "9 ×")]
)
def test_how_far_off_an_estimate_was(seconds: float, guess: float, ratio: str) -> None:
    estimate = {"seconds": guess, "usd": None, "source": "measured"}
    assert row(step(seconds=seconds, estimate=estimate))["ratio"] == ratio


def test_tokens_are_those_that_were_counted() -> None:
    metrics = {
        "seconds_generation": 10.0, "generated_tokens_per_second": 100.0,
        "seconds_training": 4.0, "trained_tokens_per_second": 1000.0,
        "seconds_validation": 2.0, "validation_tokens_per_second": 500.0,
    }  # fmt: skip
    assert row(step(metrics=metrics))["tokens"] == "6.0 k"
    scores = {"algebra": {"mean_tokens": {"value": 20.0, "problems": 8, "samples": 4}}}
    measured = row(step(id="evaluation-base"), models=[{"id": "base", "path": "p", "scores": scores}])
    assert measured["tokens"] == "640"


@pytest.mark.parametrize(("status", "ratio"), [("completed", "+10 %"), ("paused", "")])
def test_a_whole_run_is_compared_once_it_is_over(summary: dict[str, Any], status: str, ratio: str) -> None:
    found = cost.whole({**summary, "status": status})
    assert (found["estimated"], found["took"], found["elapsed"]) == ("1 min 30 s", "1 min 39 s", "2 min 0 s")
    assert (found["usd"], found["measured"], found["ratio"]) == ("0.36 USD", "8 of 9", ratio)


def test_a_summary_of_an_older_version_has_its_times_alone() -> None:
    found = cost.whole({"status": "completed", "steps": [step()], "models": []})
    assert (found["took"], found["work"], found["estimated"]) == ("", "1 min 50 s", "")
