"""Benchmarks by name: where their problems are, and the protocol that papers measure them by (benchmarks.yaml), or what
a plugin says of both.

`livecodebench` may carry the dates of the contests that are taken, both inclusive: `livecodebench@2024-08..2025-01`,
or `livecodebench@2025-02-01..` without an end. Loads no torch.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from importlib import resources
from typing import Any

import yaml

from vibethinker import plugins
from vibethinker.errors import ConfigurationError
from vibethinker.messages import did_you_mean

_BEGINNING, _END = date(1970, 1, 1), date(9999, 12, 31)
_PROTOCOL = {"samples", "temperature", "top_p", "max_tokens"}
_DAY = re.compile(r"(\d{4})-(\d{2})(?:-(\d{2}))?")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: as it was asked for, dates included; files and tables call it so.
        source: settings of the `DataFile` that its problems are read by.
        protocol: samples, temperature, top_p and max_tokens, as `Evaluation` calls them.
    """

    name: str
    source: Mapping[str, Any]
    protocol: Mapping[str, float]


@cache
def _registry() -> dict[str, Any]:
    return yaml.safe_load((resources.files("vibethinker.data") / "benchmarks.yaml").read_text())


def names() -> list[str]:
    """The benchmarks that there are."""
    return list(dict.fromkeys([*_registry()["benchmarks"], *plugins.names(plugins.BENCHMARKS)]))


def problems(preset: str | None) -> int | None:
    """How many problems the benchmark of this preset has, all dates together; None for what is none."""
    entries = [part for e in _registry()["benchmarks"].values() for part in (e, e.get("dated", e))]
    return next((entry["problems"] for entry in entries if entry["preset"] == preset), None)


def benchmark(text: str) -> Benchmark | None:
    """The benchmark that a name means, whatever its case; None where none is called so.

    Raises:
        ValueError: its dates can't be read, or it has none, or a plugin's can't be used.
    """
    said, at, dates = text.lower().partition("@")
    name = next((n for n, e in _registry()["benchmarks"].items() if said in (n, *e.get("aliases", ()))), None)
    if name is None and not at and said in plugins.names(plugins.BENCHMARKS):
        return _of_plugin(said)
    if name is None:
        return None
    entry = _registry()["benchmarks"][name]
    protocol = _registry()["protocols"][entry["protocol"]]
    source = {"preset": entry["preset"], "name": name} | ({"columns": entry["columns"]} if "columns" in entry else {})
    if not at:
        return Benchmark(name, source, protocol)
    if "dated" not in entry:
        raise ValueError(f"the benchmark {name} can't be chosen by date: name it without {at}{dates}")
    first, last = _range(dates)
    # Names of sets become names of files.
    since = f"-{first}" if first != _BEGINNING else "-until"
    called = f"{name}{since}-{last if last != _END else 'on'}"
    select = {entry["dated"]["column"]: (first, last)}
    return Benchmark(called, {**source, "preset": entry["dated"]["preset"], "name": called, "select": select}, protocol)


def source(text: str) -> dict[str, Any]:
    """The settings of the source of a benchmark, called as its preset is unless it has dates or is a plugin's: a run
    may well train on `gsm8k` and be measured on `gsm8k-test`.

    Raises:
        ValueError: there is none of this name.
    """
    found = benchmark(text)
    if found is None:
        raise ValueError(f"there is no benchmark {text!r}; {did_you_mean(text, names())}")
    own = _registry()["benchmarks"]
    return {key: value for key, value in found.source.items() if key != "name" or found.name not in own}


def _of_plugin(name: str) -> Benchmark:
    """What a plugin's mapping with `source` and `protocol` says, as `Benchmark` has them."""
    try:
        plugin = plugins.find(plugins.BENCHMARKS, name)
        told = plugin.load()
    except ConfigurationError as error:
        raise ValueError(str(error).rstrip(".")) from error
    if not isinstance(told, Mapping) or set(told) != {"source", "protocol"} or set(told["protocol"]) != _PROTOCOL:
        raise ValueError(
            f"the {plugin.what} must be a mapping with `source`, and with `protocol` of "
            f"{', '.join(sorted(_PROTOCOL))}: mend it there"
        )
    return Benchmark(name, {**told["source"], "name": name}, told["protocol"])


def _range(text: str) -> tuple[date, date]:
    first, dots, last = text.partition("..")
    begin, end = _day(first, last=False), _day(last, last=True)
    if not dots or not (first or last) or (first and begin is None) or (last and end is None):
        raise ValueError(f"{text!r} is no range of dates: write it like 2024-08..2025-01 or 2024-08-15..2025-01-31")
    begin, end = begin or _BEGINNING, end or _END
    if begin > end:
        raise ValueError(f"{text!r} ends before it starts: swap its dates")
    return begin, end


def _day(text: str, last: bool) -> date | None:
    found = _DAY.fullmatch(text)
    if found is None:
        return None
    try:
        year, month = int(found[1]), int(found[2])
        day = int(found[3]) if found[3] else (calendar.monthrange(year, month)[1] if last else 1)
        return date(year, month, day)
    except ValueError:
        return None
