"""Adapters fused as an adapter.

A LoRA changes a weight by s B A, and sums of such products are one again:

    sum of w_i s_i B_i A_i = [w_1 s_1 B_1 ... w_n s_n B_n] [A_1; ...; A_n]

So the weighted mean and task arithmetic are exact as an adapter whose rank is the sum of theirs; only w_i s_i B_i is
rounded, once, to the stored type. (The means of the A and of the B are no such thing.) What trims, drops or turns
weights has no low rank any more: those methods fuse adapters as whole models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vibethinker.errors import ConfigurationError, DivergedError
from vibethinker.fusion.arrays import RAW, Numpy
from vibethinker.fusion.engine import write_file
from vibethinker.fusion.merging import new_folder, normalised, take_along
from vibethinker.fusion.stored import Entry, Stored
from vibethinker.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_model_folder, is_adapter, read_json
from vibethinker.settings import Fusion

EXACT = ("linear", "pass_at_k", "task_arithmetic")
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
# Settings of an adapter with which it is more than s B A, and what they are where it isn't.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": ("none", None), "use_dora": (False, None), "modules_to_save": (None, []),
    "alpha_pattern": ({}, None), "fan_in_fan_out": (False, None), "lora_bias": (False, None),
}  # fmt: skip
CHOSEN = ("layers_to_transform", "layers_pattern", "exclude_modules")  # settings that take from target_modules
PREFIX = "base_model.model."  # of a module's name in the file


def fuse_adapters(
    adapters: Sequence[Path],
    output: Path,
    weights: Sequence[float] | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    settings: Fusion,
) -> None:
    """Write an adapter folder with the weighted sum of adapters of one base.

    Args: see `fuse`.

    Raises:
        ConfigurationError: a folder holds no plain LoRA, or the method has no exact result as an adapter.
        DivergedError: a weight is NaN or infinite.
    """
    if settings.method not in EXACT:
        raise ConfigurationError(
            f"The method {settings.method} leaves no adapter: take one of {', '.join(EXACT)}, or fuse whole models."
        )
    if len(adapters) < 2 or (weights is not None and len(weights) != len(adapters)):
        raise ConfigurationError("Name at least two adapters, and as many weights if any.")
    shares = normalised([1.0] * len(adapters) if weights is None else weights)
    factor = settings.scale if settings.method == "task_arithmetic" else 1.0
    configs = [_config(folder) for folder in adapters]
    states = [_Factors(folder, config) for folder, config in zip(adapters, configs, strict=True)]
    modules = sorted({module for state in states for module in state.modules})
    rank = sum(max(state.rank(module) for module in state.modules) for state in states)
    with new_folder(output) as partial:
        fused: dict[str, np.ndarray] = {}
        for done, module in enumerate(modules, start=1):
            parts = [(s.pair(module), share) for s, share in zip(states, shares, strict=True) if module in s.modules]
            if len({(a.shape[1], b.shape[0]) for (a, b), _ in parts}) > 1:
                raise ConfigurationError(f"The adapters' {module} differ in shape: fuse adapters of one base.")
            down = np.concatenate([a for (a, _), _ in parts])
            up = np.concatenate([b * (share * factor) for (_, b), share in parts], axis=1)
            if not np.isfinite(down.sum() + up.sum()):
                raise DivergedError(f"The adapters' {module} has a NaN or infinite weight: train it again.")
            fused[module + DOWN] = np.pad(down, ((0, rank - len(down)), (0, 0)))
            fused[module + UP] = np.pad(up, ((0, 0), (0, rank - up.shape[1])))
            if progress:
                progress(done, len(modules))
        dtype = states[0].dtype
        entries = {
            name: Entry(partial / ADAPTER_WEIGHTS, dtype, values.shape, 0, values.size)
            for name, values in sorted(fused.items())
        }
        write_file(partial / ADAPTER_WEIGHTS, entries, (Numpy().stored(fused[n].reshape(-1), dtype) for n in entries))
        made: dict[str, Any] = {
            "r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {},
            "target_modules": _targets(configs, modules), **dict.fromkeys(CHOSEN),
        }  # fmt: skip
        (partial / ADAPTER_CONFIG).write_text(json.dumps(configs[0] | made, indent=2, sort_keys=True) + "\n")
        take_along(adapters[0], partial)


def _targets(configs: Sequence[dict[str, Any]], modules: Sequence[str]) -> list[str]:
    """What the fused adapter changes: what all name together, or each module by its own name where one chooses by a
    pattern or by layers, which would leave out others' modules."""
    if all(isinstance(c["target_modules"], list) and not any(c.get(name) for name in CHOSEN) for c in configs):
        return sorted({target for config in configs for target in config["target_modules"]})
    return [module.removeprefix(PREFIX) for module in modules]


class _Factors:
    """The A and s B of one adapter by module."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self._stored, self._config = Stored(folder), config
        self.modules = [name.removesuffix(DOWN) for name in self._stored if name.endswith(DOWN)]
        if {name for module in self.modules for name in (module + DOWN, module + UP)} != set(self._stored):
            raise ConfigurationError(f"{folder} holds other tensors than those of a LoRA: fuse it as a whole model.")
        self.dtype = self._stored[self.modules[0] + DOWN].dtype

    def rank(self, module: str) -> int:
        """r of this module."""
        return self._stored[module + DOWN].shape[0]

    def pair(self, module: str) -> tuple[np.ndarray, np.ndarray]:
        """A, and B multiplied by alpha / r (or alpha / sqrt(r)), as float64."""
        rank = self.rank(module)
        scaling = self._config["lora_alpha"] / (math.sqrt(rank) if self._config.get("use_rslora") else rank)
        return self._read(module + DOWN), self._read(module + UP) * scaling

    def _read(self, name: str) -> np.ndarray:
        entry = self._stored[name]
        raw = np.empty(entry.count, RAW[entry.dtype])
        with self._stored:
            self._stored.read(name, 0, raw)
        return Numpy().loaded(raw, entry.dtype, 0).reshape(entry.shape)


def _config(folder: Path) -> dict[str, Any]:
    check_model_folder(folder)
    if not is_adapter(folder):
        raise ConfigurationError(f"{folder} holds a whole model, not an adapter: fuse it as one.")
    config = read_json(folder, ADAPTER_CONFIG, "train the adapter again")
    for name, plain in PLAIN.items():
        if config.get(name, plain[-1]) not in plain:
            raise ConfigurationError(
                f"{folder} is no plain LoRA ({name} is {config[name]!r}), so its adapters don't add up: fuse whole "
                "models."
            )
    return config
