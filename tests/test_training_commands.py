"""`train-specialist` and `signal` on their own: from files to a model folder, and refusals that write nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vibethinker import validation

pytestmark = pytest.mark.slow


def vibethinker(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vibethinker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_specialist_and_a_signal_stage_are_trained_from_files(tiny_model_folder: Path, tmp_path: Path) -> None:
    problems = [{"problem": f"{i}+1?", "answer": str(i + 1), "solution": f"\\boxed{{{i + 1}}}"} for i in range(16)]
    write(tmp_path / "train.jsonl", problems)
    small = ["--set", "spectrum.sft.batch_size=8", "--set", "spectrum.sft.checkpoints=1"]
    done = vibethinker(
        "train-specialist", str(tiny_model_folder), "--domain", "sums", "--train-data", "train.jsonl",
        "--max-seq-length", "100", "--max-steps", "2", *small, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    checkpoint = tmp_path / "specialist-sums" / "checkpoints" / "step-000002"
    assert validation.check(checkpoint, "finite") is None
    done = vibethinker(
        "signal", str(checkpoint), "--train-data", "train.jsonl", "--max-seq-length", "100", "--max-steps", "1",
        "--set", "signal.objective.batch_size=8", "--set", "signal.objective.group_size=4",
        "--set", "signal.objective.max_prompt_tokens=64", "--set", "spectrum.sft.max_length=100",
        "--output", "out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert validation.check(tmp_path / "out", "generates") is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "specialist-sums", "train.jsonl"]


def test_an_output_that_exists_is_kept(tiny_model_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"problem": "1+1?", "answer": "2"}])
    (tmp_path / "out").mkdir()
    done = vibethinker("signal", str(tiny_model_folder), "--train-data", "train.jsonl", "--output", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert "name a new folder" in done.stderr


def test_one_training_on_its_own_is_not_spread_over_machines(tiny_model_folder: Path, tmp_path: Path) -> None:
    spread = ["--set", "execution.processes=2", "--set", "execution.nodes=2"]
    done = vibethinker("signal", str(tiny_model_folder), "--max-seq-length", "100", *spread, cwd=tmp_path)
    assert done.returncode == 2
    assert "execution.nodes is 2, but only `vibethinker run`" in done.stderr


def test_a_malformed_row_is_named(tiny_model_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"problem": "1+1?"}])
    done = vibethinker(
        "train-specialist", str(tiny_model_folder), "--domain", "sums", "--train-data", "train.jsonl",
        "--max-seq-length", "100", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "train.jsonl:1" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train.jsonl"]


@pytest.mark.long
def test_a_signal_stage_without_a_file_trains_on_the_configuration_s_problems(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    done = vibethinker(
        "signal", str(tiny_model_folder), "--max-seq-length", "100", "--max-steps", "1",
        "--set", "signal.objective.batch_size=8", "--set", "signal.objective.group_size=4",
        "--set", "signal.objective.max_prompt_tokens=90", "--set", "spectrum.sft.max_length=100",
        "--set", "data.procedural.problems=200", "--output", "out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert validation.check(tmp_path / "out", "finite") is None


@pytest.mark.long
def test_a_failed_step_keeps_what_it_printed(tiny_model_folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"problem": "1+1?", "answer": "2"}])
    done = vibethinker(
        "signal", str(tiny_model_folder), "--train-data", "train.jsonl", "--max-seq-length", "100",
        "--set", "signal.objective.max_prompt_tokens=1", "--set", "spectrum.sft.max_length=100", "--output", "out",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "What it printed is in" in done.stderr
    assert (tmp_path / "out.log").is_file()
    assert not (tmp_path / "out").exists()


def test_the_evidence_of_a_divergence_outlives_the_command(tmp_path: Path) -> None:
    from vibethinker.commands.train import _with_evidence
    from vibethinker.errors import DivergedError

    made = tmp_path / "gone" / "evidence" / "update-3"
    made.mkdir(parents=True)
    (made / "divergence.json").write_text("{}")
    error = _with_evidence(DivergedError(f"It diverged ({made})."), tmp_path / "gone", tmp_path / "out")
    kept = tmp_path / "out.evidence" / "update-3"
    assert (kept / "divergence.json").is_file()
    assert type(error) is DivergedError
    assert str(error) == f"It diverged ({kept})."
    other = DivergedError("another")
    assert _with_evidence(other, tmp_path / "nowhere", tmp_path / "out") is other
