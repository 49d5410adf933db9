"""The data card: every count is shown, whatever its texts hold, and equal cards give equal bytes."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest

from tests.reporting import test_html
from tests.reporting.synthetic import HOSTILE
from tests.reporting.test_html import Page
from vibethinker.reporting import card as data_card
from vibethinker.reporting.svg import number

DOMAINS = ("algebra", "calculus", "code", "geometry", "statistics")
FILTERS = [
    "bad",
    "unmapped",
    "no_gold",
    "too_short",
    "language",
    "repeated",
    "conflicting",
    "contaminated",
    "near_copy",
]
PASSAGE = "How many clips did Natalia sell altogether, in April & May?"


def domain_counts(i: int) -> dict[str, int]:
    """Counts that add up, and differ between domains so that each is recognised."""
    filters = {"too_short": 11 + i, "repeated": 213 + 7 * i, "conflicting": 3 + i, "contaminated": 67 + i}
    kept = {"train": 4021 + 1311 * i, "probe": 48, "validation": 47, "reserved": 301 + i}
    rows = sum(filters.values()) + sum(kept.values())
    traces = {"solutions": 9001 + i, "unverified": 411 + i, "ungraded": 2 + i, "traces": 8101 + i, "without_trace": 521}
    return {"rows": rows, **filters, **kept, **traces, "alike": 87 + i}


def histogram(i: int, step: int) -> dict[str, Any]:
    counts = [3 + i, 31, 120 + i, 310, 270, 160, 90, 41, 22, 12, 4, 2]
    edges = [step * j for j in range(13)]
    return {"edges": edges, "counts": counts, "median": step * 4.1 + i, "p95": step * 7.7, "max": step * 11.6,
            "total": sum(counts)}  # fmt: skip


@pytest.fixture
def rich() -> dict[str, Any]:
    """A card with everything in it."""
    labels = {"Prealgebra": {"domain": "algebra", "rows": 1205}, "Number Theory": {"domain": None, "rows": 869},
              "Counting & Probability": {"domain": "statistics", "rows": 771}}  # fmt: skip
    hub = "example/math-train@0123456789abcdef0123456789abcdef01234567"
    return {
        "schema": 2, "source": "files", "seed": 17,
        "sources": [
            {"name": "math_train", "role": "train", "origin": hub, "licence": "MIT", "rows": 12007, "bad": 5,
             "note": "Test problems of the original, apart from MATH-500.", "counts": {"unmapped": 869, "no_gold": 33},
             "labels": labels},
            {"name": "gsm8k_train", "role": "train", "origin": "gsm8k_train.jsonl", "licence": "unstated",
             "note": None, "rows": 7473, "bad": 0, "counts": {"unmapped": 1}, "labels": {}},
            {"name": "math500_test", "role": "evaluation", "origin": "math500_test.jsonl", "licence": "MIT",
             "note": None, "rows": 500, "bad": 0, "counts": {}, "labels": {}},
            {"name": "aime", "role": "protected", "origin": "aime.parquet", "licence": "CC-BY-4.0", "note": None,
             "rows": 30, "bad": 0, "counts": {}, "labels": {}},
        ],
        "filters": FILTERS,
        "domains": {domain: domain_counts(i) for i, domain in enumerate(DOMAINS)},
        "evaluation": {"gsm8k_test": 1319, "math500_test": 499},
        "licences": {"MIT": {"problems": 14002, "traces": 30001}, "unstated": {"problems": 7403, "traces": 10501}},
        "decontamination": {
            "enabled": True, "ngram": 10, "whitelist": True, "against": ["gsm8k_test", "math500_test", "aime"],
            "removed": 345,
            "hits": {"near_copy": 38, "shared_passage": 307, "stock_phrase": 95},
            "templates": {"opening": ["Return your final response within \\boxed{}."], "closing": []},
            "examples": [
                {"class": "near_copy", "origin": "gsm8k_train.jsonl, row 12", "problem": f"Natalia sold 48. {PASSAGE}",
                 "evaluation_set": "gsm8k_test", "evaluation_problem": f"Natalia sold 50. {PASSAGE.upper()}",
                 "shared": "how many clips did natalia sell altogether in april may", "share": 0.873},
                {"class": "stock_phrase", "origin": "math_train.jsonl, row 4", "problem": HOSTILE, "share": 0.12,
                 "evaluation_set": "math500_test", "evaluation_problem": "What is it?", "shared": "alert x boxed 1"},
            ],
        },
        "duplicates": {"near": 0.8, "removed": 401, "variants": 55},
        "lengths": {
            "unit": "tokens", "tokenizer": "models/base",
            "problem": {domain: histogram(i, 20) for i, domain in enumerate(DOMAINS)},
            "trace": {domain: histogram(i, 130) for i, domain in enumerate(DOMAINS)},
        },
        "diversity": {
            domain: {"problems": 2001 + i, "distance": 0.6123 + i / 100, "embedding_distance": None if i else 0.2345,
                     "traces_a_problem": {"1": 1203 + i, "2": 903 + i, "3": 703 + i, "10": 7 + i}}
            for i, domain in enumerate(DOMAINS)
        },
        "classifier": {"decided": 5003, "by_teacher": 209, "otherwise": 77, "undecided": 45,
                       "keywords": {"algebra": {"equation": 811, "solve for": 605}, "geometry": {"triangle": 702}}},
        "teacher": {"model": "teacher-7b", "engine": "server", "samples": 4, "requests": 20004, "replies": 19873,
                    "correct": 12201, "wrong": 7001, "truncated": 671, "prompt_tokens": 2500123,
                    "completion_tokens": 18000456, "usd": 12.34, "retries": 131, "lost": 6, "majority_labels": 44},
        "examples": {
            "too_short": [{"origin": "math_train.jsonl, row 7", "text": "2 + 2?", "detail": "2 words"}],
            "unmapped": [{"origin": "math_train.jsonl, row 9", "text": HOSTILE, "detail": "label <b>Number</b>"}],
        },
    }  # fmt: skip


def shown(card: dict[str, Any]) -> str:
    return " ".join(" ".join(Page(data_card.html(card)).text).split())


def written(value: float, share: bool = False) -> str:
    """A number as `shown` has it, where every space is an ordinary one."""
    return number(value, share).replace("\u2009", " ")


def numbers(value: Any, key: str = "") -> list[str]:
    """Every count of a card as it is written; shares are per cent."""
    if isinstance(value, dict):
        return [text for k, v in value.items() for text in numbers(v, k)]
    if isinstance(value, list):
        return [text for v in value for text in numbers(v, key)]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return []
    return [written(value, share=key == "share")]


def test_every_count_of_the_card_is_on_the_page(rich):
    text, wanted = shown(rich), set(numbers(rich))
    assert len(wanted) > 150
    missing = [n for n in wanted if not re.search(rf"(?<![\d.]){re.escape(n)}(?!\d)", text)]
    assert missing == []


def test_the_page_has_every_section(rich):
    page = Page(data_card.html(rich))
    assert page.ids() == {
        "totals", "funnel", "balance", "evaluation", "lengths", "sources", "licences", "decontamination", "duplicates",
        "diversity", "teacher", "removed",
    }  # fmt: skip
    plots = [attrs for tag, attrs in page.tags if tag == "svg" and attrs.get("role") == "img"]
    assert len(plots) == 6 + 3 + 10 + 1 and all(attrs["aria-label"] for attrs in plots)


def test_nothing_is_loaded_and_no_script_runs(rich):
    test_html.test_nothing_is_loaded_and_no_script_runs(data_card.html(rich))


def everywhere(value: Any, bad: str) -> Any:
    """The card with `bad` for every text, and in every key that isn't the card's own."""
    own = re.compile(r"[a-z_]+|\d+")
    if isinstance(value, dict):
        named = value.keys() & {"Prealgebra", "MIT", "math500_test", "algebra", "equation", "too_short"}
        return {(f"{bad}{k}" if named or not own.fullmatch(k) else k): everywhere(v, bad) for k, v in value.items()}
    if isinstance(value, list):
        return [everywhere(v, bad) for v in value]
    return bad if isinstance(value, str) else value


@pytest.mark.parametrize("bad", [
    "<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "]]></title></svg><svg onload=alert(1)>",
    "{{ 7 * 7 }}{% raw %}", "a | b\n\n# c\r\n<b>d</b>", "nul \x00 and half \ud800 \x1b[2J",
])  # fmt: skip
def test_hostile_texts_stay_text(bad, rich):
    assert HOSTILE in "".join(Page(data_card.html(rich)).text)
    card = everywhere(rich, bad)
    text = data_card.html(card)
    page, plain = Page(text), Page(data_card.html(rich))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert "\x00" not in text and "\x1b" not in text and text.encode()
    said = data_card.markdown(card)
    assert not re.search(r"<|\n# c|\x00|\x1b", said) and said.encode()
    rows = [line for line in said.splitlines() if line.startswith("|")]
    assert rows and {line.count("|") for line in rows} <= {3, 4, 8}  # a bar of a text would be one more


def test_long_texts_and_long_lists_are_cut(rich):
    rich["examples"]["too_short"] = [{"origin": "o" * 10**7, "text": "x" * 10**7, "detail": "d" * 10**7}] * 1000
    rich["domains"]["q" * 10**7] = domain_counts(9)
    rich["sources"][0]["note"] = "n" * 10**7
    rich["sources"][0]["labels"] = {f"label {i}": {"domain": None, "rows": i} for i in range(1000)}
    text = data_card.html(rich)
    assert len(text) < 500_000
    assert "and 800 more labels" in text and "label 999<" in text and "label 5<" not in text
    assert len(data_card.markdown(rich)) < 10_000


@pytest.mark.slow
@pytest.mark.parametrize("sign", ["|", "<", "\U0001f600", "*", "a"])
def test_markdown_stays_small_whatever_the_card(sign):
    names = [f"{sign * 200}{i}" for i in range(300)]
    counts = {"rows": 10**12, **dict.fromkeys(names, 10**10)}
    said = data_card.markdown({
        "domains": dict.fromkeys(names, counts), "filters": names,
        "licences": {name: {"problems": 10**12, "traces": 10**12} for name in names},
        "evaluation": dict.fromkeys(names, 10**12), "teacher": dict.fromkeys(names, sign * 10**6),
        "decontamination": {"enabled": True, "against": names, "hits": dict.fromkeys(names, 10**12)},
    })  # fmt: skip
    assert len(said.encode()) < 20_000


def test_markdown_has_the_counts_of_each_domain_licence_class_and_the_teacher(rich):
    said = data_card.markdown(rich)
    rows = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith("|")]
    cells = [[" ".join(cell.split()) for cell in row] for row in rows]
    table = {line[0]: line[1:] for line in cells}
    for name in ("rows", "train", "probe", "validation", "reserved", "solutions", "traces"):
        each = [rich["domains"][domain][name] for domain in DOMAINS]
        assert table[name] == [written(n) for n in (*each, sum(each))]
    assert table["− contaminated"] == ["67", "68", "69", "70", "71", "345"]
    assert table["MIT"] == [written(14002), written(30001)]
    assert table["gsm8k\\_test"] == ["1319"]  # a name keeps its underscore, and Markdown leaves it alone
    assert table["shared passage"] == ["307"] and table["usd"] == ["12.34"]
    assert "unmapped" not in said  # a filter of rows that have no domain yet


@pytest.mark.parametrize("card", [{}, {"schema": 2}, {"domains": {}}, {"domains": {"code": {}}}, {"sources": [{}]},
                                  {"decontamination": {}}, {"teacher": None, "classifier": None}])  # fmt: skip
def test_a_card_of_little_still_has_a_page(card):
    assert "data card" in shown(card)
    assert data_card.markdown(card).startswith("## Data card")


@pytest.mark.slow
def test_each_part_is_optional(rich):
    for key in rich:
        Page(data_card.html({k: v for k, v in rich.items() if k != key}))
        Page(data_card.html({**rich, key: type(rich[key])()}))
    for key in ("sources", "domains", "decontamination", "lengths", "diversity", "classifier", "teacher", "duplicates"):
        inner = rich[key][0] if key == "sources" else rich[key]
        for name in list(inner):
            less = {k: v for k, v in inner.items() if k != name}
            if (key, name) != ("sources", "name"):
                Page(data_card.html({**rich, key: [less] if key == "sources" else less}))


def test_a_card_of_schema_1_is_shown():
    card = {
        "schema": 1, "source": "procedural", "seed": 1, "evaluation": {"algebra": 20},
        "sources": [{"name": "generated", "role": "train and evaluation", "licence": "MIT", "counts": {}}],
        "domains": {"algebra": {"rows": 100, "repeated": 5, "contaminated": 3, "evaluation": 20, "train": 52,
                                "probe": 10, "validation": 10, "traces": 80, "solutions": 90, "unverified": 0}},
        "decontamination": {"enabled": True, "ngram": 10, "against": ["algebra"], "removed": 3, "examples": [
            {"id": "a-1", "problem": "one two", "shared": "one two", "evaluation_set": "algebra", "origin": "g",
             "shared_ngrams": 1, "ngrams": 1, "evaluation_problem": "One, two?"}]},
    }  # fmt: skip
    text = shown(card)
    assert "−5 95" in text and "−3 92" in text and "unaccounted" not in text


def test_equal_cards_give_equal_bytes(rich):
    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(one) for one in value] if isinstance(value, list) else value

    other, before = turned(rich), copy.deepcopy(rich)
    assert data_card.html(rich) == data_card.html(other) == data_card.html(json.loads(json.dumps(rich)))
    assert data_card.markdown(rich) == data_card.markdown(other)
    assert rich == before


@pytest.mark.parametrize("shared", [
    "how many clips did natalia sell altogether in april may", "howmanyclipsdidnataliasellaltogetherinaprilmay",
])  # fmt: skip
def test_the_shared_words_are_marked_in_both_texts(shared, rich):
    rich["decontamination"]["examples"][0]["shared"] = shared
    passage = PASSAGE.removesuffix("?").replace("&", "&amp;")
    # "alert x boxed 1" of the other example is in no text in one piece.
    assert re.findall("<mark>(.*?)</mark>", data_card.html(rich)) == [passage, passage.upper().replace("AMP", "amp")]


def test_the_funnel_ends_in_the_splits_or_says_what_is_missing(rich):
    assert "unaccounted for" not in shown(rich)
    rich["domains"]["code"]["train"] -= 13
    assert re.search(r"unaccounted for 0 0 13 0 0 13", shown(rich))


def test_what_should_worry_is_said(rich):
    rich["decontamination"] = {"enabled": False, "ngram": 10}
    rich["domains"]["code"]["traces"] = 0
    text = shown(rich)
    assert "Decontamination was off" in text and "code has no verified trace" in text
    assert "Decontamination was off" in data_card.markdown(rich)


@pytest.mark.parametrize(("edges", "ends"), [([0, 1, 2, 4, 8, 16], "16"), ([5, 5, 5, 5, 5, 5], "5"),
                                             ([0, 10, 20, 30, 40, 10**9], "40+")])  # fmt: skip
def test_histograms_stay_in_their_frame_whatever_the_edges(edges, ends, rich):
    rich["lengths"] = {"problem": {"code": {"edges": edges, "counts": [0, 3, 0, 9, 1], "median": 3, "p95": 10**12}}}
    page = Page(data_card.html(rich))
    bins = [attrs for _, attrs in page.tags if attrs.get("class") == "part s0 bin"]
    assert len(bins) == 5 and len({attrs["width"] for attrs in bins}) == 1
    for attrs in bins:
        assert 46 <= float(attrs["x"]) <= 350 and 12 <= float(attrs["y"]) <= 120
    marks = [
        attrs for tag, attrs in page.tags if tag == "line" and attrs.get("y2") == "120" and "line s" in attrs["class"]
    ]
    assert len(marks) == 2 and all(46 <= float(attrs["x1"]) <= 350 for attrs in marks)
    assert re.findall(r'y="135">(.*?)<', data_card.html(rich))[-1] == ends
