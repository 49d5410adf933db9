"""Fixtures that several rooms' tests share: a tiny random Qwen3 model with its tokenizer, in memory and as a
folder."""

from __future__ import annotations

from pathlib import Path

import pytest

TEXTS = (
    "What is 3 + 4?",
    "Let x be the number, so 2 * x = 10.",
    "The answer is \\boxed{7}.",
    "def f(a, b): return a",
)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from vibethinker.embedded.tokenizer import train_tokenizer

    return train_tokenizer(TEXTS, vocabulary=320, positions=128)


@pytest.fixture(scope="session")
def new_tiny_model(tiny_tokenizer):
    """A function seed → random model of 2 layers in evaluation mode."""
    import torch

    from vibethinker.embedded.model import new_model
    from vibethinker.settings import EmbeddedModel

    def build(seed: int, **overrides):
        shape = {"hidden_size": 32, "layers": 2, "intermediate_size": 64, "vocabulary": 320, "positions": 128}
        torch.manual_seed(seed)
        return new_model(EmbeddedModel(**{**shape, **overrides}), tiny_tokenizer).eval()

    return build


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory, new_tiny_model, tiny_tokenizer) -> Path:
    """A complete model folder; read only."""
    from vibethinker.models import save_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(new_tiny_model(0), tiny_tokenizer, folder)
    return folder
