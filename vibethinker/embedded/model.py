"""The embedded model's network: Qwen3's architecture, a thousand times smaller, with random weights."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from vibethinker.settings import EmbeddedModel


def new_model(settings: EmbeddedModel, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A model in float32 whose random weights follow torch's current seed; input and output embeddings are
    tied."""
    config = Qwen3Config(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        head_dim=settings.hidden_size // settings.heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.positions,
        max_window_layers=settings.layers,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    return Qwen3ForCausalLM(config)
