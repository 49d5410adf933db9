"""What this machine has, found without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache

from vibethinker.config import Config
from vibethinker.errors import ConfigurationError


@dataclass(frozen=True)
class Card:
    """One GPU: its name and its memory in bytes."""

    name: str
    memory: int


def devices() -> tuple[str, ...]:
    """The GPUs that this process may use, each as CUDA_VISIBLE_DEVICES names it: by index or by UUID."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(d.strip() for d in visible.split(",") if d.strip() not in ("", "-1"))
    return tuple(row["index"] for row in _listed())


def gpus() -> int:
    """Number of NVIDIA GPUs that this process may use."""
    return len(devices())


def gpu(slot: int) -> str:
    """What CUDA_VISIBLE_DEVICES is to be for a step in this slot: one GPU, since trainers take all they see."""
    found = devices()
    return found[slot % len(found)]


def gpu_index(device: str) -> str:
    """This machine's index of a GPU that is named by its UUID, or by the start of one; else the name as it is."""
    found = [row["index"] for row in _listed() if row["uuid"].startswith(device)]
    return found[0] if len(found) == 1 else device


def card(device: str) -> Card | None:
    """What is known of a GPU that `devices` names; None where the driver doesn't tell its memory."""
    rows = [row for row in _listed() if row["index"] == gpu_index(device) and row["memory"].isdigit()]
    return Card(rows[0]["name"], int(rows[0]["memory"]) << 20) if rows else None


def memory() -> int:
    """Bytes of this machine's main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def _listed() -> tuple[dict[str, str], ...]:
    """The driver's GPUs, whatever is visible: index, uuid, name and memory in MiB."""
    if not shutil.which("nvidia-smi"):
        return ()
    fields = "index,uuid,name,memory.total"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if listed.returncode:
        return ()
    rows = [[value.strip() for value in line.split(",")] for line in listed.stdout.splitlines()]
    names = ("index", "uuid", "name", "memory")
    return tuple(dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names))


def first_gpus(count: int) -> str:
    """What CUDA_VISIBLE_DEVICES is to be for a step that has the machine alone and takes this many GPUs."""
    return ",".join(gpu(slot) for slot in range(count))


def check_processes(config: Config) -> None:
    """Refuse more processes a step than there are GPUs for them, and such as can't be spread over its machines.

    Raises:
        ConfigurationError: they are.
    """
    execution = config.execution
    if execution.processes % execution.nodes:
        raise ConfigurationError(
            f"execution.processes is {execution.processes} and can't be spread evenly over {execution.nodes} machines "
            "(execution.nodes): make it a multiple of that."
        )
    if execution.nodes > 1 and config.scaling.runner == "ray":
        raise ConfigurationError(
            "A step that Ray runs can't be spread over machines: leave execution.nodes at 1, or scaling.runner at "
            "threads."
        )
    most = gpus() * execution.nodes
    if device(config) == "cuda" and execution.processes > most:
        of = f", of which there are to be {execution.nodes}" if execution.nodes > 1 else ""
        raise ConfigurationError(
            f"execution.processes is {execution.processes} but this machine{of} shows {gpus()} NVIDIA GPU(s), and each "
            f"process takes one: set it to at most {most}."
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
