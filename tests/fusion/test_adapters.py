"""Adapters fused as an adapter do to the base what their fusion as whole models does."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vibethinker.errors import ConfigurationError, DivergedError
from vibethinker.fusion import fuse
from vibethinker.fusion.adapters import fuse_adapters
from vibethinker.models import load_model, save_model
from vibethinker.settings import Fusion


@pytest.fixture(scope="module")
def base(save):
    return save(0)


@pytest.fixture(scope="module")
def adapter(base, tiny_tokenizer, tmp_path_factory):
    """A function (seed, LoraConfig's settings) → adapter folder."""
    from peft import LoraConfig, get_peft_model

    def make(seed, **settings):
        torch.manual_seed(seed)
        model = get_peft_model(load_model(base), LoraConfig(init_lora_weights=False, **settings))
        folder = tmp_path_factory.mktemp("adapter") / f"adapter-{seed}"
        save_model(model, tiny_tokenizer, folder)
        return folder

    return make


@pytest.fixture(scope="module")
def two(adapter):
    """Adapters of other rank, scale and modules."""
    return [
        adapter(1, r=4, lora_alpha=12, target_modules=["q_proj", "up_proj"]),
        adapter(2, r=2, lora_alpha=3, use_rslora=True, target_modules=["up_proj", "v_proj"]),
    ]


@pytest.mark.parametrize("settings", [Fusion(), Fusion(method="task_arithmetic", scale=1.5)])
def test_the_adapter_of_the_sum_is_the_sum_of_the_adapters(two, base, tmp_path, settings):
    fuse_adapters(two, tmp_path / "adapter", [1, 3], settings=settings)
    fuse(two, tmp_path / "whole", [1, 3], base, settings=settings)
    found = load_model(tmp_path / "adapter", base=base).state_dict()
    wanted, start = load_model(tmp_path / "whole").state_dict(), load_model(base).state_dict()
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6) for name in wanted)
    changed = {name.split(".")[-2] for name in wanted if not torch.equal(wanted[name], start[name])}
    assert changed == {"q_proj", "up_proj", "v_proj"}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (6, 6, False)


def test_modules_that_were_named_by_a_pattern_or_by_layers_are_all_there(adapter, base, tmp_path):
    some = [
        adapter(5, r=2, target_modules=["q_proj", "k_proj"], layers_to_transform=[0], exclude_modules=["k_proj"]),
        adapter(6, r=2, target_modules=["q_proj", "k_proj"], layers_to_transform=[1]),
    ]
    config = some[1] / "adapter_config.json"
    named = {"target_modules": r".*1\.self_attn\.(q|k)_proj", "layers_to_transform": None}
    config.write_text(json.dumps(json.loads(config.read_text()) | named))
    fuse_adapters(some, tmp_path / "adapter", settings=Fusion())
    fuse(some, tmp_path / "whole", base=base)
    found = load_model(tmp_path / "adapter", base=base).state_dict()
    wanted, start = load_model(tmp_path / "whole").state_dict(), load_model(base).state_dict()
    assert all(torch.allclose(found[name], wanted[name], rtol=1e-5, atol=1e-6) for name in wanted)
    changed = {".".join(name.split(".")[2:5:2]) for name in wanted if not torch.equal(wanted[name], start[name])}
    assert changed == {"0.q_proj", "1.q_proj", "1.k_proj"}


def test_a_repetition_gives_the_same_bytes(two, tmp_path):
    for name in "ab":
        fuse_adapters(two, tmp_path / name, settings=Fusion())
    files = {file.name for file in (tmp_path / "a").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= files
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_what_has_no_exact_sum_is_refused(two, adapter, base, tmp_path):
    def refused(match, adapters, **settings):
        with pytest.raises(ConfigurationError, match=match):
            fuse_adapters(adapters, tmp_path / "out", settings=Fusion(**settings))

    refused("ties leaves no adapter", two, method="ties")
    refused("at least two adapters", two[:1])
    refused("holds a whole model", [two[0], base])
    refused("no plain LoRA .use_dora is True", [two[0], adapter(3, r=2, target_modules=["q_proj"], use_dora=True)])
    refused("no plain LoRA .modules_to_save", [two[0], adapter(4, target_modules=["q_proj"], modules_to_save=["norm"])])
    assert not (tmp_path / "out").exists()


def test_a_nan_in_an_adapter_stops_the_fusion(two, tmp_path):
    shutil.copytree(two[0], tmp_path / "broken")
    path = tmp_path / "broken" / "adapter_model.safetensors"
    state = load_file(path)
    next(iter(state.values()))[0, 0] = float("nan")
    save_file(state, path)
    with pytest.raises(DivergedError, match="NaN or infinite weight"):
        fuse_adapters([tmp_path / "broken", two[1]], tmp_path / "out", settings=Fusion())
