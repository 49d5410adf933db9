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
_CURRENCY = re.compile(r"(-?)(\\\$|€|£|¥|\\text\{(?:USD|\\\$)\}|USD ?|Rs\.? ?) ?(?=[\d.(\\])(.+)")
_CURRENCIES = {"€": "euro", "£": "pound sterling", "¥": "yen", "R": "rupee"}
_DEGREE = re.compile(r"((?!.*\\(?:arc)?(?:sin|cos|tan|cot|sec|csc)).+?)\^\\circ ?(?:\\text\{ ?([CF])\}|([CF]))?")
_POWER = r"(?:\^\{?([23])\}?)?"
_TEXT = re.compile(rf"(.*?[^\s^_(]) ?((?:\\text\{{[^{{}}]+\}}{_POWER}(?:/|\\cdot ?| )?)+)")
_PART = re.compile(rf"\\text\{{([^{{}}]+)\}}{_POWER}")
_ATTACHED = re.compile(rf"(.*[\d}})]|.*\\pi) ?((?:{_ABBREVIATIONS}|m/s|ft/s|cm/s|m/h)){_POWER}")
_WORDS = re.compile(rf"(.*[\d}})]) ([A-Za-z][A-Za-z]+(?: [A-Za-z]+)*){_POWER}")
_LETTER = re.compile(rf"(.*\d) ([mgshlL]){_POWER}")
_SENSIBLE = re.compile(r"[A-Za-z$][A-Za-z./ -]*[A-Za-z.]|[mgshlLCFKN$]")
# Words behind a number that change it, or say something else.
_NO_UNITS = re.compile(
    r"^(?:squared|cubed|factorial|halves|half|thirds?|quarters?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?|"
    r"hundredths?|thousandths?|dozens?|lakhs?|crores?|bn|mn|quadrillions?|point)\b|"
    r"\b(?:and|or|not|vs|but|is|are|was|plus|minus|times|over|by|to|if|for|when|where|wrong|answer|negative|positive|mod|"
    r"sin|cos|tan|cot|sec|csc|log|ln|exp|lim|det|max|min|sqrt|pi|infinity|one|two|three|four|five|six|seven|eight|nine|"
    r"ten|zero|eleven|twelve|hundred|thousand|million|billion|trillion)\b",
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
        return Quantity(match[1] + _without_unit(match[3]), _CURRENCIES.get(match[2][0], "dollar"))
    if match := _DEGREE.fullmatch(text):
        return Quantity(match[1], " ".join(filter(None, ("degree", match[2], match[3]))))
    for pattern in (_TEXT, _ATTACHED, _LETTER, _WORDS):
        if (match := pattern.fullmatch(text)) and (unit := _unit(match)):
            return unit
    return Quantity(text, None)


def _without_unit(text: str) -> str:
    r"""What stands behind a currency sign, without its words: `5\text{ million}` keeps them."""
    match = _TEXT.fullmatch(text) or _WORDS.fullmatch(text)
    found = match and _unit(match)
    return found.core if found else text


def _unit(match: re.Match[str]) -> Quantity | None:
    """The quantity whose words a pattern found; None where they aren't a unit."""
    core, words = match[1], match[2]
    if match.re is _TEXT:
        parts = list(_PART.finditer(words))
        words = ("/" if "}/" in words else " ").join(part[1].strip() for part in parts)
        power = next((part[2] for part in parts if part[2]), None)
    else:
        power = match[3]
    scale, _, rest = words.partition(" ")
    if scale.lower().removesuffix("s") in literals.SCALES:
        known = rest and _SENSIBLE.fullmatch(rest) and not _NO_UNITS.search(rest)
        return Quantity(f"{core} {scale.lower()}", _one(rest, power) if known else None) if known or not rest else None
    if match.re is not _LETTER and (not _SENSIBLE.fullmatch(words) or _NO_UNITS.search(words)):
        return None
    return Quantity(core, _one(words, power))


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
