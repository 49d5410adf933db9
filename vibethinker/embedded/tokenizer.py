r"""The embedded model's tokenizer: byte-level BPE over the traces it will learn, and a chat template of few
tokens.

Every digit is a token of its own, so that arithmetic is learned on digits and not on accidental number
pieces. What closes or opens a part of an answer (`<think>`, `</think>`, `\boxed{`, a code fence) is one
token each. A message begins with its role, a single token, and only the assistant's ends with one, EOS:
sequences here are some 50 tokens, so each token of a template costs 2 % of the training time.

Left out: Unicode normalisation and a pre-tokeniser for languages other than English.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vibethinker.errors import ConfigurationError

PAD, EOS = "<|pad|>", "<|im_end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
WHOLE = ("<think>", "</think>", "\\boxed{", "```")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|im_end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int, positions: int) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `vocabulary` tokens, learned on `texts`; equal arguments give an equal
    tokenizer.

    Raises:
        ConfigurationError: `vocabulary` can't hold the 256 bytes and the special tokens.
    """
    specials = [PAD, EOS, *ROLES.values()]
    learned = vocabulary - len(WHOLE)
    if learned < 256 + len(specials):
        raise ConfigurationError(
            f"base_model.embedded.vocabulary is {vocabulary}, but 256 bytes and the special tokens take "
            f"{256 + len(specials) + len(WHOLE)}: raise it."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=learned,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_without(texts, WHOLE), trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in WHOLE])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=list(ROLES.values()),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=positions,
        padding_side="left",
    )


def _without(texts: Iterable[str], pieces: tuple[str, ...]) -> Iterable[str]:
    """The texts split at `pieces`, which are tokens already and must not use up merges."""
    for text in texts:
        parts = [text]
        for piece in pieces:
            parts = [part for whole in parts for part in whole.split(piece)]
        yield from (part for part in parts if part)
