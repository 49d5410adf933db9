"""What has to agree for two model folders' weights to serve in one engine, read from their files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vibethinker.models.files import CONFIG, GENERATION_CONFIG

_TOKENIZER = ("tokenizer*", "chat_template*", "vocab*", "merges.txt", "added_tokens.json")
_INDIFFERENT = ("_name_or_path", "transformers_version", "use_cache")


def stored(folder: Path, name: str) -> dict[str, Any]:
    """A configuration file, without what changes no number; empty where there is no such file."""
    file = folder / name
    values = json.loads(file.read_text()) if file.is_file() else {}
    return {key: value for key, value in values.items() if key not in _INDIFFERENT}


def kind(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
    """The architecture of a model folder, how it generates, and its tokenizer."""
    files = sorted({file for pattern in _TOKENIZER for file in folder.glob(pattern) if file.is_file()})
    tokenizer = {file.name: file.read_bytes() for file in files}
    return stored(folder, CONFIG), stored(folder, GENERATION_CONFIG), tokenizer
