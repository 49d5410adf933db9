"""Each method against its formula on whole tensors in float64."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vibethinker.errors import ConfigurationError, DivergedError
from vibethinker.fusion import arrays, fuse, merging
from vibethinker.fusion.methods import dare, make, pass_at_k
from vibethinker.models import load_model
from vibethinker.settings import Fusion

WEIGHTS = {"1": 0.5, "2": 0.3, "3": 0.2}
SETTINGS = {
    "linear": {},
    "task_arithmetic": {"scale": 1.7},
    "ties": {"density": 0.3, "scale": 0.8},
    "dare": {"density": 0.4, "scale": 1.1},
    "slerp": {"t": 0.3},
}


def of(method: str) -> Fusion:
    return Fusion(method=method, **SETTINGS.get(method, {}))


@pytest.fixture(scope="module")
def base(save):
    return save(9)


@pytest.fixture(scope="module")
def near(base, tmp_path_factory):
    """A function type → three models, the base with a tenth of its numbers changed a little."""
    made = {}

    def make_three(dtype):
        for seed in range(3) if dtype not in made else ():
            folder = tmp_path_factory.mktemp("near") / f"model-{seed}"
            shutil.copytree(base, folder)
            torch.manual_seed(seed)
            state = load_file(folder / "model.safetensors")
            for name, tensor in state.items():
                change = torch.randn(tensor.shape) * 0.02 * (torch.rand(tensor.shape) < 0.5)
                state[name] = (tensor + change).to(dtype)
            save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
            made.setdefault(dtype, []).append(folder)
        return made[dtype]

    return make_three


def states(*folders):
    return [{n: t.double() for n, t in load_file(f / "model.safetensors").items()} for f in folders]


def expected(method: str, name: str, start: torch.Tensor, tensors: list[torch.Tensor]) -> torch.Tensor:
    """The formulas of the papers, as one would write them down."""
    settings, weights = of(method), list(WEIGHTS.values())
    changes = [tensor - start for tensor in tensors]
    if method == "linear":
        return sum(w * t for w, t in zip(weights, tensors, strict=True))
    if method == "slerp":
        a, b = tensors
        omega = torch.arccos((a / a.norm() * (b / b.norm())).sum()).item()
        if math.sin(omega) < 1e-5:
            return (1 - settings.t) * a + settings.t * b
        return (math.sin((1 - settings.t) * omega) * a + math.sin(settings.t * omega) * b) / math.sin(omega)
    if method == "task_arithmetic":
        return start + settings.scale * sum(w * c for w, c in zip(weights, changes, strict=True))
    if method == "dare":
        masks = [
            torch.from_numpy(dare.kept(5, label, name, 0, start.numel(), settings.density)).reshape(start.shape)
            for label in WEIGHTS
        ]
        dropped = [mask * change / settings.density for mask, change in zip(masks, changes, strict=True)]
        return start + settings.scale * sum(w * c for w, c in zip(weights, dropped, strict=True))
    trimmed = []
    for change in changes:
        least = change.abs().flatten().sort(descending=True).values[max(1, int(settings.density * change.numel())) - 1]
        trimmed.append(torch.where(change.abs() >= least, change, 0.0))
    elected = torch.where(sum(w * c for w, c in zip(weights, trimmed, strict=True)) >= 0, 1.0, -1.0)
    agree = [(change.sign() == elected).double() for change in trimmed]
    share = sum(w * a for w, a in zip(weights, agree, strict=True))
    total = sum(w * a * c for w, a, c in zip(weights, agree, trimmed, strict=True))
    return start + settings.scale * torch.where(share > 0, total / share.clamp(min=1e-300), 0.0)


def fused(method, models, output, base, **more):
    weights = None if method == "slerp" else list(WEIGHTS.values())
    fuse(models[:2] if method == "slerp" else models, output, weights, base, settings=of(method), seed=5, **more)
    return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", SETTINGS)
def test_a_method_is_its_formula_in_float64_cast_once(method, dtype, near, base, tmp_path):
    models = near(dtype)
    found = load_file(fused(method, models, tmp_path / "out", base) / "model.safetensors")
    [start], rest = states(base), states(*models[: 2 if method == "slerp" else 3])
    for name, tensor in found.items():
        wanted = expected(method, name, start[name], [state[name] for state in rest]).to(dtype)
        assert tensor.dtype == dtype and torch.equal(tensor, wanted), name
        assert method == "linear" or not torch.equal(tensor, start[name].to(dtype))


@pytest.mark.parametrize("method", [*SETTINGS, "pass_at_k"])
def test_threads_slices_and_the_device_s_library_change_no_byte(method, near, base, tmp_path, monkeypatch):
    models = near(torch.bfloat16)
    plain = (fused(method, models, tmp_path / "plain", base) / "model.safetensors").read_bytes()
    monkeypatch.setattr(arrays, "of", lambda device: arrays.Torch("cpu"))
    assert (fused(method, models, tmp_path / "torch", base) / "model.safetensors").read_bytes() == plain
    monkeypatch.undo()
    monkeypatch.setattr(arrays.Numpy, "slice", 104)
    monkeypatch.setattr(merging.hardware, "cores", lambda: 3)
    assert (fused(method, models, tmp_path / "sliced", base) / "model.safetensors").read_bytes() == plain


def test_shards_hold_the_same_tensors_and_load(near, base, tmp_path):
    models = near(torch.float32)
    whole = load_file(fused("ties", models, tmp_path / "whole", base) / "model.safetensors")
    shards = fused("ties", models, tmp_path / "shards", base, shard_bytes=40_000)
    index = json.loads((shards / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files == sorted(f.name for f in shards.glob("*.safetensors"))
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in whole.values())
    parts = {name: load_file(shards / name) for name in files}
    assert {n: f for f, part in parts.items() for n in part} == index["weight_map"]
    assert all(torch.equal(parts[index["weight_map"][name]][name], whole[name]) for name in whole)
    assert load_model(shards).lm_head.weight.shape == load_model(base).lm_head.weight.shape
    again = tmp_path / "again"
    fuse([shards, shards], again)  # shards are read, too
    assert all(torch.equal(t, whole[n]) for n, t in load_file(again / "model.safetensors").items())


def test_at_their_limits_methods_are_one_another(near, base, tmp_path):
    models = near(torch.float32)
    weights = list(WEIGHTS.values())

    def result(**settings):
        output = tmp_path / "-".join(map(str, settings.values()))
        fuse(models, output, weights, base, settings=Fusion(**settings))
        return load_file(output / "model.safetensors")

    linear = result(method="linear")
    for other in (result(method="task_arithmetic"), result(method="dare", density=1.0)):
        assert all(torch.allclose(other[name], linear[name], rtol=1e-6, atol=1e-9) for name in linear)
    fuse([models[0]] * 2, tmp_path / "same", None, base, settings=Fusion(method="ties", density=1.0))
    same, [one] = load_file(tmp_path / "same" / "model.safetensors"), states(models[0])
    assert all(torch.allclose(same[name].double(), one[name], rtol=1e-6) for name in same)


@pytest.mark.parametrize(("t", "place"), [(0.0, 0), (1.0, 1)])
def test_slerp_ends_at_its_two_models(t, place, near, tmp_path):
    models = near(torch.bfloat16)[:2]
    fuse(models, tmp_path / "out", settings=Fusion(method="slerp", t=t))
    got, [wanted] = load_file(tmp_path / "out" / "model.safetensors"), states(models[place])
    assert all(torch.equal(got[name].double(), wanted[name]) for name in wanted)


def test_what_dare_drops_depends_on_place_name_model_and_seed_alone():
    whole = dare.kept(1, "code", "w", 0, 100_000, 0.3)
    parts = [dare.kept(1, "code", "w", start, 20_000, 0.3) for start in range(0, 100_000, 20_000)]
    assert np.array_equal(np.concatenate(parts), whole)
    assert abs(whole.mean() - 0.3) < 0.006  # four standard deviations
    for other in ((2, "code", "w"), (1, "algebra", "w"), (1, "code", "v")):
        assert abs((dare.kept(*other, 0, 100_000, 0.3) & whole).mean() - 0.09) < 0.004


def test_ties_keeps_exactly_the_largest_of_many_equal_sizes(base, near, tmp_path):
    """Sizes of few values, so that the least that stays has ties, zeros among them."""
    [start], models = states(base), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(tmp_path / f"steps-{seed}")
        shutil.copytree(base, models[-1])
        state = {n: (t + torch.randint(-2, 3, t.shape) * 2**-4).float() for n, t in start.items()}
        save_file(state, models[-1] / "model.safetensors", metadata={"format": "pt"})
    for density in (0.1, 0.5, 0.9):
        fuse(models, tmp_path / f"{density}", None, base, settings=Fusion(method="ties", density=density))
        got, rest = load_file(tmp_path / f"{density}" / "model.safetensors"), states(*models)
        for name, origin in start.items():
            kept = []
            for change in (state[name] - origin for state in rest):
                least = change.abs().flatten().kthvalue(change.numel() - max(1, int(density * change.numel())) + 1)
                kept.append(change * (change.abs() >= least.values))
            stack = torch.stack(kept)
            agree = (stack.sign() == torch.where(stack.sum(0) >= 0, 1.0, -1.0)).double()
            mean = (stack * agree).sum(0) / agree.sum(0).clamp(min=1)
            assert torch.equal(got[name], (origin + mean).float()), (name, density)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare", "slerp"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_stops_every_method(method, value, near, base, tmp_path):
    first, *others = near(torch.float32)
    shutil.copytree(first, tmp_path / "broken")
    state = load_file(tmp_path / "broken" / "model.safetensors")
    state["model.norm.weight"][3] = value
    save_file(state, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DivergedError, match=r"model\.norm\.weight has a NaN or infinite"):
        fused(method, [tmp_path / "broken", *others], tmp_path / "out", base)
    assert not (tmp_path / "out").exists()


def test_a_scale_beyond_the_type_is_told(near, base, tmp_path):
    with pytest.raises(DivergedError, match="too large for its type: lower the scale"):
        fuse(near(torch.float16), tmp_path / "out", None, base, settings=Fusion(method="task_arithmetic", scale=1e9))


def test_a_method_of_changes_needs_its_base_and_slerp_two_models(near, tmp_path):
    models = near(torch.float32)
    with pytest.raises(ConfigurationError, match=r"ties merges changes from a base model: name it with --base"):
        fuse(models, tmp_path / "out", settings=Fusion(method="ties"))
    with pytest.raises(ConfigurationError, match="slerp lies between two models and got 3"):
        fuse(models, tmp_path / "out", settings=Fusion(method="slerp"))


def test_weights_by_pass_at_k_are_those_of_the_validation_split():
    def probe(value, **more):
        return {"k": 4, "validation": {"pass_at": {"1": {"value": 0.9}, "4": {"value": value}}}, **more}

    assert pass_at_k.weights([probe(0.2), probe(0.6)]) == pytest.approx([0.25, 0.75])
    assert pass_at_k.weights([probe(0.0), probe(0.0)]) is None
    chosen = {"checkpoint": "b", "pass_at": {"4": {"value": 0.6}}}
    other = {"checkpoint": "a", "pass_at": {"4": {"value": 0.1}}}
    command = {"k": 4, "selected": "b", "candidates": [other, chosen]}
    assert pass_at_k.weights([probe(0.2), command]) == pytest.approx([0.25, 0.75])


def test_settings_of_other_methods_are_no_part_of_what_is_named():
    assert Fusion().semantic() == {"method": "linear", "weights": None}
    assert Fusion(method="ties", t=0.1).semantic() == {
        "method": "ties", "weights": None, "scale": 1.0, "density": None,
    }  # fmt: skip
    assert "search" in Fusion(search={"trials": 3}).semantic() and not Fusion().generates
    assert make(Fusion(method="ties"), [1.0], ["1"]).needs_base and Fusion(method="ties").kept == 0.2
