"""Random models of one architecture, as folders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vibethinker.models import save_model


@pytest.fixture(scope="module")
def save(tmp_path_factory, new_tiny_model, tiny_tokenizer):
    """A function (seed, dtype, shape overrides) → model folder."""

    def make(seed: int, dtype=torch.float32, **overrides) -> Path:
        folder = tmp_path_factory.mktemp("fusion") / f"model-{seed}"
        save_model(new_tiny_model(seed, **overrides).to(dtype), tiny_tokenizer, folder)
        return folder

    return make


@pytest.fixture(scope="module")
def three(save):
    return [save(seed) for seed in range(3)]
