"""What is in a model's folder, seen without building the model: is it complete, and its tensors by name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vibethinker.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS, INDEX, ADAPTER_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def is_adapter(folder: Path) -> bool:
    """Whether the folder holds an adapter instead of a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def positions(folder: Path) -> int | None:
    """The longest sequence that the model of a folder takes, in tokens; None where its config.json doesn't say."""
    config = read_json(folder, CONFIG, "this is no model folder; save the model there with save_pretrained")
    return config.get("max_position_embeddings")


def check_model_folder(folder: Path) -> None:
    """Whether a folder can be loaded, judged by its files alone.

    Raises:
        ConfigurationError: it is no folder, or config.json, weights (a shard included) or tokenizer are
            missing.
    """
    if not folder.is_dir():
        raise ConfigurationError(f"{folder} is not a folder: name the folder that holds the model's config.json.")
    adapter = is_adapter(folder)
    if not adapter:
        config = read_json(folder, CONFIG, "this is no model folder; save the model there with save_pretrained")
        if config.get("quantization_config"):
            raise ConfigurationError(
                f"{folder} holds quantised weights, which neither merging nor fusing can use: name the unquantised "
                "model, and set base_model.quantization to nf4 for 4-bit training."
            )
    if not adapter and (folder / INDEX).is_file():
        missing = sorted(name for name in _shards(folder) if not (folder / name).is_file())
        if missing:
            raise ConfigurationError(f"{folder} lacks {missing[0]}, which its {INDEX} names: copy the folder again.")
    elif not (folder / (ADAPTER_WEIGHTS if adapter else WEIGHTS)).is_file():
        other = next((f.name for f in sorted(folder.glob("*.bin"))), None)
        hint = f"it has {other}, so save it again as safetensors" if other else "copy them there"
        raise ConfigurationError(f"{folder} has no weights ({ADAPTER_WEIGHTS if adapter else WEIGHTS}): {hint}.")
    if not adapter and not any((folder / name).is_file() for name in TOKENIZERS):
        raise ConfigurationError(f"{folder} has no tokenizer ({TOKENIZERS[0]}): save the model's tokenizer there.")


class ModelWeights(Mapping[str, "torch.Tensor"]):
    """The tensors of a model folder by name, each read from the file when asked for, with the stored type.

    Tied tensors appear once, under the name that the file has.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, str] = {}
        for path in weight_files(folder):
            with self._open(path.name) as file:
                self._files.update(dict.fromkeys(file.keys(), path.name))

    def _open(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            return safe_open(self._folder / name, framework="pt")
        except SafetensorError as error:
            raise ConfigurationError(
                f"{self._folder / name} is no readable safetensors file ({error}): copy it again."
            ) from None

    def __getitem__(self, name: str) -> torch.Tensor:
        with self._open(self._files[name]) as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._files))

    def __len__(self) -> int:
        return len(self._files)

    def parameters(self) -> int:
        """The number of stored weights, read from the files' headers; tied ones count once."""
        total = 0
        for part in set(self._files.values()):
            with self._open(part) as file:
                names = file.keys()  # the file itself can't be iterated over
                total += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        return total


def load_state(folder: Path, base: Path | None = None) -> Mapping[str, torch.Tensor]:
    """The tensors of a model by name.

    A model folder is read lazily in the stored type. An adapter folder is merged into the unquantised `base`
    in float32 and has the names that the base's file has.

    Raises:
        ConfigurationError: the folder is incomplete, or an adapter came without its base.
    """
    if not is_adapter(folder):
        return ModelWeights(folder)
    import torch

    from vibethinker.models.loading import load_model

    merged = load_model(folder, base=base, dtype=torch.float32).state_dict()
    assert base is not None  # or it would have been refused
    return {name: merged[name] for name in ModelWeights(base)}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model or adapter folder.

    Raises:
        ConfigurationError: the folder is incomplete.
    """
    check_model_folder(folder)
    if is_adapter(folder):
        return [folder / ADAPTER_WEIGHTS]
    return [folder / name for name in (_shards(folder) if (folder / INDEX).is_file() else [WEIGHTS])]


def _shards(folder: Path) -> list[str]:
    index = read_json(folder, INDEX, "copy the folder again")
    return sorted(set(index.get("weight_map", {}).values()))


def read_json(folder: Path, name: str, mend: str) -> dict[str, Any]:
    """The JSON object in a folder's file.

    Raises:
        ConfigurationError: it can't be read or is none; the sentence ends with `mend`.
    """
    try:
        value = json.loads((folder / name).read_text())
    except OSError:
        raise ConfigurationError(f"{folder} has no readable {name}: {mend}.") from None
    except ValueError:
        raise ConfigurationError(f"{folder / name} isn't valid JSON: {mend}.") from None
    if not isinstance(value, dict):
        raise ConfigurationError(f"{folder / name} must hold a JSON object: {mend}.")
    return value
