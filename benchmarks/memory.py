"""Wall time and memory of a command with everything that it starts.

    python benchmarks/memory.py [--every SECONDS] [--output FILE] -- vibethinker run --workspace NEW

Memory is the sum of the proportional set sizes (PSS: shared pages counted once) of the command's process and all its
descendants; the largest of the samples counts. `left` are descendants still alive 3 s after the command
had ended; the exit code is 1 if there are any. Linux only, needs psutil. Prints one JSON object; the command's own
output goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
from outcome import tell


def main() -> None:
    """Run the command and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=float, default=2.0, help="seconds between samples")
    parser.add_argument("--output", type=Path)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    began = time.monotonic()
    process = subprocess.Popen(arguments.command, stdout=sys.stderr)
    samples: list[int] = [0]
    seen: set[psutil.Process] = set()
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            seen.update(family)
            samples.append(sum(map(proportional, family)))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(arguments.every)
    seconds = time.monotonic() - began
    result = {
        "seconds": round(seconds, 1),
        "peak_gib": round(max(samples) / 2**30, 2),
        "samples": len(samples) - 1,
        "left": len(psutil.wait_procs(seen, timeout=3)[1]),
        "exit_code": process.returncode,
        "command": shlex.join(arguments.command),
    }
    tell(result, arguments.output)
    sys.exit(process.returncode or result["left"] > 0)


def proportional(process: psutil.Process) -> int:
    """The process's PSS in bytes, 0 if it has just ended."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0


if __name__ == "__main__":
    main()
