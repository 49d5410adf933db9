"""Models on disk and in memory: loading, saving, checking, and where the recipe's base model comes from.

A model folder is what transformers writes: config.json, weights in safetensors, the tokenizer with its chat
template, generation_config.json. An adapter folder has adapter_config.json in place of config.json and needs
its base.
"""

from vibethinker.models.files import ModelWeights, check_model_folder, is_adapter, load_state, positions
from vibethinker.models.loading import attention, load_model, load_tokenizer, save_model, seed_everything, set_threads
from vibethinker.models.policy import policy_tensors
from vibethinker.models.sources import run_base, run_import
from vibethinker.models.trainable import import_unsloth, load_trainable

__all__ = [
    "ModelWeights",
    "attention",
    "check_model_folder",
    "import_unsloth",
    "is_adapter",
    "load_model",
    "load_state",
    "load_tokenizer",
    "load_trainable",
    "policy_tensors",
    "positions",
    "run_base",
    "run_import",
    "save_model",
    "seed_everything",
    "set_threads",
]
