"""Out of memory told from other ends: by an exception's type, its text, its cause, and the kernel's count."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from vibethinker.errors import InfrastructureError, OutOfMemoryError
from vibethinker.worker import endings, exhaustion


def wrapped() -> RuntimeError:
    """As an engine that fails to start raises it."""
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        except RuntimeError as error:
            raise RuntimeError("Engine core initialization failed.") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        ValueError("Free memory on device cuda:0 (10/80 GiB) on startup is less than desired GPU memory utilization"),
        wrapped(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_these_are_out_of_memory(error: BaseException) -> None:
    assert type(endings.classify(error)) is OutOfMemoryError


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: an illegal memory access"), OSError(12, "no memory")])
def test_these_are_not(error: BaseException) -> None:
    assert not isinstance(endings.classify(error), OutOfMemoryError)


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("group", "file", "text"),
    [
        ("0::/jobs/one\n", "sys/fs/cgroup/jobs/one/memory.events", "low 0\noom 4\noom_kill 3\n"),
        ("5:memory:/jobs/one\n0::/\n", "sys/fs/cgroup/memory/jobs/one/memory.oom_control", "under_oom 0\noom_kill 3\n"),
        ("0::/elsewhere\n", "sys/fs/cgroup/memory.events", "oom_kill 3\n"),
        ("0::/\n", "proc/vmstat", "pgfault 9\noom_kill 3\n"),
    ],
    ids=["version 2", "version 1", "in a container", "the machine's"],
)
def test_the_kernel_s_count_is_read_wherever_it_is(tmp_path: Path, group: str, file: str, text: str) -> None:
    put(tmp_path, "proc/self/cgroup", group)
    put(tmp_path, file, text)
    assert exhaustion.killed(tmp_path) == 3


def test_a_count_that_can_not_be_read_is_none(tmp_path: Path) -> None:
    assert exhaustion.killed(tmp_path) is None
    put(tmp_path, "sys/fs/cgroup/memory.events", "low 0\n")
    assert exhaustion.killed(tmp_path) is None


def test_a_killed_process_died_of_memory_only_where_the_count_rose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exhaustion, "killed", lambda: 4)
    assert endings.killed_by(signal.SIGKILL, 3)[0] is OutOfMemoryError
    assert endings.killed_by(signal.SIGKILL, 4)[0] is InfrastructureError
    assert endings.killed_by(signal.SIGKILL, None)[0] is InfrastructureError
    assert endings.killed_by(signal.SIGSEGV, 3)[0] is InfrastructureError
