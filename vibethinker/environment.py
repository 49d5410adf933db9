"""What results depend on beside settings and data: versions of libraries, interpreter, processor, GPU, and how torch
was told to compute. Kept with every output and with the evidence of a divergence; equal seeds promise equal bytes only
where all of it is equal.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "trl", "peft", "datasets", "math-verify", "vibethinker")


def versions() -> dict[str, str]:
    """Installed versions of the libraries that determine results, read without importing them."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The name of this machine's CPU."""
    return _found(Path("/proc/cpuinfo"), r"model name\s*:\s*(.+)") or platform.processor() or platform.machine()


def facts() -> dict[str, Any]:
    """The machine and the state of this process; torch is asked only where it is loaded, and a GPU only where it was
    used, since asking would cost either its start."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor(),
    }
    torch = sys.modules.get("torch")
    if torch is None:
        return found
    found |= {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found |= {
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": _found(Path("/proc/driver/nvidia/version"), r"Kernel Module\D*([\d.]+)"),
            "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        }
    return found


def made_by(manifests: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What made these outputs: `versions` (library → versions), `machines` and `revisions` of the code, each once."""
    versions: dict[str, list[str]] = {}
    machines, revisions = dict[str, None](), dict[str, None]()
    for manifest in manifests:
        found = manifest.get("environment") or {}
        for name, version in {**manifest.get("versions", {}), "python": found.get("python")}.items():
            if version and version not in versions.setdefault(name, []):
                versions[name].append(version)
        for name in found.get("gpus") or [found.get("cpu")]:
            if name:
                machines[name] = None
        if manifest.get("revision"):
            revisions[manifest["revision"]] = None
    return {"versions": versions, "machines": list(machines), "revisions": list(revisions)}


def _found(file: Path, pattern: str) -> str | None:
    """What the pattern's group is in the file's first match; None where there is no such file or match."""
    try:
        match = re.search(pattern, file.read_text())
    except OSError:
        return None
    return match[1].strip() if match else None
