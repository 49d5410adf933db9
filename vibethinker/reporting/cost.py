"""What a run took, beside what it was estimated to take: a row a step and one for all, from its summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vibethinker.reporting.svg import number
from vibethinker.reporting.text import duration

BAR = 9.0  # length of the longest bar, in rem
JOULES = 3.6e6  # in a kWh
MADE = ("done", "cached")
# Phase of a training → the metric of its speed.
RATES = {
    "generation": "generated_tokens_per_second",
    "validation": "validation_tokens_per_second",
    "training": "trained_tokens_per_second",
}


def rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Texts of each step: `estimated`, `source`, `took`, `ratio`, `tokens`, `energy`, `usd`, empty where unknown,
    and the lengths in rem of a `bar` for the time and of a `mark` for the estimate."""
    found = [_row(step, _tokens(step, summary)) for step in summary["steps"]]
    longest = max([1e-9, *(row[name] or 0.0 for row in found for name in ("seconds", "guess"))])
    for row in found:
        made = row["state"] == "done"
        row["bar"] = f"{BAR * row['seconds'] / longest:.2f}" if row["seconds"] else ""
        row["mark"] = f"{BAR * row['guess'] / longest:.2f}" if row["guess"] and made else ""
    return found


def whole(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Texts for the run: `took` (while steps ran), `elapsed`, `work`, `estimated`, `ratio`, `measured`, `usd`,
    `estimated_usd`, `energy`, `tokens`; empty where unknown."""
    spent, estimate = summary.get("spent") or {}, summary.get("estimate") or {}
    made = [step for step in summary["steps"] if step["state"] == "done"]
    seconds, guess = spent.get("seconds") or None, estimate.get("seconds")
    work = sum(step["seconds"] or 0 for step in made)
    tokens = sum(_tokens(step, summary) or 0 for step in made)
    complete = summary["status"] == "completed"
    return {
        "took": duration(seconds) if seconds else "",
        "elapsed": duration(spent["elapsed"]) if spent.get("elapsed") else "",
        "work": duration(work) if work else "",
        "estimated": duration(guess) if guess else "",
        "ratio": _ratio(seconds, guess) if complete else "",
        "measured": f"{estimate['measured']} of {estimate['steps']}" if estimate.get("steps") else "",
        "usd": _money(spent.get("usd")),
        "estimated_usd": _money(estimate.get("usd")),
        "energy": _energy(spent.get("joules")),
        "tokens": _count(tokens),
        "slots": estimate.get("slots"),
    }


def _row(step: Mapping[str, Any], tokens: int | None) -> dict[str, Any]:
    estimate, spent = step.get("estimate") or {}, step.get("spent") or {}
    seconds, guess = step["seconds"], estimate.get("seconds")
    if step["state"] == "cached" or (not guess and estimate.get("source") == "table"):
        guess = None  # nothing was to be made, or the table knows nothing of steps without tokens
    return {
        "id": step["id"],
        "state": step["state"],
        "fingerprint": step["fingerprint"],
        "depends_on": step.get("depends_on", []),
        "seconds": seconds,
        "guess": guess,
        "estimated": _seconds(guess),
        "source": estimate.get("source") if guess is not None else "",
        "took": _seconds(seconds),
        "ratio": _ratio(seconds, guess) if step["state"] == "done" else "",
        "tokens": _count(tokens),
        "energy": _energy(spent.get("joules")),
        "usd": _money(spent.get("usd")),
    }


def _tokens(step: Mapping[str, Any], summary: Mapping[str, Any]) -> int | None:
    """Tokens that a step trained on and generated, as its metrics tell; None where they don't."""
    metrics, found = step["metrics"], 0.0
    for phase, rate in RATES.items():
        if f"seconds_{phase}" in metrics and rate in metrics:
            found += metrics[f"seconds_{phase}"] * metrics[rate]
    found += metrics.get("generated_tokens", 0)
    if not found and step["state"] in MADE and step["id"].startswith("evaluation-"):
        scores: dict[str, Any] = next(
            (m["scores"] for m in summary["models"] if f"evaluation-{m['id']}" == step["id"]), {}
        )
        counts = [of["mean_tokens"] for of in scores.values() if "mean_tokens" in of]
        found = sum(of["value"] * of.get("problems", 0) * of.get("samples", 0) for of in counts)
    return round(found) or None


def _ratio(seconds: float | None, guess: float | None) -> str:
    """How far off an estimate was, in per cent of it."""
    if not seconds or not guess:
        return ""
    off = seconds / guess - 1
    return f"{seconds / guess:.0f} ×" if off >= 4 else f"{off * 100:+.0f} %".replace("-", "−")


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds >= 60:
        return duration(seconds)
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds:.1g} s"


def _money(usd: float | None) -> str:
    if usd is None:
        return ""
    if 0 < usd < 1e-4:
        return "< 0.0001 USD"
    return f"{usd:,.2f} USD" if usd >= 0.1 else f"{usd:.2g} USD"


def _energy(joules: float | None) -> str:
    if joules is None:
        return ""
    kwh = joules / JOULES
    return f"{kwh:.3g} kWh" if kwh >= 0.01 else f"{kwh * 1000:.2g} Wh"


def _count(tokens: int | None) -> str:
    if not tokens:
        return ""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if tokens >= size:
            return f"{tokens / size:.1f} {unit}"
    return number(tokens)
