"""Which models can become a GGUF file, judged by their config.json, before anything is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from vibethinker.errors import ConfigurationError

# transformers' names → llama.cpp's.
ARCHITECTURES = {"Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3", "LlamaForCausalLM": "llama"}


def check_convertible(config: Mapping[str, Any]) -> None:
    """Whether a model with this config.json can be written as GGUF here.

    Raises:
        ConfigurationError: it can't, or the package gguf is missing.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ConfigurationError("--format gguf needs the package gguf: install vibethinker[train].")
    architecture = str((config.get("architectures") or [config.get("model_type")])[0])
    unlike = None
    if architecture not in ARCHITECTURES:
        unlike = f"The architecture {architecture}"
    elif config.get("hidden_act", "silu") != "silu":
        unlike = f"The activation {config['hidden_act']}"
    elif config.get("use_sliding_window") or (architecture.startswith("Llama") and config.get("sliding_window")):
        unlike = "A sliding window"
    elif architecture == "Qwen3ForCausalLM" and config.get("attention_bias"):
        unlike = "A Qwen3 with biases"
    if unlike:
        raise ConfigurationError(
            f"{unlike} can't be exported as GGUF, which takes {', '.join(sorted(ARCHITECTURES))} as published: use "
            "--format hf."
        )
