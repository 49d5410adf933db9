"""The data card for readers: card.json of the data step as one page (`html`) and as Markdown (`markdown`).

Everything in a card is untrusted: problems, labels and names come from whatever files a run was given. Every text
is cut and freed of control characters first (`_clean`); card.html escapes all of it. Mappings are read in the order
of their keys, so equal cards give equal bytes. A key that an older card lacks is a part that isn't shown.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from itertools import accumulate
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader, Template
from markupsafe import Markup

from vibethinker.reporting.svg import WIDTH, number

TEXT, NAME = 1500, 60  # longest text and longest name shown, in characters
EXAMPLES = 20  # shown of each filter
LISTED = 200  # labels and keywords shown of each source and domain
MARKDOWN = 19_000  # bytes; Prefect shows an artifact whole
SPLITS = ("train", "probe", "validation", "reserved", "evaluation")
TRACES = ("solutions", "unverified", "ungraded", "traces", "without_trace")
# Cards of schema 1 don't list their filters.
FILTERS = ("repeated", "conflicting", "contaminated", "same_words", "over_max_problems")
UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
CLASSES = ("near_copy", "shared_passage", "stock_phrase")
TEACHER = ("model", "engine", "samples", "requests", "retries", "lost", "replies", "correct", "wrong", "truncated")

Columns = Sequence[tuple[str, Counter[str]]]


def html(card: Mapping[str, Any]) -> str:
    """The page as text, complete in itself: no script, and nothing is loaded."""
    of = _clean(card)
    columns = _columns(of)
    filters = _filters(of, columns)
    total = columns[-1][1] if columns else Counter()
    decontamination = of.get("decontamination") or {}
    return _template().render(
        card=of,
        style=Markup(resources.files("vibethinker.reporting").joinpath("report.css").read_text(encoding="utf-8")),
        total=total,
        columns=columns,
        domains=columns[:-1] or columns,
        funnel=_funnel(filters, columns),
        splits=_present(SPLITS, columns),
        traces=_present(TRACES, columns),
        others=_others(filters, columns),
        read=[s for s in of.get("sources") or [] if str(s.get("role")).startswith("train") and "rows" in s],
        listed=LISTED,
        lengths=_lengths(of.get("lengths") or {}),
        figures=_figures(of, filters, columns),
        hits=_ordered(decontamination.get("hits") or {}, CLASSES),
        clashes=[_marked(example) for example in (decontamination.get("examples") or [])[: 3 * EXAMPLES]],
        teacher=_ordered(of.get("teacher") or {}, TEACHER),
        removed=_examples(of, filters, total),
    )


def markdown(card: Mapping[str, Any]) -> str:
    """The counts of the card in Markdown, below 20 KB; what is too much for that is cut at its end."""
    of = _clean(card)
    columns = _columns(of)
    filters = _filters(of, columns)
    shown = columns if len(columns) <= 12 else [*columns[:11], columns[-1]]
    lines = ["## Data card"]
    if columns:
        total = columns[-1][1]
        lines[0] += f": {_text(total['train'])} training problems, {_text(total['traces'])} verified traces"
        names = ["rows", *filters, *_present(SPLITS, columns), *_present(TRACES, columns), *_others(filters, columns)]
        rows = [["− " * (n in filters) + _key(n), *(_text(counts[n]) for _, counts in shown)] for n in names]
        lines += _table("Problems", ["", *(name for name, _ in shown)], rows)
        if len(columns) > len(shown):
            lines.append(f"{len(columns) - len(shown)} more domains are in the sum only.")
    lines += _table("Evaluation", ["set", "problems"], [[k, _text(v)] for k, v in (of.get("evaluation") or {}).items()])
    rows = [[k, _text(v.get("problems")), _text(v.get("traces"))] for k, v in (of.get("licences") or {}).items()]
    lines += _table("Licences", ["licence", "problems", "traces"], rows)
    clean = of.get("decontamination") or {}
    if clean.get("enabled"):
        against = ", ".join(map(_plain, (clean.get("against") or [])[:20])) or "nothing"
        gram, removed = _text(clean.get("ngram")), _text(clean.get("removed"))
        lines += ["", f"Decontamination by {gram}-word sequences against {against}: {removed} problems removed."]
    elif clean:
        lines += ["", "**Decontamination was off:** training and evaluation problems may overlap."]
    last = [("Decontamination", clean.get("hits"), CLASSES), ("Teacher", of.get("teacher"), TEACHER)]
    for title, found, first in last:
        lines += _table(title, ["", ""], [[_key(k), _text(v)] for k, v in _ordered(found or {}, first)])
    sizes = accumulate(len(line.encode()) + 1 for line in lines)
    kept = [line for line, size in zip(lines, sizes, strict=True) if size <= MARKDOWN]
    rest = ["", "The rest is in the page of the data card."] if len(kept) < len(lines) else []
    return "\n".join([*kept, *rest]) + "\n"


def _clean(value: Any, limit: int = TEXT) -> Any:
    """A copy with texts cut and without control characters and halves of surrogates, and with sorted keys."""
    if isinstance(value, Mapping):
        keys = sorted(value, key=lambda key: (len(str(key)) if str(key).isdigit() else 0, str(key)))
        return {_clean(str(key), 200): _clean(value[key]) for key in keys}
    if isinstance(value, list | tuple):
        return [_clean(one) for one in value]
    if not isinstance(value, str):
        return value
    text = value if len(value) <= limit else value[:limit] + "…"
    return UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def _text(value: Any) -> str:
    """A value of a card as it is shown."""
    if value is None or isinstance(value, ChainableUndefined):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value).replace("\u2009", "\u202f") if isinstance(value, int | float) else str(value)


def _name(text: str, length: int = NAME) -> str:
    """A name in one line."""
    line = re.sub(r"[ \t\n\u2028\u2029]+", " ", str(text)).strip()
    return line if len(line) <= length else line[: length - 1] + "…"


def _key(text: str) -> str:
    """A name that is this project's own, in words."""
    return _name(str(text).replace("_", " "))


def _columns(card: Mapping[str, Any]) -> Columns:
    """Each domain's counts, then their sum where there are several."""
    columns = [
        (name, Counter({key: n for key, n in counts.items() if isinstance(n, int)}))
        for name, counts in (card.get("domains") or {}).items()
    ]
    return [*columns, ("all", sum((counts for _, counts in columns), Counter()))] if len(columns) > 1 else columns


def _present(names: Iterable[str], columns: Columns) -> list[str]:
    return [name for name in names if any(name in counts for _, counts in columns)]


def _filters(card: Mapping[str, Any], columns: Columns) -> list[str]:
    """What removed problems of a domain, in order; one that only ever met rows without a domain is left out."""
    listed = card.get("filters") or _present(FILTERS, columns)
    before = {name for source in card.get("sources") or [] for name in source.get("counts") or {}}
    listed = [n for n in dict.fromkeys(listed) if n not in ("rows", *SPLITS, *TRACES)]
    return [n for n in listed if n not in before or _present([n], columns)]


def _others(filters: Sequence[str], columns: Columns) -> list[str]:
    """Counts that are neither filters nor splits nor known ones of traces."""
    return sorted({name for _, counts in columns for name in counts} - {"rows", *filters, *SPLITS, *TRACES})


def _funnel(filters: Sequence[str], columns: Columns) -> list[tuple[str, list[tuple[int, int]]]]:
    """Rows of the table: a filter, and for each column what it left and what it removed. Then the splits."""
    left = [counts["rows"] for _, counts in columns]
    rows = [("rows", [(n, 0) for n in left])]
    for name in filters:
        left = [n - counts[name] for n, (_, counts) in zip(left, columns, strict=True)]
        rows.append((name, [(n, counts[name]) for n, (_, counts) in zip(left, columns, strict=True)]))
    rows += [(name, [(counts[name], 0) for _, counts in columns]) for name in _present(SPLITS, columns)]
    missing = [n - sum(counts[name] for name in SPLITS) for n, (_, counts) in zip(left, columns, strict=True)]
    return [*rows, ("unaccounted for", [(n, 0) for n in missing])] if any(missing) else rows


def _figures(card: Mapping[str, Any], filters: Sequence[str], columns: Columns) -> dict[str, list[dict[str, Any]]]:
    funnels, balance, diversity = [], [], []
    for i in [len(columns) - 1, *range(len(columns) - 1)] if columns else []:
        steps = [(name, *cells[i]) for name, cells in _funnel(filters, columns)]
        rows = [(_key(name), (0, 0, n) if name in SPLITS else (max(n, 0), gone))
                for name, n, gone in steps if gone or name in ("rows", *SPLITS)]  # fmt: skip
        funnels.append(_bars(columns[i][0], ("left", "removed", "split"), rows, ("s0", "gone", "s2")))
    named = columns[:-1] or columns
    if splits := _present(SPLITS[:4], columns):
        balance.append(_bars("Problems", splits, [(d, [c[s] for s in splits]) for d, c in named]))
    if any(c["traces"] for _, c in named):
        balance.append(_bars("Verified traces", ("traces",), [(d, [c["traces"]]) for d, c in named]))
        traced = [(d, [max(c["train"] - c["without_trace"], 0), c["without_trace"]]) for d, c in named]
        balance.append(_bars("Training problems by trace", ("with", "without"), traced, ("s0", "gone")))
    spread = {d: one.get("traces_a_problem") or {} for d, one in (card.get("diversity") or {}).items()}
    if numbers := sorted({k for one in spread.values() for k in one}, key=lambda k: (len(k), k)):
        parts = [[k] for k in numbers[:5]] + [numbers[5:]]
        several = [(d, [sum(one.get(k, 0) for k in part) for part in parts]) for d, one in spread.items()]
        names = [f"{k} traces" if k != "1" else "1 trace" for k in numbers[:5]] + ["more"] * (len(numbers) > 5)
        diversity.append(_bars("Problems by their number of traces", names, several))
    return {"funnel": funnels, "balance": balance, "diversity": diversity}


def _bars(
    title: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[int]]], css: Sequence[str] = ()
) -> dict[str, Any]:
    """Geometry of horizontal bars of parts that add up, a row each; the sum that is printed is without `gone` parts."""
    css = css or [f"s{i}" for i in range(6)]
    start, scale = 112, (WIDTH - 112 - 62) / max([sum(values) for _, values in rows] + [1])
    drawn = []
    for label, values in rows:
        x, parts = float(start), []
        for name, value, colour in zip(names, values, css, strict=False):
            parts += [{"x": x, "width": value * scale, "css": colour, "tip": f"{name}: {_text(value)}"}] * (value > 0)
            x += value * scale
        shown = sum(value for value, colour in zip(values, css, strict=False) if colour != "gone")
        drawn.append({"label": _name(label, 18), "value": _text(shown), "parts": parts})
    return {"title": title, "legend": list(zip(css, names, strict=False)), "rows": drawn}


def _lengths(lengths: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "rows": of, "figures": [one for d, hist in of.items() if (one := _histogram(d, hist))]}
        for kind in ("problem", "trace")
        if (of := lengths.get(kind))
    ]


def _histogram(title: str, hist: Mapping[str, Any]) -> dict[str, Any] | None:
    """Geometry of a histogram. Bins are equally wide whatever their edges, which may be further and further apart."""
    edges, counts = hist.get("edges") or [], hist.get("counts") or []
    if not counts or len(edges) != len(counts) + 1:
        return None
    left, right, top, bottom = 46.0, WIDTH - 10.0, 12.0, 120.0
    wide, most, last = (right - left) / len(counts), max(counts), len(counts)

    def place(value: float) -> float:
        i = min(max(bisect_right(edges, value) - 1, 0), last - 1)
        part = (value - edges[i]) / ((edges[i + 1] - edges[i]) or 1)
        return left + wide * (i + min(max(part, 0), 1))

    bins = []
    for i, count in enumerate(counts):
        tall, tip = (bottom - top) * count / (most or 1), f"{_text(edges[i])} to {_text(edges[i + 1])}: {_text(count)}"
        bins.append({"x": left + wide * i, "y": bottom - tall, "width": wide, "height": tall, "tip": tip})
    step, tail = math.ceil(last / 5), last > 1 and edges[-1] - edges[-2] > 2 * (edges[-2] - edges[-3])
    end = last - tail  # a last bin that holds all that is longer has the name of its start
    ticks = [(left + wide * i, _text(edges[i])) for i in (*range(0, end - step // 2, step), end)]
    ticks[-1] = (ticks[-1][0], ticks[-1][1] + "+" * tail)
    kinds = [("s1", "median", hist.get("median")), ("s2", "95 % within", hist.get("p95"))]
    marks = [(css, name, place(value), _text(value)) for css, name, value in kinds if value is not None]
    return {"title": title, "bins": bins, "ticks": ticks, "marks": marks, "most": _text(most)}


def _ordered(counts: Mapping[str, Any], first: Sequence[str]) -> list[tuple[str, Any]]:
    return [(name, counts[name]) for name in [*first, *(n for n in counts if n not in first)] if name in counts]


def _marked(example: Mapping[str, Any]) -> dict[str, Any]:
    """An example of decontamination, each of its texts in three pieces of which the second is what they share.

    `shared` was folded to letters and digits in one way or another, so only these are compared.
    """
    shared = "".join(c for c in str(example.get("shared") or "").lower() if c.isalnum())
    texts = []
    for text in (str(example.get(key) or "") for key in ("problem", "evaluation_problem")):
        places = [i for i, c in enumerate(text) if c.isalnum()]
        at = "".join(text[i].lower()[0] for i in places).find(shared) if shared else -1
        start, end = (0, 0) if at < 0 else (places[at], places[at + len(shared) - 1] + 1)
        texts += [(text[:start], text[start:end], text[end:])] if text else []
    return {"of": example, "texts": texts}


def _examples(card: Mapping[str, Any], filters: Sequence[str], total: Counter[str]) -> list[tuple[str, int, list[Any]]]:
    """The filter, how many it removed, and examples of them, in the filters' order."""
    counts = sum((Counter(s.get("counts") or {}) for s in card.get("sources") or []), Counter())
    ordered = _ordered(card.get("examples") or {}, [*filters, *(card.get("filters") or [])])
    return [(name, max(total[name], counts[name]), some[:EXAMPLES]) for name, some in dict(ordered).items() if some]


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], most: int = 48) -> list[str]:
    """A Markdown table's lines, of its first `most` rows; none where there is no row."""
    cells = [header, *rows[:most]]
    lines = ["| " + " | ".join(map(_plain, line)) + " |" for line in cells]
    more = [f"and {len(rows) - most} more"] if len(rows) > most else []
    return ["", f"### {title}", "", lines[0], "|---" * len(header) + "|", *lines[1:], *more] if rows else []


def _plain(text: str) -> str:
    """A name that Markdown shows as it is, in one line of a table."""
    name = escape(_name(text, 40), quote=False).replace("|", "&#124;")
    return re.sub(r"([\\`*_\[\]~!])", r"\\\1", name)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("vibethinker.reporting", "."),
        autoescape=True,
        undefined=ChainableUndefined,  # any key may be missing
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _text, "share": lambda part: number(part, share=True), "name": _name, "key": _key}
    return environment.get_template("card.html")
