"""One signal stage on one GPU and on two, by `vibethinker signal`: seconds an update, the first one left out.

    python benchmarks/gpu_two_gpu_stage.py MODEL PROBLEMS.jsonl [--updates 8] [--length 512] [--set a.b=v]
        [--half one|two] [--output F]

Both runs have the same model, problems, seed and effective batch; only `execution.processes` differs. An update ends
when the command reports it (`--metrics`). `ours` and `peer` are medians with two processes and with one. Aim: a ratio
of at least 1.6. Prints one JSON object. `--set execution.device=cpu` rehearses it without GPUs.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outcome import halves, installed, measured, tell

from vibethinker.environment import versions


def main() -> None:
    """Run the stage twice and print what the second GPU brought."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("problems", type=Path)
    parser.add_argument("--updates", type=int, default=8, help="that count, after the first")
    parser.add_argument("--length", type=int, default=512, help="prompt and completion together, in tokens")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="settings of both runs")
    parser.add_argument("--half", choices=("one", "two"), help="with so many GPUs; --output keeps it for the other")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    command = ["signal", str(arguments.model), "--train-data", str(arguments.problems), "--max-seq-length"]
    command += [str(arguments.length), "--max-steps", str(arguments.updates + 1)]
    for setting in arguments.settings:
        command += ["--set", setting]
    one, two = halves(arguments.half, arguments.output, lambda processes: stage(command, processes)).values()
    result = {
        "work": f"{arguments.updates} updates of one signal stage after its first, one process against two",
        "ours": two["seconds"],
        "peer": one["seconds"],
        "ratio": round(one["seconds"] / two["seconds"], 3),
        "unit": "seconds an update",
        "aim": "ratio >= 1.6",
        "one": one,
        "two": two,
        "versions": versions() | installed("vllm"),
        "command": shlex.join(["vibethinker", *command, "--set", "execution.processes=2"]),
    }
    tell(result, arguments.output)


def stage(command: Sequence[str], processes: int) -> dict[str, Any]:
    """The stage with so many processes: the updates' median seconds and all of them, and what it learned from."""
    with tempfile.TemporaryDirectory() as folder:
        rows = measured([*command, "--set", f"execution.processes={processes}"], Path(folder), "model")
    ends = [row["time"] for row in rows]
    took = [round(later - earlier, 3) for earlier, later in itertools.pairwise(ends)]
    return {
        "processes": processes,
        "seconds": round(statistics.median(took), 3),
        "updates": took,
        "rewards": [row["reward"] for row in rows],
        "losses": [row["loss"] for row in rows],
        "lengths": [row["length"] for row in rows],
    }


if __name__ == "__main__":
    main()
