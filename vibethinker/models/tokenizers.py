"""A model's tokenizer: read, mended into what training and generation need, and checked against its model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vibethinker.errors import ConfigurationError
from vibethinker.models.files import CONFIG, read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from vibethinker.steps import Emitter

CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def read_tokenizer(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder as it is, with options of transformers' own.

    Raises:
        ConfigurationError: it can't be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # of a damaged file, the libraries raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}"[:300]
        raise ConfigurationError(
            f"The tokenizer in {folder} can't be loaded ({reason}): save the model's tokenizer there again."
        ) from error


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Refuse a tokenizer with token ids for which the model of the folder has no embedding.

    Raises:
        ConfigurationError: it has one; the model would read beyond its embeddings, which on a GPU ends the process.
    """
    rows = read_json(folder, CONFIG, "copy the model's there").get("vocab_size")
    largest = max(tokenizer.get_vocab().values())
    if rows is not None and largest >= rows:
        raise ConfigurationError(
            f"The tokenizer has token ids up to {largest}, but the model in {folder} has embeddings for {rows}: give "
            "the tokenizer that the model was trained with, or resize the embeddings."
        )


def mend_tokenizer(tokenizer: PreTrainedTokenizerBase, emit: Emitter, positions: int | None = None) -> None:
    """Give a tokenizer what training and generation need, with a warning for each thing that it lacked.

    A chat template (ChatML); as EOS the token that ends the assistant's turn in its template; a pad token, by
    preference one that is not EOS; room for as many tokens as the model has `positions`.

    Raises:
        ConfigurationError: its chat template doesn't render a conversation, or nothing names an EOS token.
    """
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
        emit.warning("The tokenizer has no chat template: ChatML is used.")
    end = _end_of_turn(tokenizer)
    if end is not None and end != tokenizer.eos_token:
        emit.warning(
            f"The chat template ends a turn with {end}, not with the EOS {tokenizer.eos_token}: {end} is used."
        )
        spare, tokenizer.eos_token = tokenizer.eos_token, end
    else:
        spare = None
    if tokenizer.eos_token is None:
        raise ConfigurationError("Neither tokenizer nor chat template has an EOS token: set the tokenizer's.")
    if tokenizer.pad_token is None:
        vocabulary = tokenizer.get_vocab()
        candidates = ("<|pad|>", "<pad>", "[PAD]", "<|endoftext|>", spare)
        tokenizer.pad_token = next(
            (token for token in candidates if token in vocabulary and token != tokenizer.eos_token), tokenizer.eos_token
        )
        emit.warning(f"The tokenizer has no pad token: {tokenizer.pad_token} is used.")
    if positions is not None and tokenizer.model_max_length < positions:
        emit.warning(
            f"The tokenizer takes texts of {tokenizer.model_max_length} tokens, the model {positions}: the model's "
            "limit is used."
        )
        tokenizer.model_max_length = positions


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The special token that follows the assistant's text in the chat template; None where there is none."""
    asked, said = "What is vibethinking?", "vibethinker"
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": asked}, {"role": "assistant", "content": said}], tokenize=False
        )
    except Exception as error:  # a template is a program of its author's, and raises what it likes
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ConfigurationError(
            f"The tokenizer's chat template fails on a question and its answer ({reason}): mend or replace it."
        ) from error
    if asked not in text or said not in text.partition(asked)[2]:
        raise ConfigurationError(
            "The tokenizer's chat template leaves out the question or its answer: mend or replace it."
        )
    ids = tokenizer(text.rpartition(said)[2], add_special_tokens=False)["input_ids"]
    special = {int(i) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((tokenizer.convert_ids_to_tokens(i) for i in ids if i in special), None)
