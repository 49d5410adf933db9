"""Predicted memory: beside what autograd really saves, and by the direction each setting moves it in."""

from __future__ import annotations

import pytest

from vibethinker.footprint import (
    GIB,
    Shape,
    Training,
    between_updates,
    block_activations,
    checkpointing,
    decoding_parts,
    training_parts,
    vllm_cache,
)

QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


def peak(checkpointing: bool = False, **changes: object) -> int:
    training = Training(**{"shape": Shape.of(QWEN3), "tokens": 4096, **changes})
    return sum(training_parts(training, checkpointing=checkpointing).values())


def saved_bytes(model_type: str, regime: str, layers: int, tokens: int) -> tuple[int, Shape]:
    """Bytes of distinct storages that autograd saves in a forward pass of a small model, weights left out."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    words = {
        "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16,
        "intermediate_size": 192, "num_hidden_layers": layers, "vocab_size": 300, "tie_word_embeddings": True,
    }  # fmt: skip
    config = AutoConfig.for_model(model_type, **words)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    if regime == "lora":
        model = get_peft_model(model.to(torch.bfloat16), LoraConfig(r=2, target_modules="all-linear"))
        model.enable_input_require_grads()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=regime != "float32")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), autocast:
        output = model.get_decoder()(torch.zeros((1, tokens), dtype=torch.long))
    assert output is not None
    return sum(size for size, _ in kept.values()), Shape.of({**words, "model_type": model_type})


@pytest.mark.parametrize("regime", ["full", "lora", "float32"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_activations_are_what_autograd_saves(model_type: str, regime: str) -> None:
    tokens = 2048
    few, shape = saved_bytes(model_type, regime, 1, tokens)
    many, _ = saved_bytes(model_type, regime, 3, tokens)
    measured = (many - few) / 2 / tokens
    assert block_activations(shape, regime) == pytest.approx(measured, rel=0.06)


def test_parts_of_a_known_model_are_its_known_sizes() -> None:
    shape = Shape.of(QWEN3)
    assert shape.parameters == pytest.approx(596.05e6, rel=1e-3)  # Qwen3-0.6B's own count
    assert shape.cache == 112 << 10  # bytes a token: 28 layers x keys and values x 8 heads x 128 x 2 bytes
    parts = training_parts(Training(shape, 4096), checkpointing=False)
    assert parts["weights"] == 4 * shape.parameters
    assert parts["optimizer"] == 8 * shape.parameters
    assert parts["logits"] == 4096 * 151936 * 6
    nf4 = training_parts(Training(shape, 4096, method="lora", quantization="nf4"), checkpointing=False)
    assert nf4["weights"] == pytest.approx(0.5625 * 28 * shape.block + 2 * shape.embeddings, rel=0.1)
    assert nf4["optimizer"] == 8 * shape.adapters(16)


def test_each_mend_lowers_the_peak() -> None:
    assert peak(tokens=2048) < peak()
    assert peak(checkpointing=True) < peak()
    assert peak(optimizer="adamw_8bit") < peak()
    assert peak(method="lora") < peak()
    assert peak(method="lora", quantization="nf4") < peak(method="lora")
    assert peak(processes=2, sharding="fsdp") < peak() < peak(processes=2, sharding="ddp")


def test_the_logits_of_a_long_row_are_those_of_a_chunk() -> None:
    shape = Shape.of(QWEN3)
    long, short = (training_parts(Training(shape, tokens), checkpointing=True)["logits"] for tokens in (32768, 4096))
    assert long == short


def test_activations_are_computed_again_exactly_where_they_do_not_fit() -> None:
    step = Training(Shape.of(QWEN3), 16384)
    assert not checkpointing(step, 80 * GIB)
    assert checkpointing(step, 24 * GIB)
    assert sum(training_parts(step, checkpointing=True).values()) < 24 * GIB


def test_an_engine_that_samples_between_updates_meets_weights_and_moments_only() -> None:
    step = Training(Shape.of(QWEN3), 16384)
    assert 12 * step.trainable < between_updates(step) < 14 * step.trainable


def test_transformers_decodes_in_a_rectangle_of_cache() -> None:
    assert decoding_parts(Shape.of(QWEN3), 256, 4096, "bfloat16")["cache"] == 256 * 4096 * (112 << 10)


def test_the_calculated_cache_of_vllm_is_within_what_vllm_itself_measured():
    """Qwen2.5-0.5B with an untied head on an H100 of 79.18 GiB: 21.74 GiB in a share of 0.3, 256 sequences."""
    words = {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": False,
    }  # fmt: skip
    share, shape = int(0.3 * 79.18 * GIB), Shape.of(words)
    assert 0.85 * 21.74 * GIB < vllm_cache(shape, share, 256, "bfloat16") < 21.74 * GIB
    assert vllm_cache(shape, share, 256, "bfloat16") > vllm_cache(shape, share, 1024, "bfloat16") > 18 * GIB
    assert vllm_cache(shape, GIB, 256, "bfloat16") < 0
