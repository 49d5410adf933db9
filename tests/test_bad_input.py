"""What people get wrong: one sentence that names the cause and the mend, exit code 2, and nothing written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def vibethinker(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vibethinker", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("Error: ")
    assert sentence.endswith(".")
    for word in words:
        assert word in sentence


@pytest.fixture
def run(tmp_path: Path):
    """`vibethinker run` with these arguments in an empty folder, which must stay as it was."""
    (tmp_path / "here").mkdir()

    def go(*arguments: str) -> subprocess.CompletedProcess[str]:
        before = sorted(tmp_path.rglob("*"))
        done = vibethinker("run", "--workspace", str(tmp_path / "workspace"), *arguments, cwd=tmp_path / "here")
        assert sorted(tmp_path.rglob("*")) == before
        return done

    return go


def files(path: Path, rows: list[object] | str) -> list[str]:
    text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text)
    train = f"data.train=[{{path: '{path}', domain: algebra}}]"
    settings = ("domains=[algebra]", "signal.stages=[]", "data.source=files", train)
    return [o for setting in settings for o in ("--set", setting)]


def test_an_unknown_profile(run) -> None:
    refused(run("--profile", "tinny"), "did you mean 'tiny'")


def test_an_unknown_key(run) -> None:
    refused(run("--set", "spectrum.sft.step=3"), "spectrum.sft.step", "did you mean 'steps'")


def test_k_above_n(run) -> None:
    refused(run("--set", "spectrum.probing.k=64"), "K <= n", "raise samples or lower k")


def test_a_missing_file(run, tmp_path) -> None:
    options = files(tmp_path / "train.jsonl", [])
    (tmp_path / "train.jsonl").unlink()
    refused(run(*options), "train.jsonl", "No such file")


def test_a_malformed_line_is_named_by_file_and_line(run, tmp_path) -> None:
    good = json.dumps({"problem": "1+1?", "answer": "2"})
    options = files(tmp_path / "train.jsonl", f"{good}\n{{broken\n")
    refused(run(*options), "train.jsonl:2")


def test_an_empty_domain(run, tmp_path) -> None:
    rows = [{"problem": f"What is {i}+1?", "answer": str(i + 1)} for i in range(2)]
    refused(run(*files(tmp_path / "train.jsonl", rows)), "'algebra' has 2 problems", "add problems")


def test_a_large_file_with_wrong_columns(run, tmp_path) -> None:
    rows = [{"problem": 7, "answer": str(i)} for i in range(3000)]
    refused(run(*files(tmp_path / "train.jsonl", rows)), "2000 of the first 2000 rows", "train.jsonl:1", "must be text")


def test_an_evaluation_file_without_a_row(run, tmp_path) -> None:
    options = files(tmp_path / "train.jsonl", [{"problem": f"{i}+1?", "answer": "2"} for i in range(9)])
    (tmp_path / "held.jsonl").write_text("")
    held = f"data.evaluation=[{{path: '{tmp_path / 'held.jsonl'}'}}]"
    refused(run(*options, "--set", held), "held.jsonl has no row")


def test_a_language_that_nothing_recognises(run) -> None:
    refused(run("--set", "data.filters.languages=[en, english]"), "'english'", "ISO 639-1")


def test_what_the_data_step_accepts_is_not_refused_before(tmp_path) -> None:
    from vibethinker import preflight
    from vibethinker.config import load
    from vibethinker.data.gathering import protect
    from vibethinker.plan import build

    def lines(name: str, *rows: object) -> str:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return name

    good = [{"problem": f"Find w{i}.", "answer": str(i)} for i in range(700)]
    broken = {"problem": r"Find $\frac{1}{2$.", "answer": "1"}
    labelled = [{**row, "subject": "Other"} for row in good[:2]]
    train = [
        {"path": lines("late.jsonl", *[broken] * 5, *good), "domain": "algebra"},  # 0.7 %, all of it at the start
        {"path": lines("empty.jsonl"), "domain": "algebra"},
    ]
    auto = {"columns": {"domain": "subject"}, "labels": {"Other": "auto"}}
    sources = [
        train,
        [{"path": lines("auto.jsonl", *labelled), **auto}],
        [{"path": lines("without.jsonl", *good[:2]), "domain": "auto"}],
    ]
    evaluation = [{"path": lines("held.jsonl", broken, good[0])}]
    for train in sources:
        data = {"source": "files", "directory": str(tmp_path), "train": train, "evaluation": evaluation}
        config = load("micro", partial={"domains": ["algebra"], "signal": {"stages": []}, "data": data}, environ={})
        plan = build(config, tmp_path / "workspace")
        preflight.check(plan)
    paths = plan["data"].outside
    assert len(protect(config.data, config.domains, 1, paths, print).evaluation["held"]) == 2


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_a_model_folder_without_weights_or_tokenizer(run, tmp_path, tiny_model_folder, missing) -> None:
    shutil.copytree(tiny_model_folder, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    (tmp_path / "model" / "tokenizer_config.json").unlink()
    word = "weights" if missing == "model.safetensors" else "tokenizer"
    small = ("--set", "spectrum.sft.max_length=100", "--set", "signal.stages=[]")
    refused(run(*small, "--set", f"base_model.source={tmp_path / 'model'}"), word)
    refused(run("--from", f"fusion={tmp_path / 'model'}"), word)


def test_a_model_that_is_not_there(run, tmp_path) -> None:
    refused(run("--set", f"base_model.source={tmp_path / 'absent'}"), "no such file or folder")


def test_a_step_that_is_not_there(run, tmp_path) -> None:
    refused(run("--refresh", "fushion"), "no step 'fushion'", "fusion")
    refused(run("--from", f"fushion={tmp_path}"), "no such step")


def test_code_is_not_run_without_leave(run) -> None:
    unsafe = run("--set", "sandbox.tier=rlimits", "--set", "sandbox.allow_unsafe=false")
    refused(unsafe, "no sandbox", "sandbox.allow_unsafe")


def test_a_workspace_that_can_not_be_made(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    done = vibethinker("run", "--workspace", str(tmp_path / "file" / "workspace"), cwd=tmp_path)
    refused(done, "can't be written", "--workspace")


@pytest.mark.skipif(sys.platform != "linux", reason="needs a Linux /dev/full")
def test_a_full_disk(tmp_path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs more rights than this user has")
    try:
        refused(vibethinker("run", "--workspace", str(mount / "workspace"), cwd=tmp_path), "make room")
        assert list(mount.iterdir()) == []
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_models_of_different_shapes_are_not_fused(tmp_path, new_tiny_model, tiny_tokenizer) -> None:
    from vibethinker.models import save_model

    for name, size in (("a", 64), ("b", 96)):
        save_model(new_tiny_model(0, intermediate_size=size), tiny_tokenizer, tmp_path / name)
    done = vibethinker("fuse", "a", "b", "--output", "fused", cwd=tmp_path)
    refused(done, "has shape")
    assert not (tmp_path / "fused").exists()


def test_a_malformed_file_of_a_signal_stage(run, tmp_path: Path) -> None:
    path = tmp_path / "stage.jsonl"
    path.write_text('{"problem": "1+1?", "answer": "2"}\n{"problem": "1+2?", "answer": "3"\n')
    refused(run("--profile", "micro", "--set", f"signal.stages.0.train_data={path}"), f"{path}:2")


def test_a_signal_stage_s_file_without_what_its_reward_needs(run, tmp_path: Path) -> None:
    path = tmp_path / "stage.jsonl"
    path.write_text('{"problem": "1+1?", "answer": null}\n')
    refused(run("--profile", "micro", "--set", f"signal.stages.0.validation_data={path}"), "no problem with `answer`")


def test_a_backend_that_needs_a_gpu(run) -> None:
    backend = ("--set", "base_model.backend=unsloth", "--set", "execution.device=cpu")
    refused(run("--profile", "micro", *backend), "needs an NVIDIA GPU", "set it to transformers")


def test_a_stage_s_domain_that_its_reward_cannot_judge(run) -> None:
    refused(run("--profile", "micro", "--set", "signal.stages.0.domains=[code]"), "signal.stages.0.domains", "judge")


def test_an_invalid_folder_is_a_failed_check(tmp_path) -> None:
    done = vibethinker("validate", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1 and "Invalid at level finite" in done.stdout and done.stderr == ""
