"""A tokenizer as a GGUF file holds it: tokens with their kinds, merges, special tokens, chat template.

llama.cpp splits text into words by rules that it knows by name, so a tokenizer is exported only if its own rules are
those of such a name; any other would give other tokens there, silently.

Left out: SentencePiece and Unigram tokenizers, and normalisation (llama.cpp has none for byte-level BPE; it changes
text only that isn't in Unicode's composed form).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vibethinker.errors import ConfigurationError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The rules by which a tokenizer splits text → llama.cpp's name of the same rules.
_SPLITS = {
    _CONTRACTIONS + r"\p{N}" + _REST: "qwen2",
    _CONTRACTIONS + r"\p{N}{1,3}" + _REST: "llama-bpe",
}
_STOPS = ("eos", "eot", "eom")  # what ends text, a turn, a message: llama.cpp ends an answer at each
_KNOWN = "byte-level BPE that splits words as Qwen 2 and 3, Llama 3, SmolLM or GPT-2 do"


def add_vocabulary(
    writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, rows: int, stops: int | Sequence[int] | None = None
) -> None:
    """Add what `tokenizer` is, for a model with `rows` embeddings.

    Args:
        stops: the tokens that end an answer by the model's generation config.

    Raises:
        ConfigurationError: llama.cpp has no such tokenizer.
    """
    import gguf

    if not tokenizer.is_fast:
        raise ConfigurationError(f"The tokenizer has no tokenizer.json, and a GGUF takes {_KNOWN}: use --format hf.")
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")  # GGUF's word for byte-level BPE
    writer.add_tokenizer_pre(_rules(parts))
    texts, added = {i: token for token, i in tokenizer.get_vocab().items()}, tokenizer.added_tokens_decoder
    kinds = gguf.TokenType
    writer.add_token_list([texts.get(i, f"[PAD{i}]") for i in range(rows)])
    writer.add_token_types(
        [
            kinds.UNUSED if i not in texts
            else kinds.NORMAL if i not in added
            else kinds.CONTROL if added[i].special
            else kinds.USER_DEFINED
            for i in range(rows)
        ]
    )  # fmt: skip
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in parts["model"]["merges"]]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    _add_special(writer, tokenizer, stops)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _add_special(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, stops: int | Sequence[int] | None) -> None:
    # An instructed model's tokenizer may still name the base's EOS, at which no turn ends.
    configured, own = stops if isinstance(stops, (list, tuple)) else [stops], tokenizer.eos_token_id
    named = [own, *configured] if own in configured else [*configured, own]
    ends = list(dict.fromkeys(token for token in named if token is not None))
    if len(ends) > len(_STOPS):
        raise ConfigurationError(
            f"The model's answers end at {len(ends)} tokens, and a GGUF file names {len(_STOPS)}: take some out of "
            "eos_token_id in generation_config.json, or use --format hf."
        )
    tokens = dict(zip(_STOPS, ends, strict=False)) | {"bos": tokenizer.bos_token_id, "pad": tokenizer.pad_token_id}
    for kind, token in tokens.items():
        if token is not None:
            getattr(writer, f"add_{kind}_token_id")(token)
    ids = tokenizer("a")["input_ids"]  # whatever makes it add them
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id)


def _rules(parts: Mapping[str, Any]) -> str:
    """llama.cpp's name of the rules by which a tokenizer.json splits text."""
    model, before = parts["model"], parts.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    if model["type"] == "BPE" and not model.get("byte_fallback") and kinds and kinds[-1] == "ByteLevel":
        last = steps[-1]
        if not last.get("add_prefix_space"):
            if kinds == ["ByteLevel"] and last.get("use_regex", True):
                return "gpt-2"
            if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and last.get("use_regex", True):
                return "smollm"
            if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True):
                rule = steps[0]["pattern"].get("Regex")
                if rule in _SPLITS and steps[0]["behavior"] == "Isolated" and not steps[0].get("invert"):
                    return _SPLITS[rule]
    raise ConfigurationError(
        f"The tokenizer ({model['type']}, split by {', '.join(map(str, kinds))}) has no counterpart in llama.cpp that "
        f"this export knows: it takes {_KNOWN}; use --format hf."
    )
