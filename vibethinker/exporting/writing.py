"""A found model into a staging folder: loaded and merged once, written in one form, with its card."""

from __future__ import annotations

from pathlib import Path

from vibethinker.exporting import card
from vibethinker.exporting.finding import Found
from vibethinker.exporting.folder import write_folder
from vibethinker.exporting.gguf_file import write_gguf
from vibethinker.models.files import TOKENIZERS
from vibethinker.models.loading import load_model, load_tokenizer


def write(found: Found, staging: Path, *, gguf: str | None, shard_size: str, licence: str | None) -> None:
    """Write the model, proven, and its card.

    Args:
        gguf: the name of the file to write; None writes a folder.
        shard_size: of a folder's weights, such as 5GB.
        licence: of the weights, for the card.

    Raises:
        VibeThinkerError: it can't be written in this form, or what was written is not the model.
    """
    model, tokenizer = load_model(found.folder, base=found.base), load_tokenizer(_with_tokenizer(found))
    if gguf:
        write_gguf(model, tokenizer, staging / gguf, found.name)
    else:
        write_folder(model, tokenizer, staging, shard_size)
    (staging / card.CARD).write_text(card.render(found, licence=licence, gguf=gguf), encoding="utf-8")


def _with_tokenizer(found: Found) -> Path:
    """Of an adapter that brings no tokenizer, the base's folder."""
    own = any((found.folder / name).is_file() for name in TOKENIZERS)
    return found.folder if own or found.base is None else found.base
