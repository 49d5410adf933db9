"""`probe`, `evaluate` and `fuse` as a user calls them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vibethinker import cli
from vibethinker.models import save_model

pytestmark = pytest.mark.slow


@pytest.fixture
def vibethinker(capfd):
    """A function (arguments) → exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as done:
            code = int(done.code or 0)
        return code, *capfd.readouterr()

    return run


@pytest.fixture(scope="module")
def models(tmp_path_factory, new_tiny_model, tiny_tokenizer) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    for seed in (1, 2):
        save_model(new_tiny_model(seed), tiny_tokenizer, folder / f"m{seed}")
    return [folder / "m1", folder / "m2"]


@pytest.fixture
def problems(tmp_path) -> Path:
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i}+1?", "answer": i + 1}) + "\n" for i in range(3)))
    return path


SHORT = ("--max-tokens", 5)


def test_evaluate_prints_a_table_and_writes_scores_and_outcomes(vibethinker, models, problems, tmp_path):
    output = tmp_path / "new" / "scores.json"
    code, out, _ = vibethinker(
        "evaluate", models[0], "--benchmark", problems, "--samples", 2, "--output", output, *SHORT
    )
    assert code == 0 and "sums" in out and "avg@2" in out
    found = json.loads(output.read_text())
    assert list(found["scores"]) == ["sums"]
    assert sorted(found["scores"]["sums"]) == ["avg@2", "cons@2", "mean_tokens", "pass@2", "truncated"]
    assert found["scores"]["sums"]["avg@2"]["problems"] == 3 and len(found["outcomes"]) == 3
    first = output.read_bytes()
    vibethinker("evaluate", models[0], "--benchmark", problems, "--samples", 2, "--output", output, *SHORT)
    assert output.read_bytes() == first


def test_benchmark_takes_several_values(vibethinker, models, problems, tmp_path):
    other = tmp_path / "other.jsonl"
    shutil.copy(problems, other)
    code, out, _ = vibethinker(
        "evaluate", models[0], "--benchmark", problems, other, "--samples", 1, "--limit", 1, *SHORT
    )
    assert code == 0 and "sums" in out and "other" in out


def test_probe_names_the_best_and_writes_the_candidates(vibethinker, models, problems, tmp_path):
    output = tmp_path / "probe.json"
    options = ("--data", problems, "--samples", 4, "--k", 2, "--output", output, *SHORT)
    code, out, _ = vibethinker("probe", *models, *options)
    found = json.loads(output.read_text())
    assert code == 0 and f"Highest Pass@2: {found['selected']}" in out
    assert [c["checkpoint"] for c in found["candidates"]] == [str(model) for model in models]
    assert list(found["candidates"][0]["pass_at"]) == ["1", "2", "4"]
    assert 1 <= found["candidates"][0]["mean_tokens"] <= 5 and "tokens/s" in out


def test_fuse_writes_a_model_that_can_be_fused_again(vibethinker, models, tmp_path):
    code, out, _ = vibethinker("fuse", *models, "--output", tmp_path / "a", "--method", "linear", "--weights", "1,3")
    assert code == 0 and "0.2500" in out and "0.7500" in out
    code, _, _ = vibethinker("fuse", tmp_path / "a", models[0], "--output", tmp_path / "b")
    assert code == 0 and (tmp_path / "b" / "model.safetensors").is_file()


def test_bad_input_is_one_sentence_exit_2_and_nothing_written(vibethinker, models, problems, tmp_path):
    output, bare = tmp_path / "out.json", tmp_path / "bare"
    shutil.copytree(models[0], bare)
    (bare / "model.safetensors").unlink()
    broken, code_file = tmp_path / "broken.jsonl", tmp_path / "code.jsonl"
    broken.write_text('{"problem": "?", "answer": "1"}\n{"problem"\n')
    tests = {"kind": "assert", "code": "assert f"}
    code_file.write_text(json.dumps({"problem": "Write f.", "tests": tests}) + "\n")
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    evaluate = ("evaluate", "--output", output, "--samples", 2)
    for said, arguments in (
        ("is not a folder", (*evaluate, tmp_path / "absent", "--benchmark", problems)),
        ("has no weights", (*evaluate, bare, "--benchmark", problems)),
        ("broken.jsonl:2:", (*evaluate, models[0], "--benchmark", broken)),
        ("neither a file nor", (*evaluate, models[0], "--benchmark", "aime23")),
        (
            "--allow-unsafe-code",
            (
                *evaluate,
                models[0],
                "--benchmark",
                code_file,
                "--set",
                "sandbox.tier=rlimits",
                "--set",
                "sandbox.allow_unsafe=false",
            ),
        ),
        ("can't be written", ("evaluate", models[0], "--benchmark", problems, "--output", full)),
        (
            "no setting 'evaluation.sample'",
            (*evaluate, models[0], "--benchmark", problems, "--set", "evaluation.sample=1"),
        ),
        ("K <= n", ("probe", *models, "--data", problems, "--samples", 2, "--k", 4, "--output", output)),
        ("named twice", ("probe", models[0], models[0], "--data", problems, "--output", output)),
        ("broken.jsonl:2:", ("probe", *models, "--data", broken, "--output", output)),
        ("isn't an empty folder", ("fuse", *models, "--output", full)),
        ("numbers with commas", ("fuse", *models, "--output", tmp_path / "f", "--weights", "a,b")),
        ("3 weights for 2 models", ("fuse", *models, "--output", tmp_path / "f", "--weights", "1,1,1")),
        ("at least two models", ("fuse", models[0], "--output", tmp_path / "f")),
    ):
        code, out, err = vibethinker(*arguments)
        assert (code, out) == (2, ""), arguments
        assert said in err and err.count("\n") == 1 and err.startswith("Error: "), err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("command", ["probe", "fuse", "evaluate"])
def test_help_has_an_example_and_loads_nothing_heavy(command):
    script = (
        "import sys\nfrom vibethinker import cli\n"
        f"try:\n    cli.main([{command!r}, '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Example: vibethinker {command} " in done.stdout
