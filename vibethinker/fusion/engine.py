"""The one engine of all methods: slices of every model's tensor are read, merged and written, a tensor at a time.

What is held are some slices a thread, whatever the models' size. A slice's result depends on nothing but its own
numbers and what the method has found out of the whole tensor, so bytes are the same by any number of threads.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from vibethinker.errors import DivergedError
from vibethinker.fusion.arrays import LARGEST, RAW, Array, Arrays
from vibethinker.fusion.stored import Entry, Stored
from vibethinker.models.files import INDEX, WEIGHTS

if TYPE_CHECKING:
    from vibethinker.fusion.methods import Method

SHARD_BYTES = 5 << 30
Result = TypeVar("Result")


@dataclass(frozen=True)
class Piece:
    """A slice of one tensor in every model, as float64; a method may overwrite the arrays.

    Attributes:
        start: the place of its first number in the tensor.
        base: the base model's slice, if the method needs it.
    """

    name: str
    start: int
    base: Array | None
    models: list[Array]
    arrays: Arrays


@dataclass(frozen=True)
class Tensor:
    """One tensor in every model."""

    name: str
    count: int
    base: Stored | None
    models: Sequence[Stored]
    arrays: Arrays
    pool: ThreadPoolExecutor

    def each(self, work: Callable[[Piece], Result]) -> Iterator[Result]:
        """What `work` gives for each slice, in their order."""
        starts = range(0, self.count, self.arrays.slice)
        return (self.pool.map if len(starts) > 1 else map)(lambda start: work(self._piece(start)), starts)

    def _piece(self, start: int) -> Piece:
        count = min(self.arrays.slice, self.count - start)
        base = None if self.base is None else self._load(self.base, start, count, -1)
        models = [self._load(model, start, count, place) for place, model in enumerate(self.models)]
        return Piece(self.name, start, base, models, self.arrays)

    def _load(self, model: Stored, start: int, count: int, place: int) -> Array:
        dtype = model[self.name].dtype
        raw = np.empty(count, RAW[dtype])
        model.read(self.name, start, raw)
        return self.arrays.loaded(raw, dtype, place)


def merge(
    method: Method,
    models: Sequence[Stored],
    base: Stored,
    typed: Stored,
    output: Path,
    progress: Callable[[int, int], None],
    *,
    arrays: Arrays,
    threads: int,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the merged tensors into the folder `output`.

    Args:
        base: read only where the method needs it.
        typed: has the resulting type of each tensor.
        shard_bytes: a file's tensors take no more, unless one alone does.

    Raises:
        DivergedError: a result is NaN, infinite or too large for its type.
    """
    names = sorted(models[0], key=lambda name: (-typed[name].size, name))  # as safetensors orders them
    used = [*models, base] if method.needs_base else models
    with ExitStack() as stack:
        for stored in used:
            stack.enter_context(stored)
        place = stack.enter_context(_placed({name: typed[name] for name in names}, output, shard_bytes))
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        for done, name in enumerate(names, start=1):
            entry = typed[name]
            tensor = Tensor(name, entry.count, base if method.needs_base else None, models, arrays, pool)
            facts, (handle, begin) = method.facts(tensor), place[name]

            def write(
                piece: Piece, facts: Any = facts, handle: int = handle, begin: int = begin, entry: Entry = entry
            ) -> None:
                values = method.merge(piece, facts)
                largest = abs(values).max()
                if not largest <= LARGEST[entry.dtype]:  # a NaN isn't either
                    raise DivergedError(_not_finite(piece.name, float(largest)))
                _write(handle, arrays.stored(values, entry.dtype), begin + piece.start * entry.size)

            for _ in tensor.each(write):
                pass
            progress(done, len(names))


def write_file(path: Path, entries: Mapping[str, Entry], values: Iterable[np.ndarray]) -> None:
    """Write a whole safetensors file of these tensors, in this order."""
    with path.open("wb") as file:
        file.write(_header(entries)[0])
        for part in values:
            file.write(part.data.cast("B"))


def _not_finite(name: str, largest: float) -> str:
    if np.isfinite(largest):
        return f"The fused tensor {name} has a weight of {largest:g}, too large for its type: lower the scale."
    return f"The tensor {name} has a NaN or infinite weight in a model to be fused: train it again."


def _write(handle: int, values: np.ndarray, offset: int) -> None:
    view = values.data.cast("B")
    while view:
        done = os.pwrite(handle, view, offset)
        view, offset = view[done:], offset + done


@contextmanager
def _placed(entries: dict[str, Entry], output: Path, shard_bytes: int) -> Iterator[dict[str, tuple[int, int]]]:
    """Files with their headers for these tensors: name → an open file, and where in it its numbers begin."""
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, entry in entries.items():
        size = entry.count * entry.size
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    stem, suffix = Path(WEIGHTS).stem, Path(WEIGHTS).suffix
    titles = [f"{stem}-{n:05}-of-{len(shards):05}{suffix}" for n in range(1, len(shards) + 1)]
    place: dict[str, tuple[int, int]] = {}
    with ExitStack() as stack:
        for title, names in zip(titles if len(shards) > 1 else [WEIGHTS], shards, strict=True):
            handle = os.open(output / title, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            stack.callback(os.close, handle)
            text, offsets, end = _header({name: entries[name] for name in names})
            os.write(handle, text)
            os.truncate(handle, len(text) + end)
            place |= {name: (handle, len(text) + offset) for name, offset in offsets.items()}
        if len(shards) > 1:
            total = sum(entry.count * entry.size for entry in entries.values())
            where = {name: title for title, names in zip(titles, shards, strict=True) for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (output / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
        yield place


def _header(entries: Mapping[str, Entry]) -> tuple[bytes, dict[str, int], int]:
    """A safetensors file's beginning, where behind it each tensor's numbers begin, and where they end."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets, end = {}, 0
    for name, entry in entries.items():
        offsets[name], begin = end, end
        end += entry.count * entry.size
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offsets, end
