"""`vibethinker fuse`: its options, and what it imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from vibethinker.cli import cli
from vibethinker.errors import ConfigurationError

LIGHT = """
import sys
from vibethinker.cli import cli
cli.main(sys.argv[1:], standalone_mode=False)
heavy = {"torch", "transformers", "peft", "safetensors", "pandas", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""


def called(*words):
    result = CliRunner().invoke(cli, ["fuse", *map(str, words)])
    if isinstance(result.exception, ConfigurationError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_fusing_folders_imports_nothing_that_takes_seconds(method, three, tmp_path):
    words = ["fuse", *three[1:], "--output", tmp_path / "out", "--method", method, "--base", three[0]]
    subprocess.run([sys.executable, "-c", LIGHT, *map(str, words)], check=True, timeout=120)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_table_shows_each_model_s_weight(three, tmp_path):
    shown = called(*three, "--output", tmp_path / "a", "--weights", "1,2,1")
    assert "0.2500" in shown and "0.5000" in shown and "Fused (linear)" in shown
    shown = called(*three[:2], "--output", tmp_path / "b", "--method", "slerp", "--t", "0.25")
    assert "0.7500" in shown and "0.2500" in shown


def test_pass_at_k_reads_probe_files(three, tmp_path):
    files = []
    for name, value in (("a", 0.1), ("b", 0.3)):
        files.append(tmp_path / f"{name}.json")
        candidates = [{"checkpoint": "c", "pass_at": {"8": {"value": value}}}]
        files[-1].write_text(json.dumps({"k": 8, "selected": "c", "candidates": candidates}))
    shown = called(*three[:2], "--output", tmp_path / "out", "--method", "pass_at_k",
                   "--probes", ",".join(map(str, files)))  # fmt: skip
    assert "0.2500" in shown and "0.7500" in shown


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--method", "ties"], "ties merges changes from a base model: name it with --base"),
        (["--method", "pass_at_k"], "takes its weights from --probes"),
        (["--probes", "a.json"], "takes its weights from --probes"),
        (["--method", "pass_at_k", "--probes", "absent.json"], "--probes takes files that"),
        (["--method", "slerp", "--weights", "1,2,3"], "--weights go with neither"),
        (["--density", "1.5"], "The setting density can't be 1.5"),
        (["--density", "0.5"], "--density belongs to the methods ties, dare"),
        (["--method", "ties", "--t", "0.5"], "--t belongs to the methods slerp"),
        (["--trials", "5"], "--trials belongs to a search"),
        (["--search"], "--search needs --data"),
        (["--search", "--as-adapter"], "leave --as-adapter or --search out"),
        (["--device", "cuda"], "shows torch no NVIDIA GPU"),
        (["--weights", "1,2"], "2 weights for 3 models"),
    ],
)
def test_wrong_words_are_told_in_a_sentence(words, told, three, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigurationError, match=told):
        called(*three, "--output", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_search_on_the_command_line_tells_held_out_gain_and_writes_its_report(three, tmp_path):
    for name, word in (("data", "What is"), ("copies", "what is "), ("held", "How much is")):
        rows = [{"id": f"{name}-{i}", "problem": f"{word} {i}?", "answer": "7"} for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [*three[:2], "--output", tmp_path / "out", "--search", "--trials", "2", "--data", tmp_path / "data.jsonl",
             "--samples", "2", "--k", "2", "--max-tokens", "4", "--report", tmp_path / "report.json"]  # fmt: skip
    for same in ("data", "copies"):
        with pytest.raises(ConfigurationError, match=f"{same}-0 of --data: its problems must be others"):
            called(*words, "--held-out", tmp_path / f"{same}.jsonl")
    shown = called(*words, "--held-out", tmp_path / "held.jsonl")
    assert "held-out pass@2" in shown and "found - uniform" in shown
    found = json.loads((tmp_path / "report.json").read_text())
    assert len(found["trials"]) == 2 and set(found["held_out"]) == {"found", "uniform", "gain"}
    given = {f"{name}.jsonl" for name in ("copies", "data", "held")}
    assert {file.name for file in tmp_path.iterdir()} == given | {"out", "report.json"}
