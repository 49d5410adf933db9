"""A report in a real browser, as people open it: from the disk, wide or on a phone, light or dark.

`python -m tests.reporting.pictures REPORT.html FOLDER` keeps pictures of its parts, such as those of docs/images.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Page, sync_playwright

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TALLEST = 1500  # pixels of a picture
WIDE, PHONE = (1200, 900), (390, 844)
COLOURS = 255  # of a picture that is kept
Scheme = Literal["light", "dark"]
# Picture → width, scheme, sections, and whether the phone's screen alone is shown.
PICTURES: dict[str, tuple[tuple[int, int], Scheme, tuple[str, ...]]] = {
    "report-result": (WIDE, "light", ("header", "#result")),
    "report-spectrum-dark": (WIDE, "dark", ("#spectrum",)),
    "report-signal": (WIDE, "light", ("#signal",)),
    "report-cost": (WIDE, "light", ("#cost",)),
    "report-provenance-dark": (WIDE, "dark", ("#provenance",)),
    "report-phone": (PHONE, "light", ("header", "#result")),
    "report-phone-cost-dark": (PHONE, "dark", ("#cost", "#provenance")),
}


@contextmanager
def opened(file: Path, size: tuple[int, int] = WIDE, scheme: Scheme = "light") -> Iterator[tuple[Page, list[str]]]:
    """The page, and what its console says, what it asks others for, and what goes wrong."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        page, said = context.new_page(), list[str]()
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: request.url == file.as_uri() or said.append(f"request: {request.url}"))
        page.goto(file.as_uri())
        try:
            yield page, said
        finally:
            browser.close()


def overflow(page: Page) -> int:
    """By how many pixels the page is wider than its window; its tables scroll by themselves."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def keep(file: Path, folder: Path) -> None:
    """Take all pictures of a report."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (size, scheme, parts) in PICTURES.items():
        with opened(file, size, scheme) as (page, said):
            assert not said, said
            boxes = [page.locator(part).first.bounding_box() for part in parts]
            assert all(boxes), f"{file} has no {parts}"
            top = min(box["y"] for box in boxes if box)
            bottom = max(box["y"] + box["height"] for box in boxes if box)
            clip = {"x": 0, "y": max(0, top - 12), "width": size[0], "height": min(TALLEST, bottom - top + 24)}
            shot = page.screenshot(full_page=True, clip=clip)  # type: ignore[arg-type]
        Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(
            folder / f"{name}.png", optimize=True
        )


if __name__ == "__main__":
    keep(Path(sys.argv[1]).absolute(), Path(sys.argv[2]))
