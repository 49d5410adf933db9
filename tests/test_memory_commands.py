"""A step run alone by a command, on a device whose memory is too small: trained all the same, and remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vibethinker import validation
from vibethinker.artifacts import folder_digest

ROOT = Path(__file__).parents[1]
# What Python runs at its start: it puts another function in the place of the recipe's.
PATCH = """
from vibethinker import steps
steps.STEP_FUNCTIONS["specialist"] = "tests.worker.failing_steps:train_a_specialist"
"""


def train(model: Path, folder: Path, output: str, fits: int) -> subprocess.CompletedProcess[str]:
    (folder / "patch").mkdir(exist_ok=True)
    (folder / "patch" / "sitecustomize.py").write_text(PATCH)
    rows = [{"problem": f"{i}+1?", "solution": f"\\boxed{{{i + 1}}}"} for i in range(16)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    environ = {
        **os.environ, "PYTHONPATH": f"{folder / 'patch'}:{ROOT}", "VIBETHINKER_TEST_TOKENS": str(fits),
        "VIBETHINKER_WORKSPACE": str(folder / "workspace"),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "vibethinker", "train-specialist", str(model), "--domain", "sums",
        "--train-data", "train.jsonl", "--max-seq-length", "100", "--max-steps", "2", "--output", output,
        "--set", "spectrum.sft.batch_size=8", "--set", "spectrum.sft.checkpoints=1",
        "--set", "spectrum.sft.micro_tokens=800",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environ, check=False)


@pytest.mark.long
@pytest.mark.slow
def test_a_specialist_is_trained_in_as_much_memory_as_there_is(tiny_model_folder: Path, tmp_path: Path) -> None:
    done = train(tiny_model_folder, tmp_path, "first", fits=200)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("Warning")]
    assert [line.partition("running again with ")[2] for line in told] == [
        "spectrum.sft.micro_tokens=400.",
        "spectrum.sft.micro_tokens=200.",
    ]
    assert "CUDA out of memory" in told[0]
    assert validation.check(tmp_path / "first" / "checkpoints" / "step-000002", "finite") is None

    again = train(tiny_model_folder, tmp_path, "second", fits=200)
    assert again.returncode == 0, again.stderr
    assert "Starting with spectrum.sft.micro_tokens=200" in again.stderr
    assert "running again" not in again.stderr
    trained = [folder_digest(tmp_path / name / "checkpoints") for name in ("first", "second")]
    assert trained[0] == trained[1]


@pytest.mark.long
@pytest.mark.slow
def test_one_that_never_fits_fails_with_what_to_change(tiny_model_folder: Path, tmp_path: Path) -> None:
    done = train(tiny_model_folder, tmp_path, "out", fits=0)
    assert done.returncode == 1
    assert "lower spectrum.sft.max_length" in done.stderr
    assert not (tmp_path / "out").exists()
