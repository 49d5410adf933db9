"""The recipe's picture says what the report says, and is an SVG that loads nothing."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.tools import picture
from tests.docs.blocks import ROOT
from tests.reporting.synthetic import DOMAINS, SyntheticRun

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.slow
def test_the_picture_has_the_recipe_s_phases_with_their_curves(tmp_path: Path) -> None:
    report = SyntheticRun(tmp_path / "inputs").build().report(tmp_path / "report")
    root = ElementTree.fromstring(picture.draw(report, "tiny-1"))
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert [text[3:] for text in texts if re.match(r"\d  ", text)] == [
        "Specialists are trained",
        "Probing chooses a checkpoint",
        "Fusion makes them one",
        "Signal: MGPO on math",
        "Signal: MGPO on code",
        "What it achieved",
    ]
    lines = list(root.iter(f"{SVG}polyline"))
    assert len(lines) == 2 * len(DOMAINS) + 2, "training and probing of each domain, and each stage"
    fused = next(m for m in report["models"] if m["id"] == "fusion")["means"]["math"]["pass@8"]["value"]
    assert f"{fused * 100:.1f} %" in texts


def test_pictures_of_the_pages_load_nothing() -> None:
    for path in (ROOT / "docs" / "images").glob("*.svg"):
        for element in ElementTree.parse(path).iter():
            assert element.tag != f"{SVG}script"
            assert not [value for name, value in element.items() if name.endswith("href") and not value.startswith("#")]
