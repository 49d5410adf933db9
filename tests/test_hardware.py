"""What the machine has, with a driver that a script stands in for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from vibethinker import hardware
from vibethinker.hardware import Card

LISTED = """0, GPU-aaaa-1, NVIDIA H100 80GB HBM3, 81559
1, GPU-bbbb-2, NVIDIA H100 80GB HBM3, 81559
2, GPU-cccc-3, NVIDIA GH200, [N/A]
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An nvidia-smi that lists three GPUs."""
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    hardware._listed.cache_clear()
    yield
    hardware._listed.cache_clear()


def test_all_gpus_are_used_where_none_are_chosen(driver: None) -> None:
    assert hardware.devices() == ("0", "1", "2")
    assert hardware.card("1") == Card("NVIDIA H100 80GB HBM3", 81559 << 20)
    assert hardware.card("2") is None, "its memory isn't told"


def test_a_gpu_chosen_by_uuid_is_the_one_of_that_index(driver: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-bbbb,0")
    assert hardware.devices() == ("GPU-bbbb", "0")
    assert [hardware.gpu_index(d) for d in hardware.devices()] == ["1", "0"]
    assert hardware.card("GPU-bbbb") == hardware.card("1")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_none(driver: None, monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert hardware.gpus() == 0


def test_a_machine_tells_its_own_memory() -> None:
    assert hardware.memory() > 1 << 28
