"""Plots as files of their own: a figure of `vibethinker.reporting.svg` as one SVG with its title, legend and style."""

from __future__ import annotations

from functools import cache
from html import escape
from importlib import resources
from xml.etree import ElementTree

from vibethinker.reporting.svg import WIDTH

TITLE, ROW, PER_ROW = 24, 18, 3
LETTERS = 560  # of 1 px, as bold text is wide, fit beside each other
_DRAWN = (".plot", "line.", ".line", ".whisker", ".band", ".heat")


def standing_alone(figure: str) -> str:
    """The figure as an SVG document, which needs no page around it."""
    parsed = ElementTree.fromstring(figure)
    title, plot = parsed.findtext("figcaption", ""), parsed.find("svg")
    assert plot is not None
    height = float(plot.attrib["viewBox"].split()[-1])
    names = ["".join(span.itertext()) for span in parsed.iterfind("div/span")]
    keys = [line.attrib["class"] for line in parsed.iterfind("div/span/svg/line")]
    legend = []
    for i, (name, key) in enumerate(zip(names, keys, strict=True)):
        x, y = 10 + i % PER_ROW * (WIDTH - 10) / PER_ROW, TITLE + height + 10 + i // PER_ROW * ROW
        legend.append(f'<line class="{key}" x1="{x:.0f}" x2="{x + 26:.0f}" y1="{y:.0f}" y2="{y:.0f}"/>')
        legend.append(f'<text class="said" x="{x + 30:.0f}" y="{y + 4:.0f}">{escape(name)}</text>')
    total = TITLE + height + (-(-len(names) // PER_ROW) * ROW + 6 if names else 0)
    plot.attrib |= {"y": str(TITLE), "width": str(WIDTH), "height": f"{height:g}"}
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {total:g}" width="{2 * WIDTH}" role="img" '
        f'aria-label="{escape(title)}"><style>{_style()}</style><rect class="paper" width="100%" height="100%"/>'
        f'<text class="caption" x="10" y="16" font-size="{min(12, LETTERS / len(title)):.1f}">{escape(title)}</text>'
        f"{ElementTree.tostring(plot, encoding='unicode')}{''.join(legend)}</svg>\n"
    )


@cache
def _style() -> str:
    """Colours, and the rules for what is drawn, of the report's style sheet."""
    sheet = resources.files("vibethinker.reporting").joinpath("report.css").read_text(encoding="utf-8")
    colours, _, rest = sheet.partition("* {")
    drawn = [line for line in rest.splitlines() if line.startswith(_DRAWN)]
    own = (
        "svg { font-family: system-ui, sans-serif; } .paper { fill: var(--paper); } .said { fill: var(--soft); "
        "font-size: 11px; } .caption { fill: var(--ink); font-weight: 600; }"
    )
    return escape("\n".join([colours, *drawn, own]), quote=False)
