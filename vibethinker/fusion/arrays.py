"""What the methods compute with: numpy on the CPU, which starts in a fifth of torch's time, and torch on a GPU.

Both have the functions that methods use under the same names. Numbers are float64 throughout and go through float32 on
their way to a type of 16 bits, as torch casts; each operation rounds once, so both give the same bits wherever nothing
is summed over a tensor.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any, Protocol

import numpy as np

from vibethinker.errors import ConfigurationError

Array = Any  # a numpy array or a torch tensor of float64
RAW: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
}
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = {
    "F64": np.finfo(np.float64).max,
    "F32": float(np.finfo(np.float32).max),
    "BF16": float.fromhex("0x1.fep127"),
    "F16": 65504.0,
}


class Arrays(Protocol):
    """A place to compute.

    Attributes:
        xp: the module with `abs`, `where`, `bincount`, `unique` and so on.
        slice: how many numbers are best taken at once.
    """

    xp: Any
    slice: int

    def loaded(self, raw: np.ndarray, dtype: str, place: int) -> Array:
        """Stored numbers as float64; the array is overwritten by the next with this `place` of the same thread."""
        ...

    def stored(self, values: Array, dtype: str) -> np.ndarray:
        """Numbers rounded to a stored type, to be written."""
        ...

    def bits(self, values: Array) -> Array:
        """The bits of numbers of at least 0 as float32, as integers that have the same order."""
        ...

    def moved(self, values: np.ndarray) -> Array:
        """A numpy array here."""
        ...


class Numpy:
    """The CPU. Slices are so long that threads seldom wait for the interpreter's lock: with a quarter of this, which a
    core's cache would hold, TIES took two thirds longer (docs/results.md)."""

    xp: Any = np
    slice = 1 << 17

    def __init__(self) -> None:
        self._local = threading.local()

    def loaded(self, raw: np.ndarray, dtype: str, place: int) -> Array:
        """See `Arrays`."""
        values = self._buffer(place, np.float64, raw.size)
        if dtype == "BF16":
            wide = self._buffer("wide", np.uint32, raw.size)
            np.left_shift(raw, np.uint32(16), out=wide, dtype=np.uint32)
            raw = wide.view(np.float32)
        np.copyto(values, raw)
        return values

    def stored(self, values: Array, dtype: str) -> np.ndarray:
        """See `Arrays`."""
        if dtype == "F64":
            return values
        single = values.astype(np.float32)
        if dtype == "F16":
            return single.astype(np.float16)
        return _bfloat16(single) if dtype == "BF16" else single

    def bits(self, values: Array) -> Array:
        """See `Arrays`."""
        return values.astype(np.float32).view(np.int32)

    def moved(self, values: np.ndarray) -> Array:
        """See `Arrays`."""
        return values

    def _buffer(self, place: int | str, dtype: Any, count: int) -> np.ndarray:
        buffers = self._local.__dict__
        found = buffers.get(f"{place}")
        if found is None or found.size < count:
            found = buffers[f"{place}"] = np.empty(max(count, self.slice), dtype)
        return found[:count]


class Torch:
    """A device that torch knows."""

    slice = 1 << 22

    def __init__(self, device: str) -> None:
        try:
            import torch
        except ModuleNotFoundError:
            raise ConfigurationError("Fusing on a GPU needs torch: install vibethinker[train], or use cpu.") from None
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise ConfigurationError("This machine shows torch no NVIDIA GPU to fuse on: use cpu.")
        self.xp: Any = torch
        self._device = device

    def loaded(self, raw: np.ndarray, dtype: str, place: int) -> Array:
        """See `Arrays`."""
        tensor = self.xp.from_numpy(raw.view(np.int16) if dtype == "BF16" else raw).to(self._device)
        return (tensor.view(self.xp.bfloat16) if dtype == "BF16" else tensor).to(self.xp.float64, copy=True)

    def stored(self, values: Array, dtype: str) -> np.ndarray:
        """See `Arrays`."""
        torch = self.xp
        if dtype == "BF16":
            return values.to(torch.float32).to(torch.bfloat16).view(torch.int16).cpu().numpy()
        if dtype == "F16":
            return values.to(torch.float32).to(torch.float16).cpu().numpy()
        return values.to(torch.float32 if dtype == "F32" else torch.float64).cpu().numpy()

    def bits(self, values: Array) -> Array:
        """See `Arrays`."""
        return values.to(self.xp.float32).view(self.xp.int32)

    def moved(self, values: np.ndarray) -> Array:
        """See `Arrays`."""
        return self.xp.from_numpy(values).to(self._device)


def of(device: str) -> Arrays:
    """Where to compute on `cpu`, which has this process keep freed memory, or what torch calls a device.

    Raises:
        ConfigurationError: it can't be used.
    """
    if device != "cpu":
        return Torch(device)
    _keep_freed_memory()
    return Numpy()


def _keep_freed_memory() -> bool:
    """Have glibc use freed memory again, from now on and in all of this process; whether it does. By itself it maps
    each array of a slice anew, and the kernel's zeroing of its pages was over a quarter of the time of TIES."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    # 32 MiB are the most that every glibc takes.
    return bool(mallopt(_M_MMAP_THRESHOLD, 32 << 20) and mallopt(_M_TRIM_THRESHOLD, 256 << 20))


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Finite float32 numbers rounded to bfloat16, ties to even, as their upper halves; overwrites them."""
    bits = values.view(np.uint32)
    low = bits >> np.uint32(16)
    low &= np.uint32(1)
    low += np.uint32(0x7FFF)
    bits += low
    bits >>= np.uint32(16)
    return bits.astype(np.uint16)
