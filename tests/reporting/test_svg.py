"""The plots: right places, gaps for what isn't there, and text that stays text."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from vibethinker.reporting.svg import Bar, Series, heat_map, interval_chart, line_chart, number, thinned


def tree(figure: str) -> ET.Element:
    return ET.fromstring(figure)


def points(figure: str) -> list[list[tuple[float, float]]]:
    lines = [e.attrib["points"] for e in tree(figure).iter("polyline")]
    return [[tuple(map(float, pair.split(","))) for pair in line.split()] for line in lines]


def test_larger_values_are_higher_and_later_ones_further_right():
    ((first, second, third),) = points(line_chart("t", [Series("a", [1, 2, 4], [0.0, 1.0, 0.5])], "step"))
    assert first[0] < second[0] < third[0] and second[1] < third[1] < first[1]
    assert third[0] - second[0] == pytest.approx(2 * (second[0] - first[0]), abs=0.2)


def test_powers_of_two_are_equally_far_apart():
    ((a, b, c),) = points(line_chart("t", [Series("a", [1, 2, 4], [0, 1, 2])], "K", powers=True))
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.2)


@pytest.mark.parametrize("gap", [None, math.nan, math.inf])
def test_a_missing_value_leaves_a_gap(gap):
    lines = points(line_chart("t", [Series("a", [1, 2, 3, 4, 5], [1, 2, gap, 3, 4])], "step"))
    assert [len(line) for line in lines] == [2, 2]


def test_a_plot_without_values_says_so():
    for series in ([], [Series("a", [], [])], [Series("a", [1], [None])]):
        assert "no values" in line_chart("t", series, "step")
    assert "no values" in heat_map("t", [], [], "step")


@pytest.mark.parametrize("values", [[0, 0], [5, 5], [1e-9, 2e-9], [1e12, 2e12], [-3, -1]])
def test_any_range_has_ticks_inside_the_plot(values):
    figure = line_chart("t", [Series("a", [1, 2], values)], "step")
    ys = [float(e.attrib["y1"]) for e in tree(figure).iter("line") if e.attrib["class"] == "rule"]
    assert 2 <= len(ys) <= 9 and all(0 < y < 230 for y in ys)


def test_labels_are_escaped():
    figure = line_chart('<b>&"', [Series("<i>", [1, 2], [1, 2]), Series("b", [1], [1])], "<u>")
    assert not {e.tag for e in tree(figure).iter()} & {"b", "i", "u"}
    assert not {e.tag for e in tree(interval_chart("t", [Bar("<i>", 0.5, 0.4, 0.6)])).iter()} & {"i"}


def test_an_interval_spans_its_ends_and_holds_its_value():
    figure = tree(interval_chart("t", [Bar("a", 0.5, 0.25, 1.0)]))
    (whisker,) = [e for e in figure.iter("line") if e.attrib["class"].startswith("whisker")]
    (dot,) = figure.iter("circle")
    left, right, x = float(whisker.attrib["x1"]), float(whisker.attrib["x2"]), float(dot.attrib["cx"])
    assert (x - left) / (right - left) == pytest.approx(1 / 3, abs=0.01)


def test_differences_are_told_in_points_with_their_signs():
    figure = interval_chart("t", [Bar("a", -0.0004, -0.021, 0.01)], difference=True)
    texts = [e.text for e in tree(figure).iter("text")]
    assert texts[-1] == "−0.0"
    assert {"−2", "−1", "0", "+1"} <= set(texts)
    assert "a: −0.0 [−2.1, +1.0]" in figure


def cells_of(figure: str) -> list[ET.Element]:
    """The cells of a heat map, without those of its key."""
    return [e for e in tree(figure).iter("rect") if e.find("title") is not None]


def test_a_heat_map_has_a_cell_a_bin_and_is_darkest_where_most_are():
    cells = cells_of(heat_map("t", [[8, 0], [2, 6]], [1, 2], "step"))
    shades = [float(e.attrib["fill-opacity"]) for e in cells]
    assert len(cells) == 4 and shades[0] == 1.0 and shades[1] < shades[2] < shades[3]


def test_a_long_run_is_joined_into_few_columns_and_points():
    cells = cells_of(heat_map("t", [[1, 1]] * 500, list(range(500)), "step"))
    assert len(cells) <= 96
    few = thinned(Series("a", list(range(1000)), [float(i % 2) for i in range(1000)]))
    assert len(few.x) <= 240 and len(few.x) == len(few.y)
    assert few.y[0] == pytest.approx(0.4, abs=0.2)


@pytest.mark.parametrize(
    ("value", "share", "text"),
    [(0.1234, True, "12.3 %"), (0, True, "0 %"), (1, True, "100 %"), (5e-5, False, "5e-5"), (0.001, False, "0.001"),
     (12345678, False, "12\u2009345\u2009678"), (3.14159, False, "3.142"), (math.nan, False, "–"), (0, False, "0")],
)  # fmt: skip
def test_numbers_are_short(value, share, text):
    assert number(value, share) == text


def test_every_series_has_its_own_colour_and_the_legend_shows_it():
    series = [Series(name, [1, 2], [1, 2], colour=i) for i, name in enumerate("abc")]
    figure = line_chart("t", series, "step")
    assert all(len(re.findall(rf'class="line s{i}"', figure)) == 2 for i in range(3))
