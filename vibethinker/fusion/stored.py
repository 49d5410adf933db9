"""A model folder's tensors as numbers in files: where each lies, and any part of it without the rest."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vibethinker.errors import ConfigurationError
from vibethinker.models.files import weight_files
from vibethinker.validation import read_header

if TYPE_CHECKING:
    import numpy as np

SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}  # bytes a number; the names are safetensors'


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    count: int

    @property
    def size(self) -> int:
        """Bytes of a number."""
        return SIZES[self.dtype]


class Stored(Mapping[str, Entry]):
    """The tensors of a model or adapter folder by name; a context manager that closes its files.

    Raises:
        ConfigurationError: a file is no whole safetensors file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, Entry] = {}
        self._handles: dict[Path, int] = {}
        for path in weight_files(folder):
            try:
                header, start = read_header(path)
                found = {name: _entry(path, start, about) for name, about in header.items()}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ConfigurationError(f"{path} is no readable safetensors file ({error}): copy it again.") from None
            self._entries.update(found)

    def read(self, name: str, start: int, into: np.ndarray) -> None:
        """Fill an array of the tensor's own width with its numbers from `start` on; any thread may.

        Raises:
            ConfigurationError: the file has become shorter.
        """
        entry = self._entries[name]
        view = into.data.cast("B")
        offset = entry.begin + start * entry.size
        while view:
            got = os.preadv(self._handles[entry.file], [view], offset)
            if not got:
                raise ConfigurationError(f"{entry.file} was cut off while it was read: let nothing else write to it.")
            view, offset = view[got:], offset + got

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __enter__(self) -> Self:
        for path in {entry.file for entry in self._entries.values()}:
            self._handles[path] = os.open(path, os.O_RDONLY)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        while self._handles:
            os.close(self._handles.popitem()[1])


def _entry(path: Path, start: int, about: Mapping[str, Any]) -> Entry:
    begin, end = about["data_offsets"]
    size = SIZES.get(about["dtype"], 1)
    return Entry(path, about["dtype"], tuple(about["shape"]), start + begin, (end - begin) // size)
