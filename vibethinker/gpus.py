"""GPUs whose speed is known from their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """Dense bf16 FLOP/s, memory bytes/s and memory bytes."""

    flops: float
    bandwidth: float
    memory: float


GPUS = {
    "H100": Device(989e12, 3.35e12, 80e9),
    "H200": Device(989e12, 4.8e12, 141e9),
    "A100": Device(312e12, 2.04e12, 80e9),
    "L40S": Device(362e12, 0.864e12, 48e9),
    "RTX4090": Device(165e12, 1.008e12, 24e9),
}


def known(name: str) -> str | None:
    """The name under which GPUS has a GPU that somebody, or its driver, calls so."""
    plain = name.upper().replace(" ", "").replace("-", "")
    return next((one for one in GPUS if one in plain), None)
