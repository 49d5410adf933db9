"""What it costs that nothing is lost: trainer checkpoints and manifests, beside the work that they protect.

    python benchmarks/safety.py WORKSPACE [--gib 1.0] [--output FILE]

WORKSPACE holds a finished run of its own, as `vibethinker run --profile tiny --workspace NEW` leaves one.

- `run`: what its trainings waited for checkpoints (`seconds_checkpointing` in their manifests), what sealing each of
  its outputs once more takes (digests, the manifest, syncing), and what reading each to its end takes, as often as
  other steps did before they used it, beside the seconds of all its steps. `ratio` is their sum's share; the aim is
  0.03. The digests of checkpoints, which a thread makes meanwhile, are no wait and not counted.
- `model`: a folder with one bfloat16 safetensors file of random weights: seconds to seal it just after it was written,
  and to validate it at each level but `generates`, read from the page cache; `written` is what writing it took.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outcome import invocation, tell

from vibethinker import runs, validation
from vibethinker.artifacts import MANIFEST, Store, seal
from vibethinker.environment import versions


def main() -> None:
    """Measure both and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--gib", type=float, default=1.0, help="size of the model")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = finished(arguments.workspace)
    cost = found["checkpointing"] + found["sealing"] + found["reading"]
    tell(
        {
            "ours": round(cost, 2),
            "ratio": round(cost / found["seconds"], 4),
            "unit": "s",
            "aim": 0.03,
            "run": {name: round(value, 2) for name, value in found.items()},
            "model": model(arguments.gib, arguments.workspace),
            "versions": versions(),
            "command": invocation(),
        },
        arguments.output,
    )


def finished(workspace: Path) -> dict[str, float]:
    """Seconds of the latest run's steps, of their waits for checkpoints, and of sealing and reading their outputs."""
    store = Store(workspace)
    found = {"seconds": 0.0, "checkpointing": 0.0, "sealing": 0.0, "reading": 0.0, "steps": 0}
    planned = json.loads((runs.latest(workspace) / "plan.json").read_text())["steps"]
    readers = Counter(read for step in planned for read in step["depends_on"])
    for step in runs.read_summary(runs.latest(workspace))["steps"]:
        artifact = store.read(step["id"], step["fingerprint"])
        if artifact is None:
            raise SystemExit(f"{step['id']} isn't published in {workspace}: finish the run first.")
        found["steps"] += 1
        found["seconds"] += artifact.manifest["seconds"]
        found["checkpointing"] += artifact.metrics.get("seconds_checkpointing", 0.0)
        with tempfile.TemporaryDirectory(dir=workspace) as name:
            copy = Path(name) / "copy"
            shutil.copytree(artifact.folder, copy, ignore=shutil.ignore_patterns(MANIFEST))
            found["sealing"] += seconds(
                lambda folder=copy: seal(folder, {"tensors": validation.tensor_digests(folder)}, at="publish")
            )
            found["reading"] += readers[step["id"]] * seconds(lambda folder=copy: check(folder, "digest"))
    return found


def model(gib: float, workspace: Path) -> dict[str, Any]:
    """Seconds to write, seal and validate a model of this size."""
    import torch
    from safetensors.torch import save_file

    rows = int(gib * (1 << 30)) // (2 * 4096 * 16)
    tensors = {f"layer.{i}": torch.randn(rows, 4096, dtype=torch.bfloat16) for i in range(16)}
    with tempfile.TemporaryDirectory(dir=workspace) as name:
        folder = Path(name)
        found: dict[str, Any] = {"gib": gib}
        found["written"] = seconds(lambda: save_file(tensors, folder / "model.safetensors"))
        found["sealed"] = seconds(lambda: seal(folder, {"tensors": validation.tensor_digests(folder)}, at="publish"))
        for level in validation.LEVELS[:-1]:
            found[level] = seconds(lambda level=level: check(folder, level))
    return {name: round(value, 3) for name, value in found.items()}


def check(folder: Path, level: str) -> None:
    """Ends the benchmark where the model is invalid at this level."""
    if reason := validation.check(folder, level):
        raise SystemExit(f"The model is invalid: {reason}.")


def seconds(work: Callable[[], object]) -> float:
    """What a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
