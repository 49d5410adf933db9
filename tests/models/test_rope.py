"""RoPE extension: what it writes, and that the model computes by it beyond its own positions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from vibethinker.errors import ConfigurationError
from vibethinker.models import load_model, load_tokenizer, positions, run_base

OWN = 128  # positions of the tiny model


def extended(new_step, source: Path, kind: str, factor: float):
    base_model = {"source": str(source), "rope_scaling": {"type": kind, "factor": factor}}
    context = new_step({"seed": 1, "deterministic": True, "base_model": base_model})
    run_base(context)
    return context.output


def logits(model, ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids[None], position_ids=places[None]).logits


@pytest.mark.parametrize(
    ("kind", "written"),
    [
        ("yarn", {"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": OWN}),
        ("linear", {"rope_type": "linear", "factor": 2.5}),
    ],
)
def test_an_extension_is_written_as_transformers_and_vllm_read_it(new_step, tiny_model_folder, kind, written):
    folder = extended(new_step, tiny_model_folder, kind, 2.5)
    config = json.loads((folder / "config.json").read_text())
    theta = json.loads((tiny_model_folder / "config.json").read_text())["rope_parameters"]["rope_theta"]
    assert config["rope_parameters"] == {**written, "rope_theta": theta}
    assert positions(folder) == config["max_position_embeddings"] == 320
    assert load_tokenizer(folder).model_max_length >= 320


def test_linear_scaling_at_scaled_positions_is_the_model_as_it_was(new_step, tiny_model_folder):
    longer = load_model(extended(new_step, tiny_model_folder, "linear", 2))
    ids = torch.arange(5, 5 + OWN)
    places = torch.arange(OWN)
    as_it_was = logits(load_model(tiny_model_folder), ids, places)
    assert torch.allclose(logits(longer, ids, 2 * places), as_it_was, atol=1e-5)
    assert not torch.allclose(logits(longer, ids, places), as_it_was, atol=1e-3)


def test_yarn_keeps_fast_rotations_and_stretches_slow_ones(new_step, tiny_model_folder):
    before = load_model(tiny_model_folder).model.rotary_emb
    after = load_model(extended(new_step, tiny_model_folder, "yarn", 4)).model.rotary_emb
    assert after.inv_freq[0] == before.inv_freq[0]
    assert torch.isclose(after.inv_freq[-1], before.inv_freq[-1] / 4)
    assert math.isclose(after.attention_scaling, 0.1 * math.log(4) + 1)  # YaRN, arXiv 2309.00071, eq. 22


@pytest.mark.parametrize("kind", ["yarn", "linear"])
def test_positions_beyond_the_old_limit_are_computed(new_step, tiny_model_folder, kind):
    model = load_model(extended(new_step, tiny_model_folder, kind, 2))
    ids = torch.arange(2 * OWN) + 5
    beyond = logits(model, ids, torch.arange(2 * OWN))[0, OWN:]
    assert torch.isfinite(beyond).all()
    unscaled = load_model(tiny_model_folder)
    assert not torch.allclose(logits(unscaled, ids, torch.arange(2 * OWN))[0, OWN:], beyond, atol=1e-3)


def test_a_model_that_is_extended_already_is_refused(new_step, tiny_model_folder):
    once = extended(new_step, tiny_model_folder, "yarn", 2)
    with pytest.raises(ConfigurationError, match="yarn, 256 positions"):
        extended(new_step, once, "yarn", 2)
