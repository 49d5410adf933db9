"""report.html: one self-contained page from report.json and summary.json, without scripts and without the network.

The template (report.html) escapes every value it is given; the only markup passed in is that of
vibethinker.reporting.charts, which escapes its own labels. A run that failed early has no report.json yet: the
page then shows what the summary knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from vibethinker.data.card import FILTERS
from vibethinker.reporting import charts, cost
from vibethinker.reporting.configuration import described
from vibethinker.reporting.highlights import highlights, interval, points, sort
from vibethinker.reporting.provenance import graph
from vibethinker.reporting.svg import number

EMPTY: dict[str, Any] = {
    "models": [],
    "comparisons": [],
    "domains": [],
    "groups": {},
    "benchmarks": [],
    "data": {},
    "probes": {},
    "fusion": {},
    "signals": {},
    "curves": {},
    "samples": [],
    "final": None,
    "k": None,
}
STATES = {
    "done": "made in this run",
    "cached": "reused",
    "failed": "failed",
    "waiting": "not begun",
    "skipped": "not reached",
}


def render(report: Mapping[str, Any], summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The page as text.

    Args:
        report: report.json, or nothing where the run ended before it.
        summary: summary.json.
        config: the resolved configuration as plain values.
    """
    full = {**EMPTY, **report}
    names = model_names(full)
    return _template().render(
        report=full,
        summary=summary,
        config=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True),
        profile=config.get("profile", ""),
        names=names,
        style=Markup(_style()),
        headlines=headlines(full, names),
        tables=score_tables(full, names),
        worse=worse(full, names),
        figures=_figures(full, names),
        stages=_stages(full, names),
        data_columns=_columns(full["data"].get("domains", {})),
        states=STATES,
        described=described(config, summary),
        costs=cost.rows(summary),
        whole=cost.whole(summary),
        provenance=Markup(graph(summary["steps"])),
        card=next((s["fingerprint"] for s in summary["steps"] if s["id"] == "data" and full["data"]), None),
    )


def model_names(report: Mapping[str, Any]) -> dict[str, str]:
    """What the page calls each model; a signal stage has its name in the curriculum beside its number."""
    names = {"base": "Base", "fusion": "Fused"}
    for id in [*(m["id"] for m in report["models"]), *report["signals"]]:
        stage = report["signals"].get(id, {}).get("stage")
        names.setdefault(id, id.replace("-", " ").capitalize() + (f" ({stage})" if stage else ""))
    return names


def headlines(report: Mapping[str, Any], names: Mapping[str, str]) -> list[dict[str, str]]:
    """The gains that the recipe is about, each as title, from, to, gain with interval, and whether it is sure."""
    means = {m["id"]: m["means"] for m in report["models"]}
    found = []
    for title, c in highlights(report["comparisons"]):
        before, after = (means[m][c["scope"]][c["metric"]]["value"] for m in (c["baseline"], c["candidate"]))
        found.append(
            {
                "title": f"{title}, {c['scope']} {c['metric']}",
                "before": f"{names[c['baseline']]} {number(before, True)}",
                "after": f"{names[c['candidate']]} {number(after, True)}",
                "gain": points(c["difference"]),
                "interval": interval(c),
                "sort": sort(c),
            }
        )
    return found


def score_tables(report: Mapping[str, Any], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """One table a metric: a row a model, a column a scope; each cell with its interval and its gain."""
    scopes = list(dict.fromkeys([*report["domains"], *charts.groups(report), *report["benchmarks"]]))
    metrics = list(dict.fromkeys(k for m in report["models"] for of in m["means"].values() for k in of))
    gains = {
        (c["candidate"], c["scope"], c["metric"]): c
        for c in report["comparisons"]
        if c["kind"] in ("specialist", "fusion", "stage")
    }
    tables = []
    for metric in metrics:
        rows = []
        for name, models in _rows(report, names):
            cells: list[dict[str, str] | None] = []
            for scope in scopes:
                means = {m["id"]: m["means"][scope][metric] for m in models if scope in m["means"]}
                cells.extend([_cell(v, gains.get((id, scope, metric))) for id, v in means.items()] or [None])
            rows.append({"name": name, "colour": charts.colour(models[0]["id"]), "cells": cells})
        tables.append({"metric": metric, "scopes": scopes, "rows": rows})
    return tables


def _rows(report: Mapping[str, Any], names: Mapping[str, str]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The rows of a score table, each with its models: specialists measured at home only share one."""
    prefix = "specialist-"
    home = [m for m in report["models"] if m["id"].startswith(prefix) and set(m["means"]) <= _home(report, m["id"])]
    rows = []
    for model in report["models"]:
        if model not in home:
            rows.append((names[model["id"]], [model]))
        elif model is home[0]:
            rows.append(("Specialists, each at home", home))
    return rows


def _home(report: Mapping[str, Any], specialist: str) -> set[str]:
    domain = specialist.removeprefix("specialist-")
    return {domain, *(name for name, members in report["groups"].items() if members == [domain])}


def _cell(value: Mapping[str, float], gain: Mapping[str, Any] | None) -> dict[str, str]:
    cell = {"value": number(value["value"], True), "interval": interval(value, True)}
    return cell | ({"gain": points(gain["difference"]), "sort": sort(gain)} if gain else {})


def worse(report: Mapping[str, Any], names: Mapping[str, str]) -> list[dict[str, str]]:
    """Every comparison in which the later model is worse, the surest first."""
    lower = sorted(
        (c for c in report["comparisons"] if c["difference"] < 0),
        key=lambda c: (not c["significant"], c["high"], c["low"]),
    )
    return [
        {
            "what": f"{names[c['candidate']]} against {names[c['baseline']]}",
            "scope": c["scope"],
            "metric": c["metric"],
            "gain": points(c["difference"]),
            "interval": interval(c),
            "sort": sort(c),
        }
        for c in lower
    ]


def _figures(report: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, list[Markup]]:
    scopes = [group for group in charts.groups(report) if group != "all"]
    figures = {
        "journey": [figure for scope in scopes for figure in charts.journey(report, names, scope)],
        "pass_at_k": charts.pass_at_k(report, names),
        "specialists": charts.specialists(report),
        "probes": charts.probes(report),
        "weights": [charts.weights(report)],
        "base": charts.training(report, "base", "base"),
    }
    return {name: [Markup(f) for f in some if f] for name, some in figures.items()}


def _stages(report: Mapping[str, Any], names: Mapping[str, str]) -> list[dict[str, Any]]:
    found = []
    for id in sorted(report["signals"], key=lambda id: int(id.rpartition("-")[2])):
        recorded = report["signals"][id]
        counts = {key.replace("_", " "): f"{count:,}" for key, count in recorded.get("counts", {}).items()}
        scores = {f"validation {key}": number(s["value"], True) for key, s in recorded.get("validation", {}).items()}
        figures = [Markup(figure) for figure in charts.training(report, id, names[id])]
        same = charts.constants(report, id).values()
        found.append({"name": names[id], "counts": counts | scores, "figures": figures, "constants": same})
    return found


def _columns(domains: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The counts of a data card that aren't 0, in the order in which rows become training data."""
    order = ["rows", *FILTERS, "train", "probe", "validation", "reserved"]
    order += ["solutions", "unverified", "ungraded", "traces", "without_trace"]
    present = dict.fromkeys(name for counts in domains.values() for name, count in counts.items() if count)
    return [name for name in order if name in present] + [name for name in present if name not in order]


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("vibethinker.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "numbered": lambda values: sorted(values.items(), key=lambda kv: int(kv[0])),
    }
    return environment.get_template("report.html")


@cache
def _style() -> str:
    return resources.files("vibethinker.reporting").joinpath("report.css").read_text(encoding="utf-8")
