"""`probe`, `evaluate` and `fuse` as a user calls them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vibethinker import cli
from vibethinker.generation import Completion
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


@pytest.mark.parametrize("command", ["probe", "fuse", "evaluate", "compare", "generate"])
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


class Fixed:
    """An engine in the place of a model's: its answers to any prompt are these, in turns."""

    def __init__(self, tokenizer, *answers: str) -> None:
        self.tokenizer, self.answers, self.prompts = tokenizer, answers, []

    def generate(self, prompts, *, samples, ended=None, progress=None, **_):
        self.prompts += [self.tokenizer.decode(ids) for ids in prompts]
        texts = [[self.answers[s % len(self.answers)] for s in range(samples)] for _ in prompts]
        found = [[Completion(text, len(text), text.endswith("…"), ()) for text in some] for some in texts]
        for index, some in enumerate(found):
            for sample, completion in enumerate(some):
                if ended:
                    ended(index, sample, completion)
        return found

    @property
    def meter(self):
        return self

    def take(self):
        return {}


@pytest.fixture
def answering(monkeypatch, tiny_tokenizer):
    """A function answers → the engine that every model is opened as from now on."""

    def use(*answers: str) -> Fixed:
        engine = Fixed(tiny_tokenizer, *answers)
        monkeypatch.setattr("vibethinker.generation.opening.Engines.at", lambda *_: engine)
        return engine

    return use


@pytest.fixture
def graded(tmp_path) -> Path:
    path = tmp_path / "graded.jsonl"
    rows = [{"problem": f"What is {i % 2} + 1?", "answer": i % 2 + 1, "level": f"Level {1 + i % 2}"} for i in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_evaluate_scores_again_what_it_has_sampled(vibethinker, models, graded, tmp_path, answering, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answering("\\boxed{1}", "\\boxed{2}", "\\boxed{1}")
    output = tmp_path / "o.json"
    command = ("evaluate", models[0], "--benchmark", graded, "--samples", 3, "--output", output)
    assert vibethinker(*command, "--rescore")[0] == 2
    code, out, _ = vibethinker(*command, "--k", "1,2")
    found = json.loads(output.read_text())
    assert code == 0 and "graded 2" in out  # the table of levels
    scores = found["scores"]["graded"]
    assert scores["avg@3"]["value"] == 0.5 and scores["pass@2"]["value"] == pytest.approx(5 / 6)
    assert [row["cons"] for row in found["outcomes"]] == [1.0, 0.0] and found["seed"] == 1
    assert [row["level"] for row in found["outcomes"]] == [1, 2]
    [record] = found["sets"].values()
    assert record["settings"]["samples"] == 3 and record["source"]["path"] == str(graded) and record["tokens"] > 0
    engine = answering("\\boxed{3}")
    code, _, err = vibethinker(*command, "--rescore")
    again = json.loads(output.read_text())
    assert code == 0 and "6 of 6 completions were kept" in err and engine.prompts == []
    assert again["outcomes"] == found["outcomes"]
    vibethinker("evaluate", models[1], *command[2:])
    assert len(engine.prompts) == 2, "another model is sampled anew"


def test_evaluate_votes_by_claims_and_tells_the_cost(vibethinker, models, graded, tmp_path, answering):
    answering("1. It is \\boxed{1}")
    output = tmp_path / "o.json"
    command = ("evaluate", models[0], "--benchmark", graded, "--limit", 1, "--output", output)
    code, out, _ = vibethinker(*command, "--vote", "clr", "--samples", 4)
    found = json.loads(output.read_text())["votes"]["graded"]
    assert code == 0 and "majority@4" in out and "clr@4" in out
    assert found["majority@4"]["value"] == found["clr@4"]["value"] == 1.0
    assert [found["cost"][part]["requests"] for part in ("samples", "claims", "judgements")] == [4, 4, 4]
    assert found["relative_cost"] == 3.0
    assert vibethinker(*command, "--vote", "majority")[0] == 0
    found = json.loads(output.read_text())["votes"]["graded"]
    assert found["majority@32"]["samples"] == 32 and found["relative_cost"] == 1.0


def test_evaluate_tells_what_benchmarks_share_with_training_data(vibethinker, models, tmp_path, answering):
    answering("\\boxed{1}")
    body = "A train leaves the old station at noon and drives {} miles an hour for three hours: how far does it get?"
    rows = [{"problem": body.format(n), "answer": 3 * n} for n in (40, 50)] + [{"problem": "1 + 1?", "answer": 2}]
    test, train = tmp_path / "test.jsonl", tmp_path / "train.jsonl"
    test.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train.write_text(json.dumps({"problem": body.format(40)}) + "\n" + json.dumps({"problem": "Other words."}) + "\n")
    options = ("--samples", 1, "--output", tmp_path / "o.json")
    code, out, _ = vibethinker("evaluate", models[0], "--benchmark", test, "--against-train", train, *options)
    found = json.loads((tmp_path / "o.json").read_text())["contamination"]["test"]
    assert code == 0 and "1 near copies" in out
    assert (found["rows"], found["near_copies"], found["problems"], found["of"]) == (2, 1, 1, 3)


def test_compare_pairs_outputs_and_says_where_they_are_not_comparable(vibethinker, models, graded, tmp_path, answering):
    made = {}
    for name, answers, options in (
        ("ones", ["\\boxed{1}"], []),
        ("both", ["\\boxed{1}", "\\boxed{2}"], []),
        ("seed", ["\\boxed{1}"], ["--set", "seed=2"]),
        ("hot", ["\\boxed{1}"], ["--temperature", "0.5"]),
        ("less", ["\\boxed{1}"], ["--limit", "1"]),
    ):
        answering(*answers)
        made[name] = tmp_path / f"{name}.json"
        command = ("evaluate", models[0], "--benchmark", graded, "--samples", 2, "--output", made[name])
        assert vibethinker(*command, *options)[0] == 0
    code, out, _ = vibethinker("compare", made["ones"], made["both"], "--k", 2, "--output", tmp_path / "d.json")
    found = json.loads((tmp_path / "d.json").read_text())
    assert code == 0 and "graded pass@2" in out and found["comparable"]
    assert [(c["metric"], c["a"], c["b"]) for c in found["comparisons"]] == [
        ("avg", 0.5, 0.5),
        ("cons", 0.5, 0.5),
        ("pass@2", 0.5, 1.0),
    ]
    for name, said in (("seed", "the seeds are 1 and 2"), ("hot", "temperature 1.0 and 0.5"), ("less", "2 and 1")):
        code, out, err = vibethinker("compare", made["ones"], made[name])
        assert (code, out) == (1, "") and err.startswith("Error: Not comparable: ") and said in err, name
        assert err.count("\n") == 1
        code, out, err = vibethinker("compare", made["ones"], made[name], "--anyway")
        assert code == 0 and said in err and "graded avg" in out
    other = tmp_path / "other.json"
    other.write_text(made["ones"].read_text().replace('"graded"', '"another"'))
    code, _, err = vibethinker("compare", made["ones"], other)
    assert code == 2 and "measured on graded and" in err and "on another" in err
    other.write_text('{"schema": 1}')
    assert "evaluate the model again" in vibethinker("compare", made["ones"], other)[2]


def test_generate_prints_answers_with_verdicts_and_escapes_control_characters(vibethinker, models, graded, answering):
    answering("\x1b]0;owned\x07\x1b[2J\u202e it is\r\n\\boxed{1}")
    code, out, _ = vibethinker("generate", models[0], "--benchmark", graded)
    assert code == 0 and "correct; answered 1, gold 1" in out and "wrong; answered 1, gold 2" in out
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(out) and "\\x1b]0;owned\\x07" in out
    code, out, _ = vibethinker("generate", models[0], "--prompt", "1?", "--samples", 2, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [(row["sample"], row["verdict"], row["extracted"]) for row in rows] == [
        (0, None, "1"),
        (1, None, "1"),
    ]
    assert vibethinker("generate", models[0], "--prompt", "1?", "--gold", "1")[1].count("correct") == 1
    for options in ((), ("--prompt", "a", "--benchmark", "b"), ("--prompt", "a", "--prompt", "b", "--gold", "1")):
        assert vibethinker("generate", models[0], *options)[0] == 2
