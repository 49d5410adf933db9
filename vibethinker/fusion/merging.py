"""Model folders in, a model folder out: what stands around the engine.

Tensors keep the specialists' own type: casting float32 specialists to a bfloat16 base's rounded a short training away,
so that the fused model answered like the base. Adapters are merged into the unquantised base in float32 first, and cast
to its type. Tokenizer and generation config are the base's.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vibethinker import hardware
from vibethinker.errors import ConfigurationError
from vibethinker.fusion import arrays, checks, engine
from vibethinker.fusion.methods import make, named
from vibethinker.fusion.stored import Stored
from vibethinker.models.files import CONFIG, check_model_folder, is_adapter
from vibethinker.settings import Fusion

if TYPE_CHECKING:
    from vibethinker.fusion.methods import Method

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
LINEAR = Fusion()
Progress = Callable[[int, int], None]


def fuse(
    models: Sequence[Path],
    output: Path,
    weights: Sequence[float] | None = None,
    base: Path | None = None,
    progress: Progress | None = None,
    *,
    settings: Fusion = LINEAR,
    seed: int = 0,
    device: str = "cpu",
    shard_bytes: int = engine.SHARD_BYTES,
) -> None:
    """Fuse `models` into a new model folder, whole or not at all.

    Args:
        models: at least two model or adapter folders.
        output: the new folder; it may exist if it is empty.
        weights: one a model, at least 0, in any unit; None is uniform, for slerp 1 - t and t.
        base: the model that adapters belong to and that some methods measure changes from, which also gives
            tokenizer and generation config; None is `models[0]`.
        progress: called with finished and all tensors.
        settings: the method and what it takes.
        seed: of dare.
        device: where to compute.
        shard_bytes: most of a file's weights.

    Raises:
        ConfigurationError: a folder is incomplete, the models differ in shape, the method needs a base, or `output`
            can't be used.
        DivergedError: a weight is NaN or infinite.
    """
    shares = check(models, weights, base, settings)
    with new_folder(output) as partial:
        prepared = make(settings, shares, [str(number) for number in range(1, len(models) + 1)], seed)
        merge(
            models, partial, prepared, base or models[0], progress or (lambda done, total: None), device=device,
            shard_bytes=shard_bytes,
        )  # fmt: skip


def check(models: Sequence[Path], weights: Sequence[float] | None, base: Path | None, settings: Fusion) -> list[float]:
    """The weights to fuse by, of sum 1, once folders and settings are found to go together.

    Raises:
        ConfigurationError: they don't.
    """
    if len(models) < 2:
        raise ConfigurationError("Fusion takes at least two models: name another one.")
    if weights is not None and len(weights) != len(models):
        raise ConfigurationError(f"There are {len(weights)} weights for {len(models)} models: give one each.")
    if settings.method == "slerp" and len(models) == 2 and weights is None:
        weights = [1 - settings.t, settings.t]
    shares = normalised([1.0] * len(models) if weights is None else weights)
    for folder in (*models, *([base] if base else [])):
        check_model_folder(folder)
    if base is None and any(map(is_adapter, models)):
        adapter = next(filter(is_adapter, models))
        raise ConfigurationError(f"{adapter} holds an adapter: name the base model that it was trained on.")
    if base is None and named(settings.method).needs_base:
        raise ConfigurationError(f"The method {settings.method} merges changes from a base model: name it with --base.")
    return shares


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `output` if nothing is raised and else goes.

    Raises:
        ConfigurationError: `output` isn't empty, or can't be written.
    """
    with scratch(output) as partial:
        yield partial
        partial.chmod(0o755)
        os.replace(partial, output)


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """A folder beside `output` that goes at the end.

    Raises:
        ConfigurationError: `output` isn't empty, or can't be written.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"{output} exists already and isn't an empty folder: choose another output.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ConfigurationError(f"{output} can't be written ({error.strerror}): choose another output.") from None
    try:
        yield partial
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


def merge(
    models: Sequence[Path],
    output: Path,
    method: Method,
    base: Path,
    progress: Progress,
    *,
    typed: Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    shard_bytes: int = engine.SHARD_BYTES,
) -> None:
    """Fill the folder `output` with the fused model; its type is that of the folder `typed`, None means what `type_of`
    says."""
    checks.configs([base, *models])
    with whole(models, base, output) as folders:
        states, original = [Stored(folder) for folder in folders], Stored(base)
        checks.tensors(states, models, original, base)
        typed = typed or type_of(models, base)
        engine.merge(
            method, states, original, original if typed is base else states[0], output, progress,
            arrays=arrays.of(device), threads=threads or hardware.cores(), shard_bytes=shard_bytes,
        )  # fmt: skip
    take_along(base, output)
    shutil.copyfile(typed / CONFIG, output / CONFIG)  # it names the weights' type


@contextmanager
def whole(folders: Sequence[Path], base: Path, beside: Path) -> Iterator[list[Path]]:
    """The folders, with each adapter replaced by a model that it was merged into, in float32; those lie in `beside`
    meanwhile."""
    with tempfile.TemporaryDirectory(prefix=".merged-", dir=beside) as merged:
        yield [_whole(folder, base, Path(merged) / str(i)) for i, folder in enumerate(folders)]


def type_of(models: Sequence[Path], base: Path) -> Path:
    """The folder whose type a fused model of these folders gets."""
    return base if any(map(is_adapter, models)) else models[0]


def take_along(source: Path, output: Path) -> None:
    """Copy tokenizer and generation config."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, output / name)


def _whole(folder: Path, base: Path, merged: Path) -> Path:
    if not is_adapter(folder):
        return folder
    import torch

    from vibethinker.models import load_model, load_tokenizer, save_model

    save_model(load_model(folder, base=base, dtype=torch.float32), load_tokenizer(base), merged)
    return merged
