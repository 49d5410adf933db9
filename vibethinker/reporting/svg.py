"""Inline SVG plots for the report: lines, intervals and heat maps, without a plotting library or scripts.

Geometry is in user units of a 360 × 230 view box, so that text stays readable where a plot is as wide as a
phone. Colours are classes (`s0` to `s5`, `heat`): the page's style sheet maps them onto the Okabe-Ito
palette, apart for light and dark. A series also has its own dash pattern, so colour is never the only
difference. Values that are None or no finite number leave a gap.

Left out: zooming, logarithmic axes, and more than six series in one plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple, TypeGuard

from vibethinker.reporting.highlights import points

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 36
POINTS = 240  # more points than this a line are averaged; the plot has fewer pixels
SERIES = 6
NONE = '<text class="none" x="180" y="115">no values</text>'


class Series(NamedTuple):
    """One line: its name, x and y of equal length, optional bounds of an interval around y, and its colour's number."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    colour: int = 0


class Bar(NamedTuple):
    """One row of an interval chart: a label, a value, its interval, and the number of its colour."""

    label: str
    value: float
    low: float
    high: float
    colour: int = 0


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    *,
    share: bool = False,
    marks: bool = False,
    zero: bool = False,
    powers: bool = False,
) -> str:
    """Lines over a common x axis of whole numbers.

    Args:
        title: what is measured; the caption, and the plot's accessible name.
        series: at most SERIES lines, since there are no more colours; empty ones are left out.
        x_label: the x axis's name with its unit.
        share: y values are shares, shown in per cent.
        marks: draw each point, for a few points only.
        zero: the y axis includes 0.
        powers: x values are powers of 2, set at equal distances.
    """
    kept = [thinned(s) for s in series if any(_finite(y) for y in s.y)]
    if not kept:
        return _figure(title, "", NONE)
    xs = [x for s in kept for x in s.x]
    ys = [y for s in kept for column in (s.y, s.low or (), s.high or ()) for y in column if _finite(y)]
    if zero:
        ys.append(0.0)
    place = min(xs), max(xs), LEFT, WIDTH - RIGHT
    x_axis = _Powers(*place) if powers else _Axis(*place, whole=True)
    y_axis = _Axis(min(ys), max(ys), HEIGHT - BOTTOM, TOP)
    parts = _grid(x_axis, y_axis, x_label, share)
    for one in kept:
        colour = one.colour
        if one.low is not None and one.high is not None:
            there = [(x_axis(x), y_axis(y)) for x, y in zip(one.x, one.high, strict=True) if _finite(y)]
            back = [(x_axis(x), y_axis(y)) for x, y in zip(one.x, one.low, strict=True) if _finite(y)]
            outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in there + back[::-1])
            parts.append(f'<polygon class="band s{colour}" points="{outline}"/>')
        for run in _runs(one):
            course = " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in run)
            parts.append(f'<polyline class="line s{colour}" points="{course}"/>')
            if marks or len(run) == 1:
                parts += [
                    f'<circle class="dot s{colour}" cx="{x_axis(x):.1f}" cy="{y_axis(y):.1f}" r="3">'
                    f"<title>{escape(one.name)}: {number(y, share)} at {number(x)}</title></circle>"
                    for x, y in run
                ]
    said = f"{x_label} {number(min(xs))} to {number(max(xs))}. {'; '.join(_course(one, share) for one in kept)}."
    return _figure(title, _legend(kept) if len(kept) > 1 else "", "".join(parts), said=said)


def interval_chart(title: str, bars: Sequence[Bar], *, difference: bool = False) -> str:
    """A row a bar: a dot at the value, a line over its interval, and the value in words.

    Args:
        title: what is measured; the caption, and the plot's accessible name.
        bars: rows from top to bottom. Values are shares, shown in per cent; the axis includes 0, marked by a line.
        difference: values are differences of shares, shown in points with their signs.
    """
    ends = [0.0, *(v for bar in bars for v in (bar.low, bar.high, bar.value))]
    label_width, row = 112, 22
    height = TOP + row * len(bars) + 26
    axis = _Axis(min(ends), max(ends), label_width, WIDTH - 52)
    bottom = height - 22
    parts, tips = [], []
    for tick in axis.ticks(4):
        x, strong = axis(tick), " zero" if tick == 0 else ""
        parts.append(f'<line class="rule{strong}" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
        said = _points_tick(tick) if difference else _tick(tick, share=True)
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 14}">{said}</text>')
    for index, bar in enumerate(bars):
        y = TOP + row * index + row / 2
        value, low, high = (points(v) if difference else number(v, share=True) for v in (bar.value, bar.low, bar.high))
        tips.append(tip := f"{bar.label}: {value} [{low}, {high}]")
        parts.append(
            f'<g><title>{escape(tip)}</title><text class="row" x="{label_width - 8}" y="{y + 4:.1f}">'
            f"{escape(_short(bar.label))}</text>"
            f'<line class="whisker s{bar.colour}" x1="{axis(bar.low):.1f}" x2="{axis(bar.high):.1f}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/><circle class="dot s{bar.colour}" cx="{axis(bar.value):.1f}" '
            f'cy="{y:.1f}" r="4.5"/><text class="value" x="{WIDTH - 2}" y="{y + 4:.1f}">'
            f"{value}</text></g>"
        )
    return _figure(title, "", "".join(parts), height, said="; ".join(tips))


def heat_map(
    title: str, columns: Sequence[Sequence[float]], x: Sequence[float], x_label: str, y_label: str = ""
) -> str:
    """A histogram over time: a column a moment, a row a value of 0 to 1, darker for a larger share of its column.

    Args:
        title: what is counted; the caption, and the plot's accessible name.
        columns: for each moment the counts of equally distant values, of 0 first and of 1 last; all of one length.
        x: the moments, rising.
        x_label, y_label: the axes' names with their units.
    """
    if not columns or not columns[0]:
        return _figure(title, "", NONE)
    columns, x = _joined(columns, x, 48)
    bins = len(columns[0])
    x_axis, y_axis = (
        _Axis(0, len(columns), LEFT, WIDTH - RIGHT, exact=True),
        _Axis(0, bins, HEIGHT - BOTTOM, TOP, exact=True),
    )
    wide, tall = x_axis(1) - x_axis(0), y_axis(0) - y_axis(1)
    parts = []
    for i, column in enumerate(columns):
        total = sum(column) or 1
        for j, count in enumerate(column):
            part = count / total
            tip = f"{j / max(1, bins - 1):.2f} at {number(x[i])}: {number(part, True)} of the groups"
            parts.append(
                f'<rect class="heat" x="{x_axis(i):.2f}" y="{y_axis(j + 1):.1f}" width="{wide:.2f}" '
                f'height="{tall - 1:.1f}" fill-opacity="{_shade(part):.3f}"><title>{tip}</title></rect>'
            )
    for value in (0, 0.25, 0.5, 0.75, 1):
        y = y_axis(0.5 + value * (bins - 1))
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{value:g}</text>')
    for index in sorted({0, len(x) // 2, len(x) - 1}):
        centre = x_axis(index + 0.5)
        parts.append(f'<text class="tick mid" x="{centre:.1f}" y="{HEIGHT - BOTTOM + 15}">{number(x[index])}</text>')
    parts.append(_x_name(x_label))
    if y_label:
        parts.append(f'<text class="name" x="9" y="{(TOP + HEIGHT - BOTTOM) / 2:.0f}">{escape(y_label)}</text>')
    last = max(range(bins), key=lambda j: columns[-1][j])
    said = f"{bins} values from 0 to 1; at the end most groups are at {last / max(1, bins - 1):.2f}."
    return _figure(title, _shades(), "".join(parts), said=said)


def _shade(part: float) -> float:
    """The opacity of a cell; small shares stay visible."""
    return max(0.03, part**0.6)


def _shades() -> str:
    """What the cells' shades mean."""
    cells = "".join(
        f'<rect class="heat" x="{12 * i}" y="0" width="12" height="8" fill-opacity="{_shade(i / 4):.3f}"/>'
        for i in range(5)
    )
    key = f'<svg class="key wide" viewBox="0 0 60 8" aria-hidden="true">{cells}</svg>'
    return f'<div class="legend"><span>share of groups: 0 % {key} 100 %</span></div>'


def _legend(series: Sequence[Series]) -> str:
    """The names of the series beside their colour and dash."""
    entries = (
        f'<span><svg class="key" viewBox="0 0 26 8" aria-hidden="true"><line class="line s{one.colour}" x1="1" '
        f'x2="25" y1="4" y2="4"/></svg>{escape(one.name)}</span>'
        for one in series
    )
    return f'<div class="legend">{"".join(entries)}</div>'


def number(value: float, share: bool = False) -> str:
    """A value in at most four digits, per cent where it is a share."""
    if not _finite(value):
        return "–"
    if share:
        return f"{value * 100:.1f} %" if abs(value) < 0.9995 and abs(value) > 5e-4 else f"{value * 100:.0f} %"
    if value == 0:
        return "0"
    if abs(value) >= 10_000 and value == int(value):
        return f"{int(value):,}".replace(",", "\u2009")
    if abs(value) >= 1e-3:
        return f"{value:.4g}"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def thinned(series: Series) -> Series:
    """The series with at most POINTS points, each the mean of neighbours; bounds are thinned likewise."""
    size = math.ceil(len(series.x) / POINTS)
    if size <= 1:
        return series

    def means(column: Sequence[float | None]) -> list[float | None]:
        parts = ([v for v in column[i : i + size] if _finite(v)] for i in range(0, len(column), size))
        return [sum(part) / len(part) if part else None for part in parts]

    low, high = (None if c is None else means(c) for c in (series.low, series.high))
    x = [v for v in means(series.x) if v is not None]
    return series._replace(x=x, y=means(series.y), low=low, high=high)


class _Axis:
    """A linear map from values to the plane, with round ticks."""

    def __init__(
        self, low: float, high: float, start: float, end: float, *, exact: bool = False, whole: bool = False
    ) -> None:
        if high == low:
            low, high = (0.0, 1.0) if low == 0 else (low - abs(low) * 0.1, high + abs(low) * 0.1)
        if not exact:
            span = high - low
            low, high = (low if low == 0 else low - span * 0.03), high + span * 0.03
        self._low, self._high, self._start, self._end, self._whole = low, high, start, end, whole

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) / (self._high - self._low) * (self._end - self._start)

    def ticks(self, wanted: int = 5) -> list[float]:
        """About `wanted` values 1, 2 or 5 × 10^n apart, at least 1 where they are whole."""
        rough = (self._high - self._low) / wanted
        power = 10.0 ** math.floor(math.log10(rough))
        step = min((m * power for m in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
        step = max(step, 1.0) if self._whole else step
        first, last = math.ceil(self._low / step - 1e-9), math.floor(self._high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


class _Powers:
    """Powers of 2 at equal distances, a tick each."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._axis = _Axis(math.log2(low), math.log2(high), start, end)
        self._ends = low, high

    def __call__(self, value: float) -> float:
        return self._axis(math.log2(value))

    def ticks(self) -> list[float]:
        low, high = self._ends
        return [2.0**i for i in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]


def _tick(value: float, share: bool) -> str:
    return f"{value * 100:.4g} %" if share else number(value)


def _points_tick(value: float) -> str:
    return f"{value * 100:+.4g}".replace("-", "−") if value else "0"


def _grid(x_axis: _Axis | _Powers, y_axis: _Axis, x_label: str, share: bool) -> list[str]:
    parts = []
    for tick in y_axis.ticks():
        y = y_axis(tick)
        parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{_tick(tick, share)}</text>')
    for tick in x_axis.ticks():
        parts.append(f'<text class="tick mid" x="{x_axis(tick):.1f}" y="{HEIGHT - BOTTOM + 15}">{number(tick)}</text>')
    return [*parts, _x_name(x_label)]


def _x_name(text: str) -> str:
    return f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 4}">{escape(text)}</text>'


def _figure(title: str, below: str, body: str, height: float = HEIGHT, said: str = "") -> str:
    """A figure with its caption; `said` is what there is to see, for who can't."""
    description = f"<desc>{escape(said)}</desc>" if said else ""
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg class="plot" viewBox="0 0 {WIDTH} {height:g}" '
        f'role="img" aria-label="{escape(title)}">{description}{body}</svg>{below}</figure>'
    )


def _course(series: Series, share: bool) -> str:
    """A line in words: where it begins, where it ends, and between what it stays."""
    known = [y for y in series.y if _finite(y)]
    ends = f"from {number(known[0], share)} to {number(known[-1], share)}"
    between = f"between {number(min(known), share)} and {number(max(known), share)}"
    return f"{series.name}: {ends}, {between}"


def _runs(series: Series) -> list[list[tuple[float, float]]]:
    """The stretches of a line between gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(series.x, series.y, strict=True):
        if _finite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _joined(columns: Sequence[Sequence[float]], x: Sequence[float], most: int) -> tuple[list[list[float]], list[float]]:
    """Neighbouring columns added up, so that there are at most `most`; each gets its first moment."""
    size = math.ceil(len(columns) / most)
    parts = [columns[i : i + size] for i in range(0, len(columns), size)]
    return [[sum(bin) for bin in zip(*part, strict=True)] for part in parts], list(x[::size])


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _short(text: str, length: int = 18) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
