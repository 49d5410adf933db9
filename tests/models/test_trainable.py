"""Models made ready for training, and the weights of a policy in training, in float32 and in 4 bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from vibethinker.errors import ConfigurationError
from vibethinker.models import load_model, load_state, load_trainable, policy_tensors, save_model
from vibethinker.models.tokenizers import read_tokenizer
from vibethinker.models.trainable import PROJECTIONS, _harmless_tokenizer
from vibethinker.settings import Lora

pytestmark = pytest.mark.slow

IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, new_tiny_model, tiny_tokenizer, tmp_path_factory) -> Path:
    """A model folder whose layers are wide enough for blocks of 4 bits, with biases as Qwen2 has them."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=len(tiny_tokenizer), max_position_embeddings=128, tie_word_embeddings=request.param,
        pad_token_id=tiny_tokenizer.pad_token_id, initializer_range=0.2,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    made = tmp_path_factory.mktemp("model")
    save_model(model, tiny_tokenizer, made)
    return made


def trainable(folder: Path, method: str = "lora", **changes):
    torch.manual_seed(1)
    asked = {"device": "cpu", "dtype": torch.float32, "lora": Lora(rank=4, alpha=8), "max_length": 128}
    return load_trainable(folder, method=method, **asked | changes)


def moved(model):
    """The model with adapters that change it."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def trained(model, steps: int = 2):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_trained_in_full_are_float32_and_all_trainable(folder, dtype):
    model = trainable(folder, "full", dtype=dtype)
    assert model.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapters_are_float32_over_a_frozen_base_of_its_own_type(folder, quantization):
    model = trainable(folder, dtype=torch.bfloat16, quantization=quantization)
    base = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in adapters.values()} == {torch.float32}
    assert {name.split(".lora_")[0].split(".")[-1] for name in adapters} == set(PROJECTIONS)
    stored = torch.bfloat16 if quantization == "none" else torch.uint8
    assert {p.dtype for name, p in base.items() if ".base_layer.weight" in name} == {stored}
    assert {p.dtype for name, p in base.items() if ".base_layer.weight" not in name} == {torch.bfloat16}
    assert model.get_output_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize(("method", "quantization"), [("full", "none"), ("lora", "none"), ("lora", "nf4")])
def test_gradient_checkpointing_leaves_the_gradients_as_they_are(folder, method, quantization):
    gradients = []
    for checkpointing in (False, True):
        model = moved(trainable(folder, method, quantization=quantization, gradient_checkpointing=checkpointing))
        assert model.is_gradient_checkpointing == checkpointing
        model(IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert all(g is not None and g.abs().sum() > 0 for g in gradients[1].values())
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_the_seed_decides_the_adapters_start(folder):
    first, second = trainable(folder), trainable(folder)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("full", {"quantization": "nf4"}, "method to lora"),
        ("lora", {"max_length": 300}, "128 positions and 300"),
        ("lora", {"backend": "unsloth"}, "unsloth"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_mend(folder, method, changes, said):
    with pytest.raises(ConfigurationError, match=said):
        trainable(folder, method, **changes)


def test_an_adapter_is_not_trained_further(folder, tiny_tokenizer, tmp_path):
    save_model(trainable(folder), tiny_tokenizer, tmp_path)
    with pytest.raises(ConfigurationError, match="merge it"):
        trainable(tmp_path)


def test_a_quantised_folder_is_refused(folder, tmp_path):
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    config = json.loads((copied / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigurationError, match="unquantised"):
        trainable(copied)


# ---- the policy's tensors ----


@pytest.mark.parametrize(("method", "quantization"), [("full", "none"), ("lora", "none"), ("lora", "nf4")])
def test_a_policy_has_the_names_and_shapes_of_its_base_s_file(folder, method, quantization):
    stored = load_state(folder)
    policy = list(policy_tensors(trainable(folder, method, quantization=quantization)))
    assert len(policy) == len(stored)
    assert {name: tensor.shape for name, tensor in policy} == {name: stored[name].shape for name in stored}
    assert not any(tensor.requires_grad for _, tensor in policy)


def test_a_policy_trained_in_full_is_its_parameters(folder):
    model = trained(trainable(folder, "full"), 1)
    parameters = dict(model.named_parameters())
    assert all(tensor.data_ptr() == parameters[name].data_ptr() for name, tensor in policy_tensors(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_with_adapters_is_what_peft_merges(folder, dtype):
    model = moved(trainable(folder, dtype=dtype))
    policy = {name: tensor.clone() for name, tensor in policy_tensors(model)}
    merged = model.merge_and_unload().state_dict()
    for name, tensor in policy.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, merged[name]), name


def test_a_policy_in_4_bits_is_what_its_layers_compute_with(folder):
    model = moved(trainable(folder, quantization="nf4"))
    policy = dict(policy_tensors(model))
    whole = load_model(folder)
    name = "model.layers.0.mlp.down_proj"
    layer = model.get_base_model().get_submodule(name)
    x = torch.randn(3, 128)
    assert torch.allclose(layer(x), x @ policy[f"{name}.weight"].T, atol=1e-4)
    # 4 bits tell the base's weights apart only roughly: that they are the quantised ones must show.
    assert not torch.allclose(policy[f"{name}.weight"], whole.get_parameter(f"{name}.weight"), atol=1e-2)
    whole.load_state_dict(policy, strict=False)
    assert torch.allclose(logits(model), logits(whole), atol=1e-4)
    again = dict(policy_tensors(model))  # inference has left the 4 bits as they were
    assert all(torch.equal(policy[name], again[name]) for name in policy)


def test_a_policy_s_tensors_follow_training(folder):
    model = trainable(folder, quantization="nf4")
    before = {name: tensor.clone() for name, tensor in policy_tensors(model)}
    after = dict(policy_tensors(trained(model)))
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(PROJECTIONS)


def sharded_policies(rank: int, folder: Path) -> None:
    """One of two processes that share a model's weights by FSDP2, and compare its policy with the unsharded one's."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for method in ("full", "lora"):
        model = moved(trainable(folder, method))
        expected = {name: tensor.clone() for name, tensor in policy_tensors(model)}
        inner = model.get_base_model() if method == "lora" else model
        for layer in inner.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(hasattr(parameter, "full_tensor") for parameter in model.parameters())
        found = dict(policy_tensors(model))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
    dist.destroy_process_group()


@pytest.mark.long
def test_a_sharded_policy_is_gathered(tiny_model_folder, tmp_path):
    copied = Path(shutil.copytree(tiny_model_folder, tmp_path / "copied"))
    torch.multiprocessing.spawn(sharded_policies, (copied,), nprocs=2)


# ---- merging ----


def test_a_merged_checkpoint_reloads_to_the_logits_of_its_adapter(folder, tiny_tokenizer, tmp_path):
    model = trained(moved(trainable(folder)))
    save_model(model, tiny_tokenizer, tmp_path / "adapter")
    merged = load_model(tmp_path / "adapter", base=folder)
    save_model(merged, tiny_tokenizer, tmp_path / "merged")
    reloaded = load_model(tmp_path / "merged")
    assert torch.equal(logits(reloaded), logits(merged))
    # (W + BA) x instead of W x + B(A x): the same but for the order of float32 additions.
    assert torch.allclose(logits(reloaded), logits(model), atol=1e-4)


def test_adapters_trained_in_4_bits_merge_into_the_unquantised_base(folder, tiny_tokenizer, tmp_path):
    model = trained(moved(trainable(folder, quantization="nf4", dtype=torch.bfloat16)))
    save_model(model, tiny_tokenizer, tmp_path / "adapter")
    merged, base = load_state(tmp_path / "adapter", base=folder), load_state(folder)
    for name, layer in model.get_base_model().named_modules():
        if name.endswith(PROJECTIONS):
            delta = layer.get_delta_weight("default")
            assert torch.equal(merged[f"{name}.weight"], base[f"{name}.weight"] + delta), name
    save_model(load_model(tmp_path / "adapter", base=folder), tiny_tokenizer, tmp_path / "merged")
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    assert {tensor.dtype for tensor in load_state(tmp_path / "merged").values()} == {torch.float32}


def test_unsloth_is_given_a_tokenizer_whose_pad_token_is_neither_eos_nor_new(folder, tmp_path):
    tokenizer = read_tokenizer(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "model")
    _harmless_tokenizer(tmp_path / "model", tmp_path)
    given = read_tokenizer(tmp_path)
    assert given.pad_token_id not in (None, given.eos_token_id)
    assert given.get_vocab() == tokenizer.get_vocab()
    assert given.chat_template is None


# ---- on a GPU ----

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@on_gpu
def test_unsloth_trains_adapters_over_4_bits(folder, tiny_tokenizer, tmp_path):
    pytest.importorskip("unsloth")
    model = trainable(folder, backend="unsloth", quantization="nf4", device="cuda", dtype=torch.bfloat16)
    stored = load_state(folder)
    before = {name: tensor.clone() for name, tensor in policy_tensors(model)}
    assert {name: tensor.shape for name, tensor in before.items()} == {name: stored[name].shape for name in stored}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = IDS.cuda()
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = dict(policy_tensors(model))
    assert {n.split(".")[-2] for n in before if not torch.equal(before[n], after[n])} == set(PROJECTIONS)
    save_model(model, tiny_tokenizer, tmp_path)
    merged = load_state(tmp_path, base=folder)
    assert set(merged) == set(stored)


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_policy_s_tensors_are_made_on_the_gpu(folder, quantization):
    model = moved(trainable(folder, quantization=quantization, device="cuda", dtype=torch.bfloat16))
    assert {tensor.device.type for _, tensor in policy_tensors(model)} == {"cuda"}
