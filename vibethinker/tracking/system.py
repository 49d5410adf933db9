"""What the machine is doing while a run goes on, sampled now and then by a thread, under MLflow's own names.

MLflow's own monitor writes to the store itself, and ends where that is away; samples of this one go through the run's
journal like everything else. A sample costs well under a millisecond on a machine without GPUs, and with them one call
of nvidia-smi. What can't be read is left out: without /proc there is no CPU, memory or network, and a GPU that doesn't
tell its power has none.
"""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

PREFIX = "system/"
PROC = Path("/proc")
MB = 1e6
GPU_FIELDS = {
    "utilization.gpu": "utilization_percentage",
    "memory.used": "memory_usage_megabytes",
    "memory.total": "memory_total",
    "power.draw": "power_usage_watts",
}
GPU_SECONDS = 20.0  # that nvidia-smi may take


class Sampler:
    """Samples the machine every `seconds` from `start` to `close`.

    Args:
        seconds: between two samples.
        folder: whose disk counts.
        tell: gets each sample, name → value.
    """

    def __init__(self, seconds: float, folder: Path, tell: Callable[[dict[str, float]], None]) -> None:
        self._seconds, self._folder, self._tell = seconds, folder, tell
        self._busy: tuple[int, int] | None = None
        self._bytes: tuple[int, int] | None = None
        self._smi = shutil.which("nvidia-smi")
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)

    def start(self) -> None:
        """Begin; the first sample is taken at once."""
        self._thread.start()

    def close(self) -> None:
        """Take no more samples."""
        self._end.set()

    def sample(self) -> dict[str, float]:
        """What can be read now; shares of CPU time and traffic are since the last sample."""
        found: dict[str, float] = {}
        for part in (self._cpu, self._memory, self._disk, self._network, self._gpus):
            with suppress(OSError, ValueError, IndexError, KeyError, subprocess.SubprocessError):
                found.update(part())
        return {f"{PREFIX}{name}": round(value, 1) for name, value in found.items()}

    def _run(self) -> None:
        while True:
            self._tell(self.sample())
            if self._end.wait(self._seconds):
                return

    def _cpu(self) -> Iterator[tuple[str, float]]:
        times = [int(word) for word in (PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]]
        now = sum(times) - times[3] - times[4], sum(times)  # without idle and iowait
        before, self._busy = self._busy, now
        if before is not None and now[1] > before[1]:
            yield "cpu_utilization_percentage", 100 * (now[0] - before[0]) / (now[1] - before[1])

    def _memory(self) -> Iterator[tuple[str, float]]:
        rows = (line.split() for line in (PROC / "meminfo").read_text().splitlines())
        kib = {row[0].rstrip(":"): int(row[1]) for row in rows}
        total, used = kib["MemTotal"], kib["MemTotal"] - kib["MemAvailable"]
        yield "system_memory_usage_megabytes", used * 1024 / MB
        yield "system_memory_usage_percentage", 100 * used / total

    def _disk(self) -> Iterator[tuple[str, float]]:
        disk = shutil.disk_usage(self._folder)
        yield "disk_usage_percentage", 100 * disk.used / disk.total
        yield "disk_available_megabytes", disk.free / MB

    def _network(self) -> Iterator[tuple[str, float]]:
        rows = [line.replace(":", " ").split() for line in (PROC / "net" / "dev").read_text().splitlines()[2:]]
        now = sum(int(row[1]) for row in rows), sum(int(row[9]) for row in rows)
        before, self._bytes = self._bytes, now
        if before is not None:
            yield "network_receive_megabytes", (now[0] - before[0]) / MB
            yield "network_transmit_megabytes", (now[1] - before[1]) / MB

    def _gpus(self) -> Iterator[tuple[str, float]]:
        if self._smi is None:
            return
        command = [self._smi, f"--query-gpu=index,{','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits"]
        listed = subprocess.run(command, capture_output=True, text=True, timeout=GPU_SECONDS, check=True).stdout
        for line in listed.splitlines():
            index, *words = (word.strip() for word in line.split(","))
            values = {}
            for name, word in zip(GPU_FIELDS.values(), words, strict=True):
                with suppress(ValueError):  # [N/A]
                    values[name] = float(word)
            total = values.pop("memory_total", 0.0)
            if total and "memory_usage_megabytes" in values:
                used = values["memory_usage_megabytes"]
                values["memory_usage_percentage"] = 100 * used / total
                values["memory_usage_megabytes"] = used * (1 << 20) / MB
            yield from ((f"gpu_{index}_{name}", value) for name, value in values.items())
