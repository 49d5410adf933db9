"""The linear mean of model folders: numbers, files, adapters, and models that can't be fused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vibethinker.errors import ConfigurationError, DivergedError
from vibethinker.fusion import arrays, fuse, normalised, step
from vibethinker.models import load_model, load_tokenizer, save_model
from vibethinker.steps import StepContext


class Silent:
    def progress(self, done, total, text=""): ...
    def metrics(self, step, values): ...
    def warning(self, text): ...


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def reference(folders, shares, dtype):
    states = [weights_of(folder) for folder in folders]
    return {
        name: sum(share * state[name].double() for state, share in zip(states, shares, strict=True)).to(dtype)
        for name in states[0]
    }


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 2, 4]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fusion_is_the_float64_mean_cast_once_to_the_stored_type(save, tmp_path, dtype, weights):
    models = [save(seed, dtype) for seed in range(3)]
    fuse(models, tmp_path / "out", weights=weights)
    fused = weights_of(tmp_path / "out")
    expected = reference(models, [weight / sum(weights) for weight in weights], dtype)
    assert fused.keys() == expected.keys()
    assert all(fused[name].dtype == dtype and torch.equal(fused[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("copies", [2, 3, 7])
def test_fusing_a_model_with_itself_gives_the_same_bytes(save, tmp_path, dtype, copies):
    model = save(0, dtype)
    fuse([model] * copies, tmp_path / "out")
    fused, original = weights_of(tmp_path / "out"), weights_of(model)
    assert fused.keys() == original.keys()
    assert all(torch.equal(fused[name].view(torch.uint8), original[name].view(torch.uint8)) for name in original)


def test_the_order_of_two_models_does_not_matter_and_a_repetition_gives_equal_files(three, tmp_path):
    for output, models in (("a", three[:2]), ("b", three[1::-1]), ("c", three[:2])):
        fuse(models, tmp_path / output)
    first, swapped, again = ((tmp_path / o / "model.safetensors").read_bytes() for o in "abc")
    assert first == swapped == again


def test_a_weight_of_zero_takes_a_model_out(three, tmp_path):
    fuse(three, tmp_path / "out", weights=[0, 3, 0])
    fused, original = weights_of(tmp_path / "out"), weights_of(three[1])
    assert all(torch.equal(fused[name], original[name]) for name in original)


def test_tensors_longer_than_a_slice_are_whole(three, tmp_path, monkeypatch):
    fuse(three, tmp_path / "whole")
    monkeypatch.setattr(arrays.Numpy, "slice", 96)
    fuse(three, tmp_path / "sliced")
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "sliced/model.safetensors").read_bytes()


def test_a_fused_folder_loads_with_the_bases_tokenizer_and_generation_config(three, tmp_path):
    fuse(three, tmp_path / "out")
    model = load_model(tmp_path / "out")
    tokenizer, original = load_tokenizer(tmp_path / "out"), load_tokenizer(three[0])
    assert tokenizer.get_vocab() == original.get_vocab() and tokenizer.chat_template == original.chat_template
    names = sorted(file.name for file in three[0].iterdir())
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names
    for name in names:
        if name != "model.safetensors":
            assert (tmp_path / "out" / name).read_bytes() == (three[0] / name).read_bytes()
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_adapters_are_merged_into_the_base_first(three, tmp_path, tiny_tokenizer):
    from peft import LoraConfig, get_peft_model

    base, adapters, whole = three[0], [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = get_peft_model(
            load_model(base), LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        )
        adapters.append(tmp_path / f"adapter-{seed}")
        save_model(model, tiny_tokenizer, adapters[-1])
        whole.append(tmp_path / f"whole-{seed}")
        save_model(load_model(adapters[-1], base=base), tiny_tokenizer, whole[-1])
    fuse(adapters, tmp_path / "from-adapters", base=base)
    fuse(whole, tmp_path / "from-models", base=base)
    assert (
        weights_of(whole[0])["model.layers.0.mlp.up_proj.weight"]
        .ne(weights_of(base)["model.layers.0.mlp.up_proj.weight"])
        .any()
    )
    a, b = (tmp_path / f"from-{kind}" / "model.safetensors" for kind in ("adapters", "models"))
    assert a.read_bytes() == b.read_bytes()
    with pytest.raises(ConfigurationError, match="holds an adapter: name the base"):
        fuse(adapters, tmp_path / "no-base")


def rewritten(folder: Path, target: Path, change) -> Path:
    shutil.copytree(folder, target)
    state = weights_of(target)
    change(state)
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_models_of_other_shapes_are_refused_with_the_tensors_name(three, save, tmp_path):
    with pytest.raises(ConfigurationError, match=r"mlp\.\w+_proj\.weight has shape \[\d+, \d+\]"):
        fuse([three[0], save(5, intermediate_size=80)], tmp_path / "out")
    with pytest.raises(ConfigurationError, match=r"only the first has the tensor model\.layers\.1\."):
        fuse([three[0], save(5, layers=1)], tmp_path / "out")
    extra = rewritten(
        three[1], tmp_path / "extra", lambda s: s.update({"lm_head.weight": s["model.norm.weight"].clone()})
    )
    with pytest.raises(ConfigurationError, match=r"only the first has the tensor lm_head\.weight"):
        fuse([three[0], extra], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_quantised_weights_are_refused(three, tmp_path):
    def quantise(state):
        state["model.norm.weight"] = state["model.norm.weight"].to(torch.uint8)

    with pytest.raises(ConfigurationError, match=r"model\.norm\.weight isn't stored .* unquantised"):
        fuse([three[0], rewritten(three[1], tmp_path / "quantised", quantise)], tmp_path / "out")


def edited(folder: Path, target: Path, file: str, change) -> Path:
    shutil.copytree(folder, target)
    value = json.loads((target / file).read_text())
    change(value)
    (target / file).write_text(json.dumps(value))
    return target


def test_models_of_other_architecture_or_tokenizer_are_refused(three, tmp_path):
    untied = edited(three[1], tmp_path / "untied", "config.json", lambda c: c.update(tie_word_embeddings=False))
    with pytest.raises(ConfigurationError, match="tie_word_embeddings"):
        fuse([three[0], untied], tmp_path / "out")

    def swap(tokenizer):
        vocabulary = tokenizer["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    with pytest.raises(ConfigurationError, match="tokenizers differ"):
        fuse([three[0], edited(three[1], tmp_path / "swapped", "tokenizer.json", swap)], tmp_path / "out")


def test_added_tokens_may_be_more_but_not_other_ones(three, tmp_path):
    """Both numbers lie within one padded embedding, so that all shapes agree."""

    def with_token(content):
        added = {"id": 319, "content": content, "special": True}
        return lambda tokenizer: tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], **added})

    claim, proof = (
        edited(model, tmp_path / word, "tokenizer.json", with_token(f"<{word}>"))
        for model, word in zip(three[1:], ("claim", "proof"), strict=True)
    )
    fuse([three[0], claim], tmp_path / "more")
    with pytest.raises(ConfigurationError, match="token 319 is '<proof>' in one and '<claim>' in another"):
        fuse([three[0], claim, proof], tmp_path / "out")


def test_bad_arguments_are_refused_and_nothing_is_written(three, tmp_path):
    def refused(match, *arguments, **keywords):
        with pytest.raises(ConfigurationError, match=match):
            fuse(*arguments, **keywords)

    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("")
    refused("at least two models", three[:1], tmp_path / "out")
    refused("2 weights for 3 models", three, tmp_path / "out", weights=[1, 1])
    refused("at least 0 and not all 0", three, tmp_path / "out", weights=[1, -1, 1])
    refused("at least 0 and not all 0", three, tmp_path / "out", weights=[0, 0, 0])
    refused("isn't an empty folder", three, full)
    refused("can't be written", three, tmp_path / "full" / "mine" / "out")
    refused("is not a folder", [three[0], tmp_path / "absent"], tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["full"]


def test_a_nan_stops_the_fusion_and_leaves_nothing(three, tmp_path):
    broken = rewritten(three[1], tmp_path / "broken", lambda s: s["model.norm.weight"].fill_(float("nan")))
    with pytest.raises(DivergedError, match=r"model\.norm\.weight"):
        fuse([three[0], broken], tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["broken"]


def test_normalised_weights_sum_to_one():
    assert normalised([2, 6]) == [0.25, 0.75]


def test_the_step_fuses_the_checkpoints_that_probing_chose(three, tmp_path):
    for domain, chosen in (("algebra", "step-000002"), ("code", "step-000001")):
        for name, source in (("step-000001", three[2]), ("step-000002", three[1])):
            shutil.copytree(source, tmp_path / domain / "checkpoints" / name)
        (tmp_path / f"probe-{domain}").mkdir()
        (tmp_path / f"probe-{domain}" / "probe.json").write_text(json.dumps({"selected": chosen}))
    output = tmp_path / "output"
    output.mkdir()
    inputs = {"base": three[0]} | {f"specialist-{d}": tmp_path / d for d in ("algebra", "code")}
    inputs |= {f"probe-{d}": tmp_path / f"probe-{d}" for d in ("algebra", "code")}
    settings = {"fusion": {"method": "linear", "weights": {"code": 3, "algebra": 1}}, "domains": ["algebra", "code"]}
    context = StepContext("fusion", settings, {}, inputs, output, tmp_path / "checkpoints", Silent())
    assert step.run(context) == {"models": 2}
    fused, expected = weights_of(output), reference([three[1], three[2]], [0.25, 0.75], torch.float32)
    assert all(torch.equal(fused[name], expected[name]) for name in expected)
    assert json.loads((output / "fusion.json").read_text()) == {
        "method": "linear",
        "sources": {"algebra": "step-000002", "code": "step-000001"},
        "weights": {"algebra": 0.25, "code": 0.75},
    }
    assert not list(output.glob(".*"))


def test_the_fused_model_keeps_its_specialists_type_not_the_base_s(three, tmp_path):
    base, *specialists = three
    half = load_model(base, dtype=torch.bfloat16)
    save_model(half, load_tokenizer(base), tmp_path / "base")
    fuse(specialists, tmp_path / "fused", base=tmp_path / "base")
    fused = load_model(tmp_path / "fused")
    assert fused.dtype == torch.float32
    means = [sum(s) / 2 for s in zip(*(load_model(f).parameters() for f in specialists), strict=True)]
    for found, mean in zip(fused.parameters(), means, strict=True):
        assert torch.equal(found, mean)
