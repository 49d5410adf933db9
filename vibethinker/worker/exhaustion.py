"""How a step's process that ran out of memory is told from one that failed otherwise.

An exception says so by its type or, where a library has wrapped the driver's error, by its text. The kernel's
out-of-memory killer leaves nothing but SIGKILL, which anybody can send; the control group counts its victims, so a
child that was killed while the count rose died of memory. Where no count can be read, or a container's limit ends
the whole group at once, such an end stays an infrastructure failure.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

TYPES = ("OutOfMemoryError", "CUDAOutOfMemoryError")
# CUDA's driver, its libraries, and vLLM at its start when others hold the memory that it is to take.
TEXTS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "is less than desired GPU memory utilization",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory is what an exception, or one that led to it, is about."""
    return any(
        isinstance(one, MemoryError)
        or type(one).__name__ in TYPES
        or (isinstance(one, (RuntimeError, ValueError)) and any(text in str(one) for text in TEXTS))
        for one in _chain(error)
    )


def killed(root: Path = Path("/")) -> int | None:
    """How many processes of this control group, or else of this machine, the kernel has killed for memory so far;
    None where that can't be read."""
    for file, word in _counters(root):
        try:
            lines = (line.split() for line in file.read_text().splitlines())
            return next(int(fields[1]) for fields in lines if fields and fields[0] == word)
        except (OSError, ValueError, IndexError, StopIteration):
            continue
    return None


def _counters(root: Path) -> Iterator[tuple[Path, str]]:
    """Files that may hold the count, the most exact first: control groups of version 2 and 1, then the machine's."""
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
    except OSError:
        groups = []
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if not controllers:
            yield root / "sys/fs/cgroup" / path.strip("/") / "memory.events", "oom_kill"
        elif "memory" in controllers.split(","):
            yield root / "sys/fs/cgroup/memory" / path.strip("/") / "memory.oom_control", "oom_kill"
    yield root / "sys/fs/cgroup/memory.events", "oom_kill"
    yield root / "sys/fs/cgroup/memory/memory.oom_control", "oom_kill"
    yield root / "proc/vmstat", "oom_kill"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and those that led to it."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__
