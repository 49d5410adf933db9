"""A child that trains with Unsloth imports it before anything that it patches."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vibethinker.errors import ConfigurationError, VibeThinkerError
from vibethinker.worker.host import Host

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# In Unsloth's place: it refuses the machine, as that does without a GPU, and tells what it found.
STAND_IN = """
import os, sys
patched = [name for name in ("torch", "transformers", "trl", "peft") if name in sys.modules]
quiet = os.environ["UNSLOTH_DISABLE_STATISTICS"]
raise NotImplementedError(f"imported after {patched}, quiet {quiet}, code in {os.environ['UNSLOTH_COMPILE_LOCATION']}")
"""


@pytest.fixture
def run(tmp_path: Path):
    """A function kind, backend → how a step of it ends, in a fresh child that finds the stand-in."""
    (tmp_path / "unsloth.py").write_text(STAND_IN)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    with Host(tmp_path / "worker.log", env={"PYTHONPATH": path}, fork=False) as host:

        def go(kind: str, backend: str):
            request = {
                "workspace": str(tmp_path), "step": "step", "kind": kind, "fingerprint": "f" * 64,
                "settings": {"value": "abc"}, "inputs": {}, "execution": {"backend": backend},
                "log": str(tmp_path / "step.log"), "stall_seconds": 60.0, "stop_seconds": 30.0,
            }  # fmt: skip
            return host.run(request, lambda event: None)

        yield go


def test_unsloth_comes_before_what_it_patches(run, tmp_path):
    with pytest.raises(ConfigurationError, match=r"imported after \[\], quiet 1.*backend to transformers") as caught:
        run("specialist", "unsloth")
    assert f"code in {tmp_path}" in str(caught.value)


def test_a_stage_is_trained_without_it(run):
    with pytest.raises(VibeThinkerError, match="base_model"):  # it got as far as its settings
        run("signal", "unsloth")


def test_a_step_that_does_not_train_leaves_it_alone(run):
    assert run("tests.worker.failing_steps:succeed", "unsloth")["metrics"] == {"length": 3}
