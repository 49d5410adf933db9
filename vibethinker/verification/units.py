r"""What stands behind or in front of a quantity: units, degrees, percent, currency. Told apart from it, and in one
spelling."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from vibethinker.verification import literals

PERCENT = "%"
_SYNONYMS = {
    "mm": "millimeter", "cm": "centimeter", "dm": "decimeter", "m": "meter", "km": "kilometer", "in": "inch",
    "inches": "inch", "ft": "foot", "feet": "foot", "yd": "yard", "mi": "mile", "mg": "milligram", "g": "gram",
    "gm": "gram", "kg": "kilogram", "lb": "pound", "lbs": "pound", "oz": "ounce", "ml": "milliliter",
    "mL": "milliliter", "l": "liter", "L": "liter", "gal": "gallon", "s": "second", "sec": "second",
    "min": "minute", "h": "hour", "hr": "hour", "hrs": "hour", "yr": "year", "yrs": "year", "mph": "mile/hour",
    "kmph": "kilometer/hour", "kph": "kilometer/hour", "km/h": "kilometer/hour", "deg": "degree",
    "degrees": "degree", "rad": "radian", "usd": "dollar", "$": "dollar", "bucks": "dollar", "¢": "cent",
    "€": "euro", "£": "pound sterling", "pounds sterling": "pound sterling", "rs": "rupee", "rs.": "rupee",
    "metre": "meter", "metres": "meter", "centimetre": "centimeter", "centimetres": "centimeter",
    "kilometre": "kilometer", "litre": "liter", "kilometres": "kilometer", "litres": "liter",
    "people": "person", "men": "man", "women": "woman", "children": "child",
}  # fmt: skip
_ABBREVIATIONS = "mm|cm|dm|km|mg|kg|gm|lbs?|oz|ml|mL|gal|ft|yd|mph|kmph|kph|km/h|hrs?|sec|yrs?|deg|rad"
_PERCENT = re.compile(
    r"(.+?) ?(?:%|percent|(?:\\text\{ ?(?:percent|per cent|%|percentage|pct)\})|percentage|pct|per cent)"
)
_CURRENCY = re.compile(r"(-?)(?:\\\$|(€)|(£)|\\text\{(USD|\\\$)\}|(USD|Rs\.?) ?) ?(?=[\d.(\\])(.+)")
_DEGREE = re.compile(r"(.+?)\^\\circ ?(?:\\text\{ ?([CF])\}|([CF]))?")
_POWER = r"(?:\^\{?([23])\}?)?"
_TEXT = re.compile(rf"(.*?[^\s^_(]) ?((?:\\text\{{[^{{}}]+\}}{_POWER}(?:/|\\cdot ?| )?)+)")
_PART = re.compile(rf"\\text\{{([^{{}}]+)\}}{_POWER}")
_ATTACHED = re.compile(rf"(.*[\d}})]) ?((?:{_ABBREVIATIONS})){_POWER}")
_WORDS = re.compile(rf"(.*[\d}})]) ([A-Za-z][A-Za-z]+(?: [A-Za-z]+)*){_POWER}")
_LETTER = re.compile(rf"(.*\d) ([mgshlL]){_POWER}")
_CONNECTED = re.compile(r"\b(?:and|or|if|for|when|where)\b")
_NO_UNITS = re.compile(
    r"\b(?:and|or|sin|cos|tan|cot|sec|csc|log|ln|exp|mod|lim|det|max|min|sqrt|pi|infinity|to|if|for|when|where|is|not|"
    r"hundred|thousand|million|billion|trillion|[A-Za-ln-z])s?\b|x",
    re.IGNORECASE,
)


class Quantity(NamedTuple):
    """A text without its unit, and the unit in one spelling; None without one."""

    core: str
    unit: str | None


@lru_cache(maxsize=8192)
def split(text: str) -> Quantity:
    """The quantity that a normalised text is."""
    if literals.read(text):
        return Quantity(text, None)
    if (match := _PERCENT.fullmatch(text)) and match[1]:
        return Quantity(match[1], PERCENT)
    if match := _CURRENCY.fullmatch(text):
        unit = (
            "euro"
            if match[2]
            else "pound sterling"
            if match[3]
            else "rupee"
            if (match[5] or "")[:1] == "R"
            else "dollar"
        )
        return Quantity(match[1] + split(match[6]).core, unit)
    if match := _DEGREE.fullmatch(text):
        return Quantity(match[1], " ".join(filter(None, ("degree", match[2], match[3]))))
    if match := _TEXT.fullmatch(text):
        parts = [_one(part[1], part[2]) for part in _PART.finditer(match[2])]
        if not any(_CONNECTED.search(part[1]) for part in _PART.finditer(match[2])):
            return Quantity(match[1], ("/" if "/" in match[2] else " ").join(parts))
    for pattern in (_ATTACHED, _LETTER, _WORDS):
        if (match := pattern.fullmatch(text)) and not (pattern is _WORDS and _NO_UNITS.search(match[2])):
            return Quantity(match[1], _one(match[2], match[3]))
    return Quantity(text, None)


def _one(words: str, power: str | None) -> str:
    """A unit in one spelling."""
    name = _SYNONYMS.get(words.strip()) or " ".join(words.lower().split()).strip(".")
    for prefix, meant in (("square ", "2"), ("sq ", "2"), ("sq. ", "2"), ("cubic ", "3"), ("cu ", "3")):
        if name.startswith(prefix):
            name, power = name.removeprefix(prefix), meant
    if name.endswith(" squared"):
        name, power = name.removesuffix(" squared"), "2"
    if name.endswith(" cubed"):
        name, power = name.removesuffix(" cubed"), "3"
    name = "/".join(_singular(_SYNONYMS.get(part, part)) for part in re.split(r" per |/", name))
    return f"{name}^{power}" if power else name


def _singular(word: str) -> str:
    if word in _SYNONYMS:
        return _SYNONYMS[word]
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("xes", "ches", "shes", "sses")):
        return word[:-2]
    if word.endswith("s") and not word.endswith("ss"):
        stem = word[:-1]
        return _SYNONYMS.get(stem, stem)
    return word
