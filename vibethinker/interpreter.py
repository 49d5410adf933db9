"""What a Python interpreter has for training and sampling: its packages, and the CUDA that its torch is built for.

The text of this module also runs by `python -c` in a worker's interpreter, which may be of another version and lack
this package; so it imports the standard library alone, and nothing that it looks for.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "accelerate", "bitsandbytes", "datasets", "flash-attn", "liger-kernel", "peft", "torch", "transformers", "trl",
    "unsloth", "vllm",
)  # fmt: skip
GROUPS = "vibethinker."  # how the groups of plugins' entry points begin


def look() -> dict[str, Any]:
    """`python`: its version; `packages`: name → version, or `?` where a package doesn't tell it; `plugins`: the same of
    distributions that bring some; `cuda`: the version that torch is built for, None for a CPU build or no torch."""
    packages = {}
    for name in PACKAGES:
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            continue
        try:
            packages[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            packages[name] = "?"
    brings = {
        one.metadata["Name"]: one.version
        for one in metadata.distributions()
        if any(entry.group.startswith(GROUPS) for entry in one.entry_points)
    }
    return {"python": platform.python_version(), "packages": packages, "plugins": brings, "cuda": _cuda()}


def _cuda() -> str | None:
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    found = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found.group(1) if found else None


if __name__ == "__main__":
    print(json.dumps(look()))
