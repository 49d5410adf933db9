"""Two specialists on one GPU and on two, by `vibethinker run`: seconds from ready inputs to the last specialist.

    DATA_DIR=FOLDER python benchmarks/gpu_parallel_specialists.py [--config C] [--domains a,b] [--set a.b=v]
        [--half one|two] [--output F]

FOLDER has what the configuration names, gpu_parallel_specialists.yaml unless another is given. Both runs have the same
data, base, seed and settings; the first sees one GPU, the second two, so that the lease gives each specialist its own.
The clock runs from the time at which the last of data and base was published to that of the last specialist, both from
the manifests, so each process's start and model loading count; then the run is stopped.
`ours` is with two GPUs, `peer` with one. Aim: a ratio of at least 1.8. Prints one JSON object. Where there is no GPU
this is a rehearsal with `execution.slots` 1 and 2 and one thread a step.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from outcome import halves, tell

from vibethinker import hardware
from vibethinker.environment import versions

CONFIG = Path("benchmarks/gpu_parallel_specialists.yaml")
LOOK_SECONDS = 0.2
STOP_SECONDS = 60.0


def main() -> None:
    """Run the specialists twice and print what the second GPU brought."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--domains", default="one,two", help="a specialist each")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="settings of both runs")
    parser.add_argument("--half", choices=("one", "two"), help="with so many GPUs; --output keeps it for the other")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    domains = arguments.domains.split(",")
    command = ["run", "--config", str(arguments.config), "--set", f"domains=[{arguments.domains}]"]
    for setting in ("signal.stages=[]", *arguments.settings):
        command += ["--set", setting]
    if hardware.gpus() == 1 and arguments.half != "one":
        sys.exit("This machine shows one GPU: two are needed, or none for a rehearsal.")
    one, two = halves(arguments.half, arguments.output, lambda places: specialists(command, domains, places)).values()
    result = {
        "work": f"{len(domains)} specialists ({arguments.config.name}), from ready inputs to the last one published",
        "ours": two["seconds"],
        "peer": one["seconds"],
        "ratio": round(one["seconds"] / two["seconds"], 3),
        "unit": "seconds",
        "aim": "ratio >= 1.8",
        "places": "GPUs" if hardware.gpus() else "slots of the CPU, a rehearsal",
        "one": one,
        "two": two,
        "versions": versions(),
        "command": shlex.join(["vibethinker", *command]),
    }
    tell(result, arguments.output)


def specialists(command: Sequence[str], domains: Sequence[str], places: int) -> dict[str, Any]:
    """The run on so many GPUs, or slots: seconds in all, and of each specialist's own work."""
    environ = dict(os.environ)
    more = ["--set", f"execution.slots={places}", "--set", "execution.threads=1"]
    if hardware.gpus():
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(hardware.devices()[:places])
        more = []
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder) / "workspace"
        full = [sys.executable, "-m", "vibethinker", *command, *more, "--workspace", str(workspace)]
        names = [f"specialist-{domain}" for domain in domains]
        with (Path(folder) / "printed").open("w+") as printed:
            running = subprocess.Popen(full, stdout=printed, stderr=subprocess.STDOUT, env=environ)
            while running.poll() is None and not all(manifest(workspace, name) for name in names):
                time.sleep(LOOK_SECONDS)
            if running.poll() not in (None, 0):
                printed.seek(0)
                sys.exit(f"{shlex.join(full)} failed:\n{printed.read()}")
            stop(running)
        ready = max(manifest(workspace, name)["finished"] for name in ("data", "base"))
        done = [manifest(workspace, name) for name in names]
    return {
        "places": places,
        "seconds": round(max(one["finished"] for one in done) - ready, 2),
        "specialists": [one["seconds"] for one in done],
        "losses": [one["metrics"]["loss"] for one in done],
    }


def stop(running: subprocess.Popen[bytes]) -> None:
    """End the run as a person at the keyboard does; what it has published is enough."""
    running.send_signal(signal.SIGINT)
    try:
        running.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()


def manifest(workspace: Path, step: str) -> dict[str, Any]:
    """A published step's manifest; empty while there is none."""
    found = sorted((workspace / "artifacts" / step).glob("*/manifest.json"))
    return json.loads(found[0].read_text()) if found else {}


if __name__ == "__main__":
    main()
