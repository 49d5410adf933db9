"""This project's nested values as MLflow stores them: flat keys, numbers, and strings of bounded length."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

PARAM_LENGTH, TAG_LENGTH, KEY_LENGTH = 6000, 5000, 250


def flatten(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects and lists, each with its dotted key; an empty container is a leaf."""
    if isinstance(values, Mapping) and values:
        children = [(str(key), value) for key, value in values.items()]
    elif isinstance(values, (list, tuple)) and values:
        children = [(str(index), value) for index, value in enumerate(values)]
    else:
        yield prefix, values
        return
    for key, value in children:
        yield from flatten(value, f"{prefix}.{key}" if prefix else key)


def name(key: str) -> str:
    """`key` in the characters that MLflow takes: `avg@8` becomes `avg_at_8`."""
    return re.sub(r"[^\w.\- :/]", "_", key.replace("@", "_at_"))[:KEY_LENGTH]


def numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The numeric leaves, for metrics; True is 1."""
    return {name(k): float(v) for k, v in flatten(values) if isinstance(v, (int, float))}


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """The leaves that are text, for tags."""
    return {name(k): v[:TAG_LENGTH] for k, v in flatten(values) if isinstance(v, str)}


def params(values: Mapping[str, Any]) -> dict[str, str]:
    """All leaves as text, for parameters; other than strings they are written as JSON."""
    leaves = ((name(k), v if isinstance(v, str) else json.dumps(v, sort_keys=True)) for k, v in flatten(values) if k)
    return {key: text if len(text) <= PARAM_LENGTH else text[: PARAM_LENGTH - 1] + "…" for key, text in leaves}
