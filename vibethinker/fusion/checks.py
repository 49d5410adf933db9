"""Whether models can be fused at all: one architecture, one numbering of tokens, the same tensors, unquantised."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vibethinker.errors import ConfigurationError
from vibethinker.fusion.stored import SIZES, Stored
from vibethinker.models.files import CONFIG, is_adapter

# Models that differ in one of these have no common meaning of a weight, even if all shapes agree.
SAME_IN_CONFIG = ("model_type", "num_attention_heads", "num_key_value_heads", "tie_word_embeddings", "vocab_size")


def configs(folders: Sequence[Path]) -> None:
    """Refuse models of different architectures, and tokenizers that number tokens differently.

    Raises:
        ConfigurationError: they are.
    """
    whole = [folder for folder in folders if not is_adapter(folder)]
    first = whole[0]
    expected = json.loads((first / CONFIG).read_text())
    vocabulary, tokens = _numbering(first)
    for folder in dict.fromkeys(whole[1:]):
        config = json.loads((folder / CONFIG).read_text())
        for key in SAME_IN_CONFIG:
            if config.get(key) != expected.get(key):
                raise ConfigurationError(
                    f"{folder} can't be fused with {first}: {key} is {config.get(key)} in one and {expected.get(key)} "
                    "in the other, so fuse models that come from one base."
                )
        own, added = _numbering(folder)
        if own != vocabulary:
            raise ConfigurationError(
                f"{folder} can't be fused with {first}: their tokenizers differ, so fuse models of one base."
            )
        for number, token in added.items():
            if tokens.setdefault(number, token) != token:
                raise ConfigurationError(
                    f"{folder} can't be fused with {first}: token {number} is {token!r} in one and {tokens[number]!r} "
                    "in another, so fuse models whose tokens were added alike."
                )


def tensors(states: Sequence[Stored], models: Sequence[Path], original: Stored, base: Path) -> None:
    """Refuse models whose tensors differ in name or shape, with the first such tensor's name.

    Args:
        models: the folders that the states are of, or that adapters were before they were merged.

    Raises:
        ConfigurationError: they do.
    """
    names = set(states[0])
    for state, folder in zip(states[1:], models[1:], strict=True):
        if differing := sorted(names ^ set(state)):
            has, lacks = (models[0], folder) if differing[0] in names else (folder, models[0])
            raise ConfigurationError(_differ(has, lacks, f"only the first has the tensor {differing[0]}"))
    if lost := sorted(names - set(original)):
        raise ConfigurationError(_differ(models[0], base, f"only the first has the tensor {lost[0]}"))
    for name in sorted(names):
        expected = original[name].shape
        if not all(state[name].dtype in SIZES for state in (original, *states)):
            raise ConfigurationError(
                f"The tensor {name} isn't stored as floating-point numbers: fuse unquantised models."
            )
        for state, folder in zip(states, models, strict=True):
            if (shape := state[name].shape) != expected:
                text = f"the tensor {name} has shape {list(shape)} in the first and {list(expected)} in the second"
                raise ConfigurationError(_differ(folder, base, text))


def _numbering(folder: Path) -> tuple[object, dict[int, str]]:
    """The vocabulary, and number → token of those added to it, of which a model may have more than another."""
    file = folder / "tokenizer.json"
    tokenizer: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {"model": {}}
    return tokenizer["model"].get("vocab"), {t["id"]: t["content"] for t in tokenizer.get("added_tokens", [])}


def _differ(first: Path, second: Path, how: str) -> str:
    return f"{first} and {second} can't be fused: {how}, so fuse models that come from one base."
