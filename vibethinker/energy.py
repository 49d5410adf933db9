"""The energy that this machine takes, where it can be read: its CPUs' by RAPL's counters, its GPUs' by the driver.

RAPL (Linux's powercap) counts the joules of each CPU package, memory and the rest of the machine left out; most
systems let only root read it. NVIDIA's driver tells the power of each GPU, which is taken to hold since the last look.
What can't be read is left out, never guessed.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
CPU = "cpu"
GPU_SECONDS = 10.0  # between two questions to the driver, each of which starts a process


class Energy:
    """What was taken since the last look.

    Args:
        gpus: whether there are GPUs to ask for.
        powercap: where Linux shows RAPL's counters.
    """

    def __init__(self, gpus: bool, powercap: Path = POWERCAP) -> None:
        # Zones within a package, as intel-rapl:0:1, are part of it.
        self._zones = [zone for zone in powercap.glob("intel-rapl:*") if zone.name.count(":") == 1]
        self._counts = {zone: _number(zone / "energy_uj") for zone in self._zones}
        self._gpus = gpus and shutil.which("nvidia-smi") is not None
        self._looked = time.monotonic()

    def take(self, last: bool = False) -> dict[str, float]:
        """Joules since the last call, of the CPU packages together (CPU) and of each GPU by its index; GPUs only every
        GPU_SECONDS, and when it is the `last` look."""
        found: dict[str, float] = {}
        for zone in self._zones:
            before, now = self._counts[zone], _number(zone / "energy_uj")
            self._counts[zone] = now
            if before is not None and now is not None:
                span = _number(zone / "max_energy_range_uj") or 0
                found[CPU] = found.get(CPU, 0.0) + ((now - before) % span if span else max(0, now - before)) / 1e6
        passed = time.monotonic() - self._looked
        if self._gpus and (last or passed >= GPU_SECONDS):
            self._looked += passed
            found |= {index: watts * passed for index, watts in _watts().items()}
        return found


def _watts() -> dict[str, float]:
    """The power of each GPU now, by its index."""
    command = ["nvidia-smi", "--query-gpu=index,power.draw", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    found = {}
    for line in said.splitlines():
        index, _, watts = line.partition(",")
        try:
            found[index.strip()] = float(watts)
        except ValueError:  # [N/A]
            continue
    return found


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
