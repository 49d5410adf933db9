"""report.html: complete, self-contained, and safe against what models write."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tests.reporting.synthetic import HOSTILE
from vibethinker.reporting import html

VOID = {"meta", "link", "br", "hr", "img", "input"}
SHAPES = {"line", "circle", "rect", "path", "polyline", "polygon"}


class Page(HTMLParser):
    """Tags with attributes, visible text, and whether every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in SHAPES
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def ids(self) -> set[str]:
        return {attrs["id"] for tag, attrs in self.tags if tag == "section"}


@pytest.fixture
def text(report, summary, config) -> str:
    return html.render(report, summary, config)


def test_the_page_has_every_section_and_plots(text):
    page = Page(text)
    assert page.ids() == {
        "result",
        "run",
        "scores",
        "worse",
        "spectrum",
        "signal",
        "data",
        "samples",
        "cost",
        "provenance",
        "configuration",
    }
    plots = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(plots) > 15 and all(attrs["aria-label"] for attrs in plots)


def test_nothing_is_loaded_and_no_script_runs(text):
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attrs in page.tags:
        assert not {"src", "xlink:href", "action", "srcset"} & attrs.keys()
        assert (attrs.get("href") or "#").startswith("#")  # within the page
        assert not [name for name in attrs if name.startswith("on")]
    assert not re.search(r"https?://|@import|url\(", text)


def test_what_a_model_wrote_stays_text(text):
    assert "<script" not in text
    assert HOSTILE in "".join(Page(text).text)


@pytest.mark.parametrize("place", ["model", "set", "warning", "error", "checkpoint", "metric", "domain"])
def test_hostile_names_stay_text(place, report, summary, config):
    bad = "<img src=x onerror=alert(1)>\"'"
    if place == "model":
        report = {**report, "models": [{**report["models"][0], "id": bad}], "comparisons": []}
    elif place == "set":
        report = {**report, "samples": [{**s, "set": bad} for s in report["samples"]]}
    elif place == "warning":
        summary = {**summary, "warnings": [bad]}
    elif place == "error":
        summary = {**summary, "steps": [{**summary["steps"][0], "state": "failed", "error": bad}]}
    elif place == "checkpoint":
        report = {**report, "probes": {"algebra": {**report["probes"]["algebra"], "selected": bad}}}
    elif place == "metric":
        report = {**report, "curves": {"signal-1": {bad: {"step": [1, 2], "value": [1, 2]}}}}
    else:
        report = {**report, "curves": {f"specialist-{bad}": {"loss": {"step": [1, 2], "value": [1, 2]}}}}
        report["curves"]["specialist-other"] = report["curves"][f"specialist-{bad}"]
    page = Page(html.render(report, summary, config))
    assert "img" not in {tag for tag, _ in page.tags}
    shown = "".join(page.text).lower()
    assert "onerror=alert(1)" in shown


def test_a_run_that_failed_early_still_has_a_page(config):
    steps = [
        {
            "id": "data",
            "fingerprint": "ab" * 32,
            "state": "failed",
            "seconds": None,
            "metrics": {},
            "error": "No rows.",
        },
        {"id": "base", "fingerprint": "cd" * 32, "state": "skipped", "seconds": None, "metrics": {}},
    ]
    summary = {"schema": 1, "run_id": "r", "status": "failed", "steps": steps, "models": [], "comparisons": []}
    page = Page(html.render({}, {**summary, "warnings": []}, config))
    assert page.ids() == {"result", "run", "cost", "configuration"}
    shown = " ".join("".join(page.text).split())
    assert "data failed: No rows." in shown and "not reached" in shown


@pytest.mark.parametrize("part", ["probes", "fusion", "signals", "curves", "samples", "data"])
def test_each_part_is_optional(part, report, summary, config):
    Page(html.render({**report, part: [] if part == "samples" else {}}, summary, config))


def test_what_got_worse_is_said_first_the_surest(report):
    found = html.worse(report, html.model_names(report))
    assert found and all(one["gain"].startswith("−") for one in found)
    sorts = [one["sort"] for one in found]
    assert sorts == sorted(sorts)  # down before unsure


def test_specialists_measured_at_home_share_a_row_of_the_score_table(report):
    table = html.score_tables(report, html.model_names(report))[0]
    assert [row["name"] for row in table["rows"]] == [
        "Base", "Specialists, each at home", "Fused", "Signal 1 (math)", "Signal 2 (code)",
    ]  # fmt: skip
    assert table["scopes"] == ["algebra", "geometry", "code", "math", "all"]
    assert [bool(cell) for cell in table["rows"][1]["cells"]] == [True, True, True, False, False]


def test_a_gain_names_both_ends_and_its_interval(report):
    first = html.headlines(report, html.model_names(report))[0]
    assert first["title"] == "Whole recipe, math avg@8"
    assert first["before"].startswith("Base ") and first["after"].startswith("Signal 2 (code) ")
    assert re.fullmatch(r"\[[+−][\d.]+, [+−][\d.]+\]", first["interval"])
