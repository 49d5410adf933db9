"""How every benchmark tells its result: one JSON object with the machine, on stdout and in a file."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
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


def invocation() -> str:
    """This process's command line, files by their names: what other machines call their folders is no part of it."""
    words = [word if word.startswith("-") else Path(word).name for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def measured(command: list[str], folder: Path, name: str) -> list[dict[str, Any]]:
    """Run a `vibethinker` command that trains, with its output and measurements in `folder`; the rows of its updates.
    What it and its step print goes to stderr."""
    full = [sys.executable, "-m", "vibethinker", *command, "--output", str(folder / name)]
    full += ["--metrics", str(folder / f"{name}.jsonl")]
    if subprocess.run(full, stdout=sys.stderr).returncode:
        log = folder / f"{name}.log"
        raise SystemExit(f"{shlex.join(full)} failed:\n{log.read_text()[-6000:] if log.exists() else ''}")
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


def peer(script: str, given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a peer's script in a process of its own: it finds `given` in its first argument's file and writes what it
    found to its second's."""
    files = [folder / name for name in ("peer.py", "given.json", "found.json")]
    files[0].write_text(script)
    files[1].write_text(json.dumps(given))
    if subprocess.run([sys.executable, *map(str, files)], stdout=sys.stderr).returncode:
        raise SystemExit("The peer failed; see above.")
    return json.loads(files[2].read_text())


def conversations(traces: Path, target: Path, suffix: str = "") -> None:
    """Write a file of traces as TRL's trainers take them: prompt and completion, each a message."""
    with target.open("w") as file:
        for line in traces.read_text().splitlines():
            row = json.loads(line)
            messages = ("user", row["problem"] + suffix), ("assistant", row["solution"])
            prompt, completion = ([{"role": role, "content": text}] for role, text in messages)
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


def halves(half: str | None, output: Path | None, measure: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """What `measure` finds with one GPU and with two, as `one` and `two`.

    Where only one `half` is wanted, the other is what `output` holds of it from another call with the same words on the
    same machine; if it holds none yet, this half is written there and the process ends.
    """
    found = {name: measure(count) for name, count in (("one", 1), ("two", 2)) if half in (None, name)}
    words = {"words": [word for word in sys.argv[1:] if word != half], "machine": machine()}
    if half and output and output.exists():
        before = json.loads(output.read_text())
        if {name: before.get(name) for name in words} == words:
            found = {name: before[name] for name in ("one", "two") if name in before} | found
    if set(found) < {"one", "two"}:
        tell(found | words, output)
        sys.exit()
    return {name: found[name] for name in ("one", "two")}


def installed(*names: str) -> dict[str, str]:
    """Versions of those of these packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
