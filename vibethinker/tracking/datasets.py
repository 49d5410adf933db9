"""The data sets that a step reads, as MLflow lists them: files of the data step's output, and a stage's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vibethinker.artifacts import Artifact, content_digest, file_digest

FILE = ".parquet"
# Folder of the data step's output → what it is for, in MLflow's words where it has one.
PURPOSES = {
    "sft": "training",
    "rl": "training",
    "probe": "probing",
    "validation": "validation",
    "evaluation": "evaluation",
}


@dataclass(frozen=True)
class Set:
    """One data set: its name, what it is for, the sha256 of its content, and its files."""

    name: str
    context: str
    digest: str
    files: tuple[str, ...]


def whole(data: Artifact) -> Iterator[Set]:
    """All that a run is made from and measured on: a set a folder, and one for each evaluation set."""
    for folder, context in PURPOSES.items():
        names = [name for name in data.manifest["files"] if name.startswith(f"{folder}/") and name.endswith(FILE)]
        if folder == "evaluation":
            yield from (_set(data, name.removesuffix(FILE), context, [name]) for name in sorted(names))
        elif names:
            yield _set(data, folder, context, sorted(names))


def of_step(kind: str, settings: Mapping[str, Any], outside: Mapping[str, str], data: Artifact | None) -> list[Set]:
    """What a step of this kind and these settings reads.

    Args:
        outside: the files that the step names → where they are.
        data: the data step's output.
    """
    found = []
    for said, context in _files(kind, settings):
        with suppress(OSError):  # gone since the step has read it
            found.append(_outside(outside[said], context))
    if data is None:
        return found
    for part in _parts(kind, settings):
        pattern = f"{part}/" if "/" not in part else f"{part}{FILE}"
        names = [name for name in data.manifest["files"] if name.startswith(pattern) and name.endswith(FILE)]
        for name in sorted(names):
            found.append(_set(data, name.removesuffix(FILE), PURPOSES[name.partition("/")[0]], [name]))
    return found


def _parts(kind: str, settings: Mapping[str, Any]) -> list[str]:
    """Files, or folders, of the data step's output."""
    domains = settings.get("domains", [])
    if kind == "base":
        return ["sft"] if settings.get("base_model", {}).get("source") == "embedded" else []
    if kind == "specialist":
        return [f"sft/{domain}" for domain in domains]
    if kind == "solutions":
        return [f"rl/{domain}" for domain in domains]
    if kind == "probe":
        return [f"{split}/{settings['domain']}" for split in ("probe", "validation")]
    if kind == "fusion" and "probing" in settings:
        return [f"{split}/{domain}" for split in ("probe", "validation") for domain in domains]
    if kind == "signal" and "stage" in settings:
        stage = settings["stage"]
        splits = ["rl"] if stage["train_data"] is None else []
        splits += ["validation"] if "validation" in settings and stage["validation_data"] is None else []
        return [f"{split}/{domain}" for split in splits for domain in domains]
    if kind == "evaluation":
        return ["evaluation"] if settings.get("sets") is None else [f"evaluation/{name}" for name in settings["sets"]]
    return []


def _files(kind: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Files that a signal stage names, and what they are for."""
    stage = settings.get("stage", {}) if kind == "signal" else {}
    named = (("train_data", "training"), ("validation_data", "validation"))
    return [(stage[name], context) for name, context in named if stage.get(name)]


def _set(data: Artifact, name: str, context: str, files: list[str]) -> Set:
    entries = data.manifest["files"]
    [first, *rest] = files
    digest = content_digest({file: entries[file] for file in files}) if rest else entries[first]["sha256"]
    return Set(name, context, digest, tuple(str(data.folder / file) for file in files))


def _outside(path: str, context: str) -> Set:
    return Set(Path(path).name, context, file_digest(Path(path)), (path,))
