"""Models on disk and in memory: loading, saving, checking, and where the recipe's base model comes from.

A model folder is what transformers writes: config.json, weights in safetensors, the tokenizer with its chat
template, generation_config.json. An adapter folder has adapter_config.json in place of config.json and needs
its base.
"""

from vibethinker.models.files import ModelWeights, check_model_folder, is_adapter, load_state
from vibethinker.models.loading import load_model, load_tokenizer, save_model, seed_everything, set_threads
from vibethinker.models.sources import run_base, run_import

__all__ = [
    "ModelWeights",
    "check_model_folder",
    "is_adapter",
    "load_model",
    "load_state",
    "load_tokenizer",
    "run_base",
    "run_import",
    "save_model",
    "seed_everything",
    "set_threads",
]
