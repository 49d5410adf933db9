"""Draws the recipe with the curves of a run: `python -m docs.tools.picture RUN docs/images/recipe.svg`.

Six plots of a run's report in one SVG, in the order in which the recipe goes; RUN is a folder of `runs/`. The picture
loads nothing, and is light or dark as the reader's system is. Left out: stages after the second.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from vibethinker import runs
from vibethinker.reporting import charts
from vibethinker.reporting.svg import HEIGHT, WIDTH, Bar, Series, interval_chart, line_chart

GAP, HEAD = 24, 52  # between plots, and above each
COLUMNS = 3
PLACED = 'preserveAspectRatio="xMidYMin"'  # where a plot is lower than its place
SHARES = {"right rollouts": "reward", "groups of one verdict": "zero_variance"}  # of a stage that shapes no reward
_PLOT = re.compile(r"<svg class=\"plot\".*?</svg>", re.DOTALL)
_RULES = re.compile(r"^(?:\.plot|line\.|\.line|\.whisker|\.band|\.heat).*$", re.MULTILINE)


class Panel(NamedTuple):
    """One plot: what the recipe does there, what is measured, the lines' names, and the plot as a figure."""

    title: str
    measured: str
    names: Sequence[str]
    figure: str


def draw(report: Mapping[str, Any], run_id: str) -> str:
    """The picture, as the text of an SVG file, from a run's report.json."""
    panels = _panels(report)
    wide = COLUMNS * WIDTH + (COLUMNS + 1) * GAP
    tall = -(-len(panels) // COLUMNS) * (HEAD + HEIGHT + GAP) + GAP + 18
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" role="img" font-family="sans-serif">',
        f"<title>The recipe, with the curves of {escape(run_id)}</title>",
        f"<style>{_style()}</style>",
        f'<rect class="card" width="{wide}" height="{tall}" rx="10"/>',
    ]
    for i, panel in enumerate(panels):
        x, y = GAP + i % COLUMNS * (WIDTH + GAP), GAP + i // COLUMNS * (HEAD + HEIGHT + GAP)
        parts.append(f'<text class="title" x="{x}" y="{y + 10}">{i + 1}  {escape(panel.title)}</text>')
        parts.append(f'<text class="measured" x="{x}" y="{y + 28}">{escape(panel.measured)}</text>')
        parts.append(_names(panel.names, x, y + 44))
        plot = _PLOT.search(panel.figure)
        assert plot, "a chart holds one plot"
        parts.append(
            plot[0].replace("<svg ", f'<svg x="{x}" y="{y + HEAD}" width="{WIDTH}" height="{HEIGHT}" {PLACED} ', 1)
        )
    told = f"{run_id}: {report['profile']}, {', '.join(report['domains'])}; intervals are 95 % bootstrap over problems"
    parts.append(f'<text class="measured" x="{GAP}" y="{tall - 14}">{escape(told)}</text></svg>')
    return "\n".join(parts) + "\n"


def _panels(report: Mapping[str, Any]) -> list[Panel]:
    k = report["k"]
    loss = {d: report["curves"][f"specialist-{d}"]["loss"] for d in report["domains"]}
    specialists = [Series(d, c["step"], c["value"], colour=i) for i, (d, c) in enumerate(loss.items())]
    probed = [_probed(domain, report["probes"][domain], i) for i, domain in enumerate(report["domains"])]
    panels = [
        Panel("Specialists are trained", "loss by step", list(loss), line_chart("", specialists, charts.STEP)),
        Panel("Probing chooses a checkpoint", f"Pass@{k} by step", list(loss),
              line_chart("", probed, charts.STEP, share=True, marks=True)),
        Panel("Fusion makes them one", f"Pass@{k}", [], _scores(report, f"pass@{k}", ("base", "fusion"))),
    ]  # fmt: skip
    for step, signal in list(report["signals"].items())[:2]:
        curves = report["curves"][step]
        lines = [
            Series(name, curves[measure]["step"], curves[measure]["value"], colour=i)
            for i, (name, measure) in enumerate(SHARES.items())
            if measure in curves
        ]
        figure = line_chart("", lines, charts.STEP, share=True, zero=True)
        panels.append(Panel(f"Signal: MGPO on {signal['stage']}", "share by update", [x.name for x in lines], figure))
    average = next(m for m in report["models"][0]["means"][charts.groups(report)[0]] if m.startswith("avg@"))
    models = ("base", "fusion", report["final"])
    return [*panels, Panel("What it achieved", average, [], _scores(report, average, models))]


def _probed(domain: str, probe: Mapping[str, Any], colour: int) -> Series:
    steps = [int(c["checkpoint"].rpartition("-")[2]) for c in probe["candidates"]]
    scores = [c["pass_at"][str(probe["k"])]["value"] for c in probe["candidates"]]
    return Series(domain, steps, scores, colour=colour)


def _scores(report: Mapping[str, Any], metric: str, models: Sequence[str]) -> str:
    names = {"base": "base", "fusion": "fused", report["final"]: "final"}
    means = {m["id"]: m["means"] for m in report["models"]}
    bars = [
        Bar(f"{names[model]}, {scope}", found["value"], found["low"], found["high"], charts.colour(model))
        for scope in charts.groups(report)
        if scope != "all"
        for model in models
        if (found := means[model][scope].get(metric))
    ]
    return interval_chart("", bars)


def _names(names: Sequence[str], x: int, y: int) -> str:
    """The lines' names beside their colour and dash; a picture has no place for HTML."""
    parts, at = [], float(x)
    for i, name in enumerate(names):
        parts.append(f'<line class="line s{i}" x1="{at:.0f}" x2="{at + 18:.0f}" y1="{y - 4}" y2="{y - 4}"/>')
        parts.append(f'<text class="key" x="{at + 21:.0f}" y="{y}">{escape(name)}</text>')
        at += 28 + 5.7 * len(name)
    return "".join(parts)


def _style() -> str:
    """What the plots need of the report's style sheet, its colours in light and dark."""
    sheet = (resources.files("vibethinker") / "reporting" / "report.css").read_text()
    colours = sheet[: sheet.index("* {")]
    rules = "\n".join(found[0] for found in _RULES.finditer(sheet))
    own = (
        ".card { fill: var(--paper); } .title { fill: var(--ink); font-size: 15px; font-weight: 650; } "
        ".measured, .key { fill: var(--soft); font-size: 12px; } .key { font-size: 10px; }"
    )
    return f"{colours}\n{rules}\n{own}"


if __name__ == "__main__":
    folder = Path(sys.argv[1]).absolute()
    summary = runs.read_summary(folder)
    fingerprint = next(step["fingerprint"] for step in summary["steps"] if step["id"] == "report")
    path = folder.parents[1] / "artifacts" / "report" / fingerprint / "report.json"
    Path(sys.argv[2]).write_text(draw(json.loads(path.read_text()), summary["run_id"]), encoding="utf-8")
