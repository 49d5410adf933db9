"""What computing on a CPU asks of the C library."""

from __future__ import annotations

import ctypes
import platform

import pytest

from vibethinker.fusion import arrays


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_glibc_keeps_freed_memory():
    assert arrays._keep_freed_memory()


def test_another_c_library_goes_on_as_it_does(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not arrays._keep_freed_memory()
    assert isinstance(arrays.of("cpu"), arrays.Numpy)
