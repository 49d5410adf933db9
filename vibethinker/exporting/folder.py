"""A model as a folder that transformers and vLLM load: sharded safetensors, tokenizer, template, generation config.

Left out: what training left beside the weights (metrics, manifests), and weights of another type than the stored one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vibethinker.errors import VibeThinkerError
from vibethinker.exporting.checking import agree, answers
from vibethinker.models.files import ModelWeights
from vibethinker.models.loading import load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def write_folder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path, shard_size: str) -> None:
    """Write the model's folder, load it again, and compare it with `model`: every weight, and greedy answers.

    Raises:
        VibeThinkerError: what was written is not the model.
    """
    model.save_pretrained(output, max_shard_size=shard_size)
    tokenizer.save_pretrained(output)
    state = model.state_dict()
    for name, written in ModelWeights(output).items():
        if name not in state or written.dtype != state[name].dtype or not torch.equal(written, state[name]):
            raise VibeThinkerError(f"The weights {name} were not written as they are: export the model again.")
    reread = load_tokenizer(output)
    if reread.get_vocab() != tokenizer.get_vocab() or reread.chat_template != tokenizer.chat_template:
        raise VibeThinkerError("The tokenizer was not written as it is: export the model again.")
    agree(answers(model, tokenizer), answers(load_model(output), reread), "folder")
