"""Fixtures of what asks a server, and of adapters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def asker(tmp_path, monkeypatch) -> Iterator:
    """A fake server with its `Asker`, whatever proxies the environment names."""
    from tests.generation.asking import Asker

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    asker = Asker(tmp_path)
    with asker.fake, asker.store:
        yield asker


@pytest.fixture
def new_adapter(tmp_path, new_tiny_model, tiny_tokenizer):
    """A function seed → folder of a random adapter of the tiny model."""
    import torch
    from peft import LoraConfig, get_peft_model

    from vibethinker.models import save_model

    def make(seed: int) -> Path:
        folder = tmp_path / f"adapter-{seed}"
        if not folder.exists():
            model = get_peft_model(new_tiny_model(0), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
            torch.manual_seed(seed)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.3)
            save_model(model, tiny_tokenizer, folder)
        return folder

    return make
