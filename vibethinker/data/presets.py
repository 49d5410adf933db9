"""Named sources: where well-known problem sets live on the hub, at which commit, and how their rows are read.

presets.yaml has them. A preset is laid under the settings that name it, so a local copy is read by adding a `path`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

from vibethinker.messages import did_you_mean


@cache
def presets() -> dict[str, dict[str, Any]]:
    """Name → settings of a `DataFile`."""
    return yaml.safe_load((resources.files("vibethinker.data") / "presets.yaml").read_text())


def resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a source with its preset's beneath them; objects merge key by key.

    Raises:
        ValueError: there is no such preset.
    """
    name = values["preset"]
    if name not in presets():
        raise ValueError(f"there is no preset {name!r}; {did_you_mean(str(name), sorted(presets()))}")
    merged = {"name": name, **presets()[name]}
    for key, value in values.items():
        below = merged.get(key)
        if key == "columns" and isinstance(below, dict) and isinstance(value, Mapping):
            value = {**below, **value}
        merged[key] = value
    return merged
