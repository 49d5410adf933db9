"""The colours of the pages: readable before both backgrounds, and told apart without hue."""

from __future__ import annotations

import re
from importlib import resources
from itertools import combinations

import pytest

STYLE = resources.files("vibethinker.reporting").joinpath("report.css").read_text(encoding="utf-8")


def colours(scheme: str) -> dict[str, tuple[int, int, int]]:
    """Name → red, green and blue of a scheme's variables."""
    roots = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    found = re.findall(r"--([\w-]+): #(\w\w)(\w\w)(\w\w)", roots[["light", "dark"].index(scheme)])
    return {name: (int(r, 16), int(g, 16), int(b, 16)) for name, r, g, b in found}


def luminance(colour: tuple[int, int, int]) -> float:
    """As WCAG 2.2 defines it."""
    parts = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out(scheme: str) -> None:
    of = colours(scheme)
    for name in ("ink", "soft", "accent", "up", "down"):  # text
        for ground in ("paper", "raised"):
            assert contrast(of[name], of[ground]) >= 4.5, (name, ground)
    assert contrast(of["ink"], of["warn"]) >= 4.5
    for name in [name for name in of if re.fullmatch(r"s\d|heat", name)]:  # shapes
        assert contrast(of[name], of["paper"]) >= 3, name


def seen(colour: tuple[int, int, int], matrix: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    """A colour as somebody without one kind of cones sees it (Machado 2009, linear light)."""
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return tuple(sum(a * b for a, b in zip(row, linear, strict=True)) for row in matrix)


BLIND = {
    "red": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "green": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("lacking", sorted(BLIND))
def test_series_differ_for_the_colour_blind_and_by_their_dashes(scheme: str, lacking: str) -> None:
    of = colours(scheme)
    shades = {name: seen(of[name], BLIND[lacking]) for name in of if re.fullmatch(r"s\d", name)}
    for one, other in combinations(shades, 2):
        assert max(abs(a - b) for a, b in zip(shades[one], shades[other], strict=True)) > 0.06, (one, other)
    dashes = [re.search(rf"^\.line\.s{i} \{{ stroke-dasharray: ([^;]+);", STYLE, re.MULTILINE) for i in range(1, 6)]
    assert len({dash[1] for dash in dashes if dash}) == 5
