"""What a run says at its end: in the terminal (`summarise`) and as Prefect's markdown artifact (`markdown`).

Both read the run's summary; the scores over several domains are in the metrics of its report step. A run that
failed before that step has none: then the failures and the way on are what is said.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from vibethinker.reporting.highlights import highlights, interval, points, score
from vibethinker.runs import program
from vibethinker.tracking import store_uri

WIDTH = 100
WARNINGS = 3  # shown in the terminal; the rest is in the report
ERRORS = 4
SCORES = "Scores in %, with 95 % intervals:"


def summarise(summary: Mapping[str, Any], workspace: Path) -> str:
    """At most 40 lines of at most 100 columns, apart from paths: scores, gains, warnings, and where everything is."""
    return "\n".join([achieved(summary), "", *_places(workspace / "runs" / summary["run_id"], workspace)])


def achieved(summary: Mapping[str, Any]) -> str:
    """The same without where things are."""
    lines = [f"{summary['run_id']}: {summary['status']}, {_counts(summary)}"]
    failed = [f"{s['id']}: {s['error']}" for s in summary["steps"] if "error" in s and s["state"] == "failed"]
    for text in failed[:ERRORS]:
        lines += _wrapped("  failed  ", text)
    header, rows = _table(summary)
    if rows:
        lines += ["", *_aligned(header, rows)]
    if home := _specialists(summary):
        lines += ["", *_wrapped("", "Specialists over the base, each at home: " + ", ".join(home))]
    if gains := highlights(summary["comparisons"]):
        lines.append("")
        cells = [
            [title.partition(":")[0], f"{c['baseline']} → {c['candidate']}", f"{c['scope']} {c['metric']}", _gain(c)]
            for title, c in gains
        ]
        lines += _aligned(None, cells)
    warnings = summary["warnings"]
    if warnings:
        lines.append("")
    for text in warnings[:WARNINGS]:
        lines += _wrapped("  warning ", text, most=4)
    if len(warnings) > WARNINGS:
        lines.append(f"  and {len(warnings) - WARNINGS} more warnings in the report")
    return "\n".join(lines)


def markdown(summary: Mapping[str, Any], places: Iterable[tuple[str, str]] = ()) -> str:
    """The same in Markdown; `places` are names with an address or path, where there is more."""
    parts = [f"## {_plain(summary['run_id'])}: {summary['status']}", _counts(summary), linked(places)]
    parts += [f"**{s['id']}** failed: {_plain(s['error'])}" for s in summary["steps"] if "error" in s]
    header, rows = _table(summary)
    if rows:
        parts += [SCORES, table(header, rows)]
    gains = highlights(summary["comparisons"])
    parts.append(
        "\n".join(
            f"- {title}, {c['scope']} {c['metric']}, {c['baseline']} → {c['candidate']}: {_gain(c)}"
            for title, c in gains
        )
    )
    parts.append("\n".join(f"- warning: {_plain(text)}" for text in summary["warnings"]))
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows))


def linked(places: Iterable[tuple[str, str]]) -> str:
    """Names as links to their addresses in Markdown, or with the paths that they are at."""
    texts = (f"[{name}]({at})" if at.startswith(("http://", "https://")) else f"{name}: `{at}`" for name, at in places)
    return " · ".join(texts)


def _counts(summary: Mapping[str, Any]) -> str:
    states = [s["state"] for s in summary["steps"]]
    names = {"done": "made", "cached": "reused", "failed": "failed", "skipped": "not reached"}
    counts = [f"{states.count(state)} {name}" for state, name in names.items() if state in states]
    seconds = sum(s["seconds"] or 0 for s in summary["steps"] if s["state"] == "done")
    work = f"; {duration(seconds)} of work" if seconds else ""
    return f"{len(states)} steps: {', '.join(counts)}{work}"


def duration(seconds: float) -> str:
    """A time as people say it: its two largest units."""
    if 0 < seconds < 1:
        return "under 1 s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Models by scope and metric; a model that was measured on neither all of maths nor code is left out."""
    report = next((s for s in summary["steps"] if s["id"] == "report"), None)
    scores = report["metrics"].get("scores", {}) if report else {}
    order = [m["id"] for m in summary["models"] if m["id"] in scores and not m["id"].startswith("specialist-")]
    columns = list(
        dict.fromkeys((s, metric) for s in ("math", "code") for m in order for metric in scores[m].get(s, ()))
    )
    header = ["model", *(f"{scope} {metric}" for scope, metric in columns)]
    rows = []
    for model in order:
        cells = [scores[model].get(scope, {}).get(metric) for scope, metric in columns]
        rows.append([model, *(score(c) if c else "" for c in cells)])
    return header, rows


def _specialists(summary: Mapping[str, Any]) -> list[str]:
    return [
        f"{c['scope']} {c['metric']} {points(c['difference'])}{'' if c['significant'] else ' (not significant)'}"
        for c in summary["comparisons"]
        if c["kind"] == "specialist" and c["metric"].startswith("pass@")
    ]


def _gain(comparison: Mapping[str, Any]) -> str:
    unsure = "" if comparison["significant"] else ", not significant"
    return f"{points(comparison['difference'])} points {interval(comparison)}{unsure}"


def _places(folder: Path, workspace: Path) -> Iterator[str]:
    yield f"  report  {folder / 'report.html'}"
    try:
        uri = (yaml.safe_load((folder / "config.yaml").read_text()).get("tracking") or {}).get("uri")
        resume = json.loads((folder / "state.json").read_text())["resume"]
    except OSError:
        return  # a summary that was copied from elsewhere
    store = store_uri(uri, workspace)
    if store.startswith(("http:", "https:")):
        parts = urlsplit(store)
        yield f"  MLflow  {parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    else:
        yield f"  MLflow  {program('mlflow')} ui --backend-store-uri {store}"
    yield f"  resume  {resume}"


def _aligned(header: list[str] | None, rows: list[list[str]]) -> Iterator[str]:
    lines = [header, *rows] if header else rows
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))).rstrip()


def _wrapped(label: str, text: str, most: int = 3) -> list[str]:
    text = " ".join(text.split())
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=label or "  ",
        subsequent_indent=" " * (len(label) or 2),
        max_lines=most,
        placeholder=" …",
    )


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in " ".join(str(text).split()))
