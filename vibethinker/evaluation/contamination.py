"""What benchmarks share with what a model was trained on, as far as that is known.

Training texts are held against the problems as the data step holds them (`data.decontamination`): n-grams of words,
whole problems, templates taken off first. Reworded problems aren't found, so that nothing found is no proof.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vibethinker import validation
from vibethinker.artifacts import content_digest
from vibethinker.data.decontamination import STOCK_PHRASES, Decontaminator
from vibethinker.data.readers import Bad, files_of
from vibethinker.data.settings import Decontamination
from vibethinker.data.sources import read_texts
from vibethinker.data.templates import find_templates, sample
from vibethinker.errors import DataError

_PREPARED = ("sft", "rl")  # what of a prepared folder is trained on


def overlaps(
    sets: Mapping[str, Sequence[str]], training: Sequence[Path], settings: Decontamination
) -> dict[str, dict[str, Any]]:
    """set → what its problems share with training texts: `rows` compared, `near_copies`, `shared_passages` (rows of
    each), `problems` that they fall on, at least, and the closest as an `example`.

    Args:
        sets: set → its problems' texts.
        training: files of training problems or traces, or folders of them, as `vibethinker data prepare` writes them.
        settings: n-gram and further stock phrases.

    Raises:
        DataError: a file can't be read, or holds no text.
    """
    rows = {text for place in training for text in _texts(place)}
    if not rows:
        raise DataError(f"{', '.join(map(str, training))} has no problem to compare with: name files of training data.")
    templates = find_templates([*(sample(texts) for texts in sets.values()), sample(rows)])
    phrases = (*STOCK_PHRASES, *settings.phrases) if settings.whitelist else settings.phrases
    found = {}
    for name, texts in sets.items():
        index = Decontaminator(texts, n=settings.ngram, templates=templates, stock_phrases=phrases)
        hits = [hit for text in sorted(rows) if (hit := index.overlap(text)) and hit.kind != "stock_phrase"]
        kinds = Counter(hit.kind for hit in hits)
        closest = max(hits, key=lambda hit: hit.share, default=None)
        found[name] = {
            "rows": len(rows),
            "near_copies": kinds["near_copy"],
            "shared_passages": kinds["shared_passage"],
            "problems": len({hit.evaluation for hit in hits}),
            "of": len(texts),
            "example": closest and closest.shared[:200],
        }
    return found


def sentence(name: str, found: Mapping[str, Any]) -> str:
    """What a reader of scores should know."""
    if not found["problems"]:
        return f"{name}: none of {found['rows']:,} training texts shares a passage with its problems."
    return (
        f"{name}: {found['near_copies']} near copies and {found['shared_passages']} shared passages among "
        f"{found['rows']:,} training texts fall on at least {found['problems']} of its {found['of']} problems."
    )


def trained_on(model: Path) -> Path | None:
    """The data step's output that a model of a workspace descends from; None where that isn't known."""
    return next((folder for folder, manifest in _lineage(model) if manifest.get("kind") == "data"), None)


def stage_files(model: Path) -> list[str]:
    """The files of problems that signal stages have brought a model of a workspace, as their settings name them; they
    are no part of the data step's output."""
    stages = (manifest.get("settings", {}).get("stage") or {} for _, manifest in _lineage(model))
    return sorted({stage["train_data"] for stage in stages if stage.get("train_data")})


def _lineage(model: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The output that a model of a workspace is in, and all that it descends from, each with its manifest; nothing of
    other models.

    Outputs record the digests of what they read, which are followed.
    """
    artifacts = next((p for p in model.absolute().parents if p.name == "artifacts" and p.is_dir()), None)
    if artifacts is None:
        return
    outputs = {}
    for file in artifacts.glob(f"*/*/{validation.MANIFEST}"):
        manifest, reason = validation.read_manifest(file.parent)
        if manifest is not None and not reason:
            outputs[content_digest(manifest["files"])] = (file.parent, manifest)
    begin = [digest for digest, (folder, _) in outputs.items() if model.absolute().is_relative_to(folder)]
    seen: set[str] = set()
    while begin:
        digest = begin.pop()
        if digest in seen or digest not in outputs:
            continue
        seen.add(digest)
        folder, manifest = outputs[digest]
        yield folder, manifest
        begin += manifest.get("inputs", {}).values()


def _texts(place: Path) -> Iterator[str]:
    """The problems of a file or folder, of a prepared folder those that are trained on, as often as they are there."""
    prepared = (place / "card.json").is_file()
    parts = [place / name for name in _PREPARED if (place / name).exists()] if prepared else [place]
    for part in parts:
        for file in files_of(part):
            yield from (text for _, text in read_texts(file) if not isinstance(text, Bad))
