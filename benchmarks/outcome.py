"""How every benchmark tells its result: one JSON object with the machine, on stdout and in a file."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any


def tell(result: dict[str, Any], output: Path | None) -> None:
    """Print the result and write it to `output`, if given."""
    text = json.dumps(result | {"machine": machine()}, indent=1)
    print(text)
    if output:
        output.write_text(text + "\n")


def machine() -> str:
    """Its cores, architecture and NVIDIA GPUs."""
    found = f"{os.cpu_count()} cores, {platform.machine()}"
    if not shutil.which("nvidia-smi"):
        return found
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    gpus = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    return f"{found}, {len(gpus)} x {gpus[0]}"


def installed(*names: str) -> dict[str, str]:
    """Versions of those of these packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
