"""What this machine has, found without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache

from vibethinker.config import Config
from vibethinker.errors import ConfigurationError


@cache
def gpus() -> int:
    """Number of NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    if not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if not listed.returncode else 0


def gpu(slot: int) -> str:
    """What CUDA_VISIBLE_DEVICES is to be for a step in this slot: one GPU, since trainers take all they see."""
    visible = [d.strip() for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d.strip()]
    return visible[slot % len(visible)] if visible else str(slot % gpus())


def first_gpus(count: int) -> str:
    """What CUDA_VISIBLE_DEVICES is to be for a step that has the machine alone and takes this many GPUs."""
    return ",".join(gpu(slot) for slot in range(count))


def check_processes(config: Config) -> None:
    """Refuse more processes a step than there are GPUs for them.

    Raises:
        ConfigurationError: there are.
    """
    processes = config.execution.processes
    if device(config) == "cuda" and processes > gpus():
        raise ConfigurationError(
            f"execution.processes is {processes} but this machine shows {gpus()} NVIDIA GPU(s), and each process takes "
            f"one: set it to at most {gpus()}."
        )


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device(config: Config) -> str:
    """Where steps compute: `cpu` or `cuda`.

    Raises:
        ConfigurationError: cuda was asked for and there is no GPU.
    """
    wanted = config.execution.device
    if wanted == "auto":
        return "cuda" if gpus() else "cpu"
    if wanted == "cuda" and not gpus():
        raise ConfigurationError("execution.device is cuda but this machine shows no NVIDIA GPU: use auto or cpu.")
    return wanted


def slots(config: Config) -> int:
    """Steps that run at once."""
    return config.execution.slots or (gpus() if device(config) == "cuda" else min(2, cores()))


def can_fork(config: Config) -> bool:
    """Whether children may be forked from a process that has imported torch: neither CUDA nor macOS survives it."""
    return device(config) == "cpu" and sys.platform == "linux"
