"""report.html in a real browser, opened from the disk, with texts that would like to be more than text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="playwright isn't installed: pip install playwright")

from tests.reporting import pictures
from tests.reporting.synthetic import HOSTILE
from vibethinker.reporting import html

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(pictures.CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]


@pytest.fixture
def file(tmp_path: Path, report: dict[str, Any], summary: dict[str, Any], config: dict[str, Any]) -> Path:
    page = tmp_path / "report.html"
    page.write_text(html.render(report, summary, config), encoding="utf-8")
    return page


@pytest.mark.parametrize(("size", "scheme"), [(pictures.WIDE, "light"), (pictures.PHONE, "dark")])
def test_a_report_opens_from_the_disk_fits_the_screen_and_runs_nothing(file: Path, size: Any, scheme: Any) -> None:
    with pictures.opened(file, size, scheme) as (page, said):
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert said == []
        assert pictures.overflow(page) <= 0
        assert page.locator("script").count() == 0
        sample = page.locator("#samples pre").first
        assert sample.is_visible() and HOSTILE in page.locator("#samples").inner_text()
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
        assert dark == (scheme == "dark")
        wide = page.evaluate(
            "[...document.querySelectorAll('svg.plot')].filter(one => "
            "one.getBoundingClientRect().right > window.innerWidth + 1).length"
        )
        assert wide == 0
        clipped = page.evaluate(
            "[...document.querySelectorAll('svg.plot text')].filter(one => { const box = one.getBBox(), "
            "view = one.ownerSVGElement.viewBox.baseVal; return box.x < -1 || box.x + box.width > view.width + 1 || "
            "box.y < -1 || box.y + box.height > view.height + 2 }).map(one => one.textContent)"
        )
        assert clipped == []
