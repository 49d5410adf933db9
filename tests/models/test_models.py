"""Models between disk and memory: the same bytes, whole folders, adapters."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from vibethinker.errors import ConfigurationError, InfrastructureError
from vibethinker.models import (
    check_model_folder,
    load_model,
    load_state,
    load_tokenizer,
    run_base,
    run_import,
    save_model,
    seed_everything,
)


@pytest.fixture
def copied(tiny_model_folder, tmp_path) -> Path:
    """A model folder that a test may damage."""
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "copied"))


@pytest.fixture(scope="module")
def adapter(tiny_model_folder, tiny_tokenizer, tmp_path_factory) -> Path:
    """An adapter of the tiny model that changes its logits."""
    from peft import get_peft_model

    from vibethinker.models.trainable import lora_config
    from vibethinker.settings import Lora

    torch.manual_seed(3)
    model = get_peft_model(load_model(tiny_model_folder), lora_config(Lora()))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    folder = tmp_path_factory.mktemp("adapter")
    save_model(model, tiny_tokenizer, folder)
    return folder


def base_settings(source: Path | str, **more) -> dict:
    return {"seed": 1, "deterministic": True, "base_model": {"source": str(source), **more}}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(5, 25)[None]).logits


def test_a_saved_model_loads_to_the_same_logits(new_tiny_model, tiny_model_folder):
    assert torch.equal(logits(load_model(tiny_model_folder)), logits(new_tiny_model(0)))


def test_equal_models_are_saved_as_equal_bytes(new_tiny_model, tiny_tokenizer, tiny_model_folder, tmp_path):
    save_model(new_tiny_model(0), tiny_tokenizer, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(tiny_model_folder)


def test_a_saved_model_names_no_path(tiny_model_folder, tmp_path):
    save_model(load_model(tiny_model_folder), load_tokenizer(tiny_model_folder), tmp_path / "again")
    for file in (tmp_path / "again").glob("*.json"):
        assert str(tiny_model_folder) not in file.read_text()


def test_a_model_can_be_stored_in_a_narrower_type(new_tiny_model, tiny_tokenizer, tmp_path):
    model = new_tiny_model(0)
    save_model(model, tiny_tokenizer, tmp_path, torch.bfloat16)
    assert load_model(tmp_path).dtype == torch.bfloat16
    assert model.dtype == torch.float32


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_without_an_essential_file_is_refused_by_name(copied, name):
    (copied / name).unlink()
    with pytest.raises(ConfigurationError, match=name):
        check_model_folder(copied)


def test_a_folder_without_a_shard_is_refused_by_name(copied):
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigurationError, match="model-00001-of-00002"):
        check_model_folder(copied)


def test_weights_in_pickle_are_refused_with_the_mend(copied):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    with pytest.raises(ConfigurationError, match="safetensors"):
        check_model_folder(copied)


def test_something_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="not a folder"):
        check_model_folder(tmp_path / "nowhere")


def test_state_has_each_stored_tensor_once(tiny_model_folder, new_tiny_model):
    state, model = load_state(tiny_model_folder), new_tiny_model(0).state_dict()
    assert "lm_head.weight" not in state  # tied to the input embeddings
    assert set(state) == set(model) - {"lm_head.weight"}
    assert all(torch.equal(state[name], model[name]) for name in state)


def test_an_adapter_is_merged_when_loaded_with_its_base(adapter, tiny_model_folder):
    from peft import PeftModel

    unmerged = PeftModel.from_pretrained(load_model(tiny_model_folder), adapter).eval()
    merged = load_model(adapter, base=tiny_model_folder)
    assert torch.allclose(logits(merged), logits(unmerged), atol=1e-5)
    assert not torch.allclose(logits(merged), logits(load_model(tiny_model_folder)), atol=1e-2)


def test_an_adapter_s_state_has_the_names_of_its_base(adapter, tiny_model_folder):
    state = load_state(adapter, base=tiny_model_folder)
    assert set(state) == set(load_state(tiny_model_folder))
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_an_adapter_without_its_base_is_refused(adapter):
    with pytest.raises(ConfigurationError, match="adapter"):
        load_model(adapter)


def test_an_adapter_folder_names_neither_a_path_nor_a_set_in_hash_order(adapter, tiny_model_folder):
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert config["target_modules"] == sorted(config["target_modules"])


def test_seeding_repeats_torch_numpy_and_python():
    import random

    import numpy

    def drawn():
        seed_everything(11)
        return random.random(), numpy.random.rand(), torch.rand(1).item()

    assert drawn() == drawn()


def test_a_folder_becomes_the_base_with_its_own_weights(new_step, tiny_model_folder):
    context = new_step(base_settings(tiny_model_folder))
    measured = run_base(context)
    check_model_folder(context.output)
    assert torch.equal(logits(load_model(context.output)), logits(load_model(tiny_model_folder)))
    assert measured["parameters"] == sum(p.numel() for p in load_model(tiny_model_folder).parameters())


def test_a_gguf_file_becomes_an_ordinary_model_folder(new_step, tmp_path):
    file = tmp_path / "model.gguf"
    write_gguf(file)
    context = new_step(base_settings(file))
    run_base(context)
    check_model_folder(context.output)
    model = load_model(context.output)
    assert model.config.hidden_size == 32
    tokenizer = load_tokenizer(context.output)
    assert tokenizer.chat_template is not None
    ids = tokenizer("ab<think>abc</think><|fim|>", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["ab", "<think>", "abc", "</think>", "<|fim|>"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab<think>abc</think>"


def test_a_source_that_does_not_exist_is_refused(new_step):
    with pytest.raises(ConfigurationError, match="neither a folder"):
        run_base(new_step(base_settings("/no/such/model")))


def test_an_unreachable_hub_says_how_to_work_offline(new_step, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InfrastructureError, match="hf download nobody/nothing"):
        run_base(new_step(base_settings("nobody/nothing")))


def test_an_imported_specialist_is_a_checkpoint_called_imported(new_step, tiny_model_folder):
    context = new_step({"role": "specialist", "digest": "x"}, source=str(tiny_model_folder))
    run_import(context)
    check_model_folder(context.output / "checkpoints" / "imported")


def test_an_imported_adapter_stays_an_adapter(new_step, adapter):
    context = new_step({"role": "specialist", "digest": "x"}, source=str(adapter))
    run_import(context)
    assert (context.output / "checkpoints" / "imported" / "adapter_config.json").is_file()


def test_an_imported_fused_model_lies_at_the_top(new_step, tiny_model_folder):
    context = new_step({"role": "fusion", "digest": "x"}, source=str(tiny_model_folder))
    run_import(context)
    check_model_folder(context.output)


def test_an_imported_data_folder_is_copied_as_it_is(new_step, tmp_path):
    (tmp_path / "mine" / "sft").mkdir(parents=True)
    (tmp_path / "mine" / "sft" / "algebra.jsonl").write_text("{}\n")
    context = new_step({"role": "data", "digest": "x"}, source=str(tmp_path / "mine"))
    run_import(context)
    assert digests(context.output) == digests(tmp_path / "mine")


def write_gguf(file: Path) -> None:
    """A random Llama model of one layer in GGUF, with a byte-level tokenizer of some 260 tokens."""
    import gguf
    import numpy
    from tokenizers import pre_tokenizers

    rng = numpy.random.default_rng(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "ab", "abc", "<think>", "</think>", "<|fim|>"]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    control, own = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED
    writer.add_token_types([control] * 3 + [gguf.TokenType.NORMAL] * (len(tokens) - 6) + [own, own, control])
    writer.add_token_merges(["a b", "ab c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {
        "token_embd.weight": (len(tokens), 32),
        "output_norm.weight": (32,),
        "blk.0.attn_norm.weight": (32,),
        "blk.0.ffn_norm.weight": (32,),
        "blk.0.attn_q.weight": (32, 32),
        "blk.0.attn_k.weight": (16, 32),
        "blk.0.attn_v.weight": (16, 32),
        "blk.0.attn_output.weight": (32, 32),
        "blk.0.ffn_gate.weight": (64, 32),
        "blk.0.ffn_up.weight": (64, 32),
        "blk.0.ffn_down.weight": (32, 64),
    }
    for name, shape in shapes.items():
        writer.add_tensor(name, rng.normal(size=shape).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
