"""Fusion: one model whose every weight is the weighted mean of the specialists' weights. [1.5B]

    theta = sum of w_i theta_i,   w_i >= 0, sum of w_i = 1

Tensors are read, averaged and written one after the other in slices of 2^17 numbers, so memory stays at a few
slices whatever the models' size. Sums are kept in float64, wider than the recipe's float32, and cast once, to the
specialists' own type: the result is the float64 mean rounded, bit for bit. (Casting float32 specialists to a bfloat16
base's type rounded a short training away: the fused model answered like the base.) So fusing a model with itself, any
number of times, gives its bytes back, and for two models of equal weight their order does not matter.

Adapters are merged into the unquantised base in float32 first, and cast to its type. Tokenizer and generation config
are the base's.

Left out: task arithmetic, TIES, DARE, SLERP, and weights from Pass@K.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from vibethinker.artifacts import write_json
from vibethinker.errors import ConfigurationError, DivergedError
from vibethinker.models.files import CONFIG, WEIGHTS, check_model_folder, is_adapter, load_state
from vibethinker.settings import Fusion
from vibethinker.steps import Metrics, StepContext

if TYPE_CHECKING:
    import torch

METHODS = ("linear",)
SLICE = 1 << 17  # numbers; the buffers stay in a core's cache
# What travels from the base beside the weights.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
# Models that differ in one of these have no common meaning of a weight, even if all shapes agree.
SAME_IN_CONFIG = ("model_type", "num_attention_heads", "num_key_value_heads", "tie_word_embeddings", "vocab_size")

TYPE_NAMES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # as safetensors has them

State = Mapping[str, "torch.Tensor"]


def run(context: StepContext) -> Metrics:
    """The step `fusion`: the checkpoints that probing chose, averaged."""
    settings = Fusion.model_validate(context.settings["fusion"])
    domains = context.settings["domains"]
    selected = {domain: _selected(context.inputs[f"probe-{domain}"]) for domain in domains}
    folders = [context.inputs[f"specialist-{domain}"] / "checkpoints" / selected[domain] for domain in domains]
    given = settings.weights or dict.fromkeys(domains, 1.0)
    weights = normalised([given[domain] for domain in domains])
    _merge(folders, context.output, weights, context.inputs["base"], context.emit.progress)
    write_json(
        context.output / "fusion.json",
        {"method": settings.method, "weights": dict(zip(domains, weights, strict=True)), "sources": selected},
    )
    return {"models": len(folders)}


def fuse(
    models: Sequence[Path],
    output: Path,
    weights: Sequence[float] | None = None,
    base: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the weighted mean of `models` as a new model folder, whole or not at all.

    Args:
        models: at least two model or adapter folders.
        output: the new folder; it may exist if it is empty.
        weights: one a model, at least 0, in any unit; None is uniform.
        base: the model that adapters belong to, which also gives type, config and tokenizer; None is
            `models[0]`.
        progress: called with finished and all tensors.

    Raises:
        ConfigurationError: a folder is incomplete, the models differ in shape, or `output` can't be used.
        DivergedError: a weight is NaN or infinite.
    """
    if len(models) < 2:
        raise ConfigurationError("Fusion takes at least two models: name another one.")
    if weights is not None and len(weights) != len(models):
        raise ConfigurationError(f"There are {len(weights)} weights for {len(models)} models: give one each.")
    shares = normalised([1.0] * len(models) if weights is None else weights)
    for folder in (*models, *([base] if base else [])):
        check_model_folder(folder)
    if base is None and any(map(is_adapter, models)):
        adapter = next(filter(is_adapter, models))
        raise ConfigurationError(f"{adapter} holds an adapter: name the base model that it was trained on.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"{output} exists already and isn't an empty folder: choose another output.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ConfigurationError(f"{output} can't be written ({error.strerror}): choose another output.") from None
    try:
        _merge(models, partial, shares, base or models[0], progress or (lambda done, total: None))
        partial.chmod(0o755)
        os.replace(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def normalised(weights: Sequence[float]) -> list[float]:
    """The weights divided by their sum.

    Raises:
        ConfigurationError: one is negative or not finite, or all are 0.
    """
    total = sum(weights)
    if not all(0 <= weight < float("inf") for weight in weights) or not 0 < total < float("inf"):
        raise ConfigurationError("Fusion weights must be finite, at least 0 and not all 0.")
    return [weight / total for weight in weights]


def _merge(
    models: Sequence[Path],
    output: Path,
    shares: Sequence[float],
    base: Path,
    progress: Callable[[int, int], None],
) -> None:
    """Fill the folder `output` with the fused model."""
    _check_configs([base, *models])
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=output) as merged:
        folders = [_whole(folder, base, Path(merged) / str(i)) for i, folder in enumerate(models)]
        states = [load_state(folder) for folder in folders]
        original = load_state(base)
        _check_states(states, models, original, base)
        typed = base if any(map(is_adapter, models)) else models[0]
        _write(output / WEIGHTS, states, shares, original if typed is base else states[0], progress)
    for name in COMPANIONS:
        if (base / name).is_file():
            shutil.copyfile(base / name, output / name)
    shutil.copyfile(typed / CONFIG, output / CONFIG)  # it names the weights' type


def _whole(folder: Path, base: Path, merged: Path) -> Path:
    """The folder itself, or for an adapter a folder with the base that it was merged into, in float32."""
    if not is_adapter(folder):
        return folder
    import torch

    from vibethinker.models import load_model, load_tokenizer, save_model

    save_model(load_model(folder, base=base, dtype=torch.float32), load_tokenizer(base), merged)
    return merged


def _check_configs(folders: Sequence[Path]) -> None:
    """Refuse models of different architectures, and tokenizers that number tokens differently."""
    whole = [folder for folder in folders if not is_adapter(folder)]
    first = whole[0]
    expected = json.loads((first / CONFIG).read_text())
    for folder in whole[1:]:
        config = json.loads((folder / CONFIG).read_text())
        for key in SAME_IN_CONFIG:
            if config.get(key) != expected.get(key):
                raise ConfigurationError(
                    f"{folder} can't be fused with {first}: {key} is {config.get(key)} in one and {expected.get(key)} "
                    "in the other, so fuse models that come from one base."
                )
        if _vocabulary(folder) != _vocabulary(first):
            raise ConfigurationError(
                f"{folder} can't be fused with {first}: their tokenizers differ, so fuse models of one base."
            )


def _vocabulary(folder: Path) -> object:
    file = folder / "tokenizer.json"
    return json.loads(file.read_text())["model"].get("vocab") if file.is_file() else None


def _check_states(states: Sequence[State], models: Sequence[Path], original: State, base: Path) -> None:
    """Refuse models whose tensors differ in name or shape, with the first such tensor's name."""
    names = set(states[0])
    for state, folder in zip(states[1:], models[1:], strict=True):
        if differing := sorted(names ^ set(state)):
            has, lacks = (models[0], folder) if differing[0] in names else (folder, models[0])
            raise ConfigurationError(_differ(has, lacks, f"only the first has the tensor {differing[0]}"))
    if lost := sorted(names - set(original)):
        raise ConfigurationError(_differ(models[0], base, f"only the first has the tensor {lost[0]}"))
    for name in sorted(names):
        expected = tuple(original[name].shape)
        if not all(_type_name(state[name]) for state in (original, *states)):
            raise ConfigurationError(
                f"The tensor {name} isn't stored as floating-point numbers: fuse unquantised models."
            )
        for state, folder in zip(states, models, strict=True):
            if (shape := tuple(state[name].shape)) != expected:
                text = f"the tensor {name} has shape {list(shape)} in the first and {list(expected)} in the second"
                raise ConfigurationError(_differ(folder, base, text))


def _type_name(tensor: torch.Tensor) -> str | None:
    return TYPE_NAMES.get(str(tensor.dtype).removeprefix("torch."))


def _differ(first: Path, second: Path, how: str) -> str:
    return f"{first} and {second} can't be fused: {how}, so fuse models that come from one base."


def _write(
    path: Path,
    states: Sequence[State],
    shares: Sequence[float],
    typed: State,
    progress: Callable[[int, int], None],
) -> None:
    """Write the means as a safetensors file: wider types first, names in order, as that format wants it.

    `typed` has a tensor of the resulting type for each name.
    """
    import torch

    names = sorted(states[0], key=lambda name: (-typed[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        tensor = typed[name]
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _type_name(tensor),
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file, torch.inference_mode():
        file.write(struct.pack("<Q", len(text)) + text)
        for done, name in enumerate(names, start=1):
            _write_mean(file, name, [state[name] for state in states], shares, typed[name].dtype)
            progress(done, len(names))


def _write_mean(
    file: BinaryIO, name: str, tensors: Sequence[torch.Tensor], shares: Sequence[float], dtype: torch.dtype
) -> None:
    import torch

    flat = [tensor.reshape(-1) for tensor in tensors]
    length = min(SLICE, flat[0].numel())
    sums, part = torch.empty(2, length, dtype=torch.float64)
    means = torch.empty(length, dtype=dtype)
    for start in range(0, flat[0].numel(), SLICE):
        end = min(start + SLICE, flat[0].numel())
        total, term, mean = (buffer[: end - start] for buffer in (sums, part, means))
        total.zero_()
        for tensor, share in zip(flat, shares, strict=True):
            # Two roundings on every CPU: add_(…, alpha=share) makes one of them on some.
            total.add_(term.copy_(tensor[start:end]).mul_(share))
        if not bool(torch.isfinite(total.sum())):
            raise DivergedError(
                f"The tensor {name} has a NaN or infinite weight in a model to be fused: train it again."
            )
        file.write(mean.copy_(total).view(torch.uint8).numpy().data)


def _selected(probe: Path) -> str:
    return json.loads((probe / "probe.json").read_text())["selected"]
