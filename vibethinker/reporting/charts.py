"""The plots of a report, made from report.json, as figures in HTML; none where nothing was recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vibethinker.reporting.svg import SERIES, Bar, Series, heat_map, interval_chart, line_chart, number

STEP = "optimizer step"
# Colours by the model's part in the recipe; lines that are no models count from 0.
BASE, FUSED, SPECIALIST = 5, 0, 3
STAGES = (1, 2, 4)
# What the trainers record: title with unit, whether it is a share, whether its axis starts at 0.
MEASURES: dict[str, tuple[str, bool, bool]] = {
    "reward": ("Mean reward", True, True),  # where nothing is added to verdicts, p's mean
    "p": ("Mean accuracy of a group, p", True, True),
    "weight": ("Mean MGPO weight, w", False, True),
    "zero_variance": ("Groups of one verdict (no gradient)", True, True),
    "truncated": ("Truncated rollouts", True, True),
    "length": ("Mean completion length, tokens", False, True),
    "kl": ("Divergence from the stage's start, nats a token", False, True),
    "entropy": ("Policy entropy, nats a token", False, True),
    "engine_gap": ("Engine's log-probabilities off the trainer's, nats", False, True),
    "importance": ("Mean importance weight", False, False),
    "repeating": ("Rollouts that end in a loop", True, True),
    "infrastructure": ("Rollouts left out, verifier failed", False, True),
    "loss": ("Loss", False, False),
    "grad_norm": ("Gradient norm", False, True),
    "learning_rate": ("Learning rate", False, True),
    "token_accuracy": ("Token accuracy", True, False),
}


def groups(report: Mapping[str, Any]) -> list[str]:
    """The groups of domains, in reading order; `all` only where it adds something."""
    found = [name for name in ("math", "code") if name in report["groups"]]
    return [*found, "all"] if len(found) > 1 else found


def colour(model: str) -> int:
    """The number of a model's colour."""
    if model.startswith("signal-"):
        return STAGES[(int(model.removeprefix("signal-")) - 1) % len(STAGES)]
    return {"base": BASE, "fusion": FUSED, "distilled": STAGES[-1]}.get(model, SPECIALIST)


def journey(report: Mapping[str, Any], names: Mapping[str, str], scope: str) -> list[str]:
    """One interval chart a metric: how each model of the recipe does on `scope`."""
    models = [m for m in report["models"] if scope in m["means"]]
    metrics = list(dict.fromkeys(metric for m in models for metric in m["means"][scope]))
    return [
        interval_chart(
            f"{metric}, {scope}",
            [
                Bar(names[m["id"]], v["value"], v["low"], v["high"], colour(m["id"]))
                for m in models
                if (v := m["means"][scope].get(metric))
            ],
        )
        for metric in metrics
    ]


def pass_at_k(report: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Pass@K over K, a chart a scope: the base, the domain's specialist, the fused and the final model."""
    figures = []
    for scope in dict.fromkeys([*groups(report), *report["domains"], *report["benchmarks"]]):
        shown = ["base", f"specialist-{scope}", "fusion", report["final"]]
        models = {m["id"]: m["pass_at_k"] for m in report["models"] if scope in m["pass_at_k"]}
        series = [_curve(names[m], models[m][scope], colour(m)) for m in dict.fromkeys(shown) if m in models]
        if any(len(s.x) > 1 for s in series):
            figures.append(line_chart(f"Pass@K, {scope}", series, "K", share=True, marks=True, zero=True, powers=True))
    return figures


def probes(report: Mapping[str, Any]) -> list[str]:
    """Pass@K of each kept checkpoint, a chart a domain, a line a K."""
    figures = []
    for domain, probe in report["probes"].items():
        candidates = probe["candidates"]
        at = [_steps(c["checkpoint"], i) for i, c in enumerate(candidates, start=1)]
        series = []
        for i, k in enumerate(sorted(candidates[0]["pass_at"], key=int)):
            scores = [c["pass_at"][k] for c in candidates]
            chosen = k == {"pass_at_k": str(probe["k"]), "pass_at_1": "1"}.get(probe.get("select", "pass_at_k"))
            low, high = ([s[end] for s in scores] if chosen else None for end in ("low", "high"))
            name = f"Pass@{k} (chooses)" if chosen else f"Pass@{k}"
            series.append(Series(name, at, [s["value"] for s in scores], low, high, i))
        title = f"{domain}: {probe['selected']} was chosen"
        figures.append(line_chart(title, series, STEP, share=True, marks=True, zero=True))
    return figures


def specialists(report: Mapping[str, Any]) -> list[str]:
    """Supervised training: a chart a measure, a line a specialist."""
    prefix = "specialist-"
    curves = {id.removeprefix(prefix): c for id, c in report["curves"].items() if id.startswith(prefix)}
    return _measures(curves)


def training(report: Mapping[str, Any], step: str, name: str) -> list[str]:
    """All that one step recorded: a chart a measure, a heat map a histogram; none of what never changed."""
    recorded, left_out = report["curves"].get(step, {}), set(constants(report, step))
    if recorded.get("p") == recorded.get("reward"):
        left_out.add("p")  # the same chart twice
    figures = _measures({name: {measure: found for measure, found in recorded.items() if measure not in left_out}})
    for measure, found in recorded.items():
        if isinstance(found["value"][0], list):
            of_p = measure.startswith("p_")
            title = "Right rollouts of a group, p" if of_p else measure.replace("_", " ")
            figures.insert(1, heat_map(title, found["value"], found["step"], STEP, "p" if of_p else ""))
    return figures


def constants(report: Mapping[str, Any], step: str) -> dict[str, tuple[str, str]]:
    """Measures of a step that had one value at every update, each with its title and that value: no chart is needed."""
    found = {}
    for measure, column in report["curves"].get(step, {}).items():
        first, *others = column["value"]
        if not isinstance(first, list) and all(value == first for value in others):
            title, share, _ = _measure(measure)
            found[measure] = title, number(first, share)
    return found


def weights(report: Mapping[str, Any]) -> str:
    """The specialists' weights in the fused model."""
    found = report["fusion"].get("weights", {})
    bars = [Bar(domain, weight, 0.0, weight, FUSED) for domain, weight in found.items()]
    return interval_chart("Weight of each specialist", bars) if bars else ""


def _measures(curves: Mapping[str, Mapping[str, Any]]) -> list[str]:
    recorded = dict.fromkeys(name for columns in curves.values() for name in columns)
    order = [name for name in MEASURES if name in recorded] + [name for name in recorded if name not in MEASURES]
    figures = []
    for measure in order:
        title, share, zero = _measure(measure)
        series = [
            Series(name, columns[measure]["step"], columns[measure]["value"])
            for name, columns in curves.items()
            if measure in columns and not isinstance(columns[measure]["value"][0], list)
        ]
        for start in range(0, len(series), SERIES):
            part = [s._replace(colour=i) for i, s in enumerate(series[start : start + SERIES])]
            figures.append(line_chart(title, part, STEP, share=share, zero=zero))
    return figures


def _measure(name: str) -> tuple[str, bool, bool]:
    return MEASURES.get(name, (name.replace("_", " ").capitalize(), False, False))


def _curve(name: str, found: Mapping[str, float], colour: int) -> Series:
    ks: Sequence[int] = sorted(map(int, found))
    return Series(name, ks, [found[str(k)] for k in ks], colour=colour)


def _steps(checkpoint: str, otherwise: int) -> int:
    """The optimizer step in a checkpoint's name, `step-000050`."""
    digits = checkpoint.rpartition("-")[2]
    return int(digits) if digits.isdigit() else otherwise
