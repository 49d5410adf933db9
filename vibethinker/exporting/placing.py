"""An export appears whole or not at all: it is written beside its place and renamed once it was proven."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vibethinker.artifacts import sync_folder
from vibethinker.errors import ConfigurationError


def check_place(output: Path) -> None:
    """Refuse a place that is taken or can't be written, before anything is loaded.

    Raises:
        ConfigurationError: one of them.
    """
    empty = output.is_dir() and output.suffix != ".gguf" and not any(output.iterdir())
    if (output.exists() or output.is_symlink()) and not empty:
        raise ConfigurationError(f"--output {output} exists already: name a new folder, nothing is overwritten.")
    parent = next(p for p in output.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigurationError(f"--output {output} can't be written: name a place in a folder of yours.")


@contextmanager
def placed(output: Path) -> Iterator[Path]:
    """An empty folder to write into; after the `with` block its files are at `output`.

    That is the folder itself or, where `output` names a `.gguf` file, the one file of this ending, with each other file
    beside it under its name. What fails leaves nothing.

    Raises:
        ConfigurationError: something else has taken the place meanwhile.
    """
    output = output.absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.parent / f".{output.name}.{os.getpid()}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    os.umask(umask := os.umask(0))  # which can't be read without being set
    try:
        yield staging
        for path in staging.rglob("*"):
            if path.is_file():
                path.chmod(0o666 & ~umask)  # safetensors writes files that nobody else may read
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        sync_folder(staging)
        check_place(output)
        if output.suffix == ".gguf":
            for path in sorted(staging.iterdir(), key=lambda p: p.suffix == output.suffix):  # the model last
                target = output if path.suffix == output.suffix else output.with_suffix(path.suffix)
                check_place(target)
                os.rename(path, target)
        else:
            os.rename(staging, output)
        sync_folder(output.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
