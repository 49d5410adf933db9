"""The evaluation step: its files, its seeds, what it refuses and how it goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vibethinker.data.schema import Problem, write_records
from vibethinker.errors import DataError
from vibethinker.evaluation import step
from vibethinker.steps import StepContext

pytestmark = pytest.mark.slow

SETTINGS = {
    "seed": 3,
    "evaluation": {"samples": 4, "k": [2, 4], "temperature": 1.0, "top_p": 0.95, "max_tokens": 6},
    "sets": None,
    "prompts": {},
    "verification": {},
}
EXECUTION = {"device": "cpu", "threads": 1, "generation_batch": 16, "sandbox": {}, "verifier_workers": 1}


class Recorder:
    def __init__(self) -> None:
        self.positions: list[tuple[int, int]] = []
        self.warnings: list[str] = []
        self.rows: list[dict[str, float]] = []

    def progress(self, done, total, text=""):
        self.positions.append((done, total))

    def metrics(self, step, values):
        self.rows.append(dict(values))

    def warning(self, text):
        self.warnings.append(text)


@pytest.fixture
def data(tmp_path, problem) -> Path:
    folder = tmp_path / "data"
    (folder / "evaluation").mkdir(parents=True)
    write_records(folder / "evaluation" / "hard.parquet", Problem, [problem(f"hard-{i}") for i in range(25)])
    write_records(folder / "evaluation" / "easy.parquet", Problem, [problem("easy-1"), problem("easy-2")])
    return folder


@pytest.fixture
def evaluate(tmp_path, data, tiny_model_folder):
    """A function (name of the output, settings, inputs) → what the step returned, its folder, its emitter."""

    def run(name: str, inputs=None, execution=None, **settings):
        output = tmp_path / name
        output.mkdir()
        emitter = Recorder()
        context = StepContext(
            "evaluation-x",
            {**SETTINGS, **settings},
            EXECUTION | (execution or {}),
            {"model": tiny_model_folder, "data": data, **(inputs or {})},
            output,
            tmp_path / "state",
            emitter,
        )
        return step.run(context), output, emitter

    return run


def test_every_set_is_measured_and_files_are_complete(evaluate):
    metrics, output, emitter = evaluate("out")
    found = json.loads((output / "scores.json").read_text())
    assert list(found) == ["easy", "hard"]
    assert {n: v["problems"] for n, v in found["hard"].items()} == dict.fromkeys(found["hard"], 25)
    assert metrics == {f"{s}/{m}": v["value"] for s, of_set in found.items() for m, v in of_set.items()}
    rows = [json.loads(line) for line in (output / "outcomes.jsonl").read_text().splitlines()]
    assert [row["set"] for row in rows] == ["easy"] * 2 + ["hard"] * 25
    assert all(len(row["verdicts"]) == len(row["tokens"]) == 4 for row in rows)
    readable = [json.loads(line) for line in (output / "generations.jsonl").read_text().splitlines()]
    assert [row["set"] for row in readable] == ["easy"] * 2 + ["hard"] * 20
    assert emitter.positions == sorted(emitter.positions) and emitter.positions[-1] == (108, 108)
    assert [row["tokens_per_second"] > 0 for row in emitter.rows[:2]] == [True, True]


def test_a_repetition_gives_the_same_bytes_and_another_seed_others(evaluate):
    folders = [evaluate("first")[1], evaluate("again")[1], evaluate("other", seed=4)[1]]
    texts = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders]
    assert texts[0] == texts[1]
    assert texts[0]["generations.jsonl"] != texts[2]["generations.jsonl"]


def test_a_set_gives_the_same_numbers_alone(evaluate):
    both, _, _ = evaluate("both")
    alone, output, _ = evaluate("alone", sets=["hard"])
    assert list(json.loads((output / "scores.json").read_text())) == ["hard"]
    assert alone == {name: value for name, value in both.items() if name.startswith("hard/")}


def test_a_specialist_is_measured_at_its_chosen_checkpoint(evaluate, tmp_path, tiny_model_folder):
    shutil.copytree(tiny_model_folder, tmp_path / "specialist" / "checkpoints" / "step-000002")
    (tmp_path / "specialist" / "checkpoints" / "step-000001").mkdir()
    (tmp_path / "probe").mkdir()
    (tmp_path / "probe" / "probe.json").write_text('{"selected": "step-000002"}')
    inputs = {"model": tmp_path / "specialist", "probe": tmp_path / "probe", "base": tiny_model_folder}
    assert evaluate("chosen", inputs)[0] == evaluate("itself")[0]


def test_an_absent_or_empty_set_is_refused(evaluate, data):
    with pytest.raises(DataError, match="no evaluation set 'harder'; the sets are easy, hard"):
        evaluate("absent", sets=["harder"])
    write_records(data / "evaluation" / "easy.parquet", Problem, [])
    with pytest.raises(DataError, match=r"easy\.parquet is empty"):
        evaluate("empty")


def test_what_was_measured_how_is_written_beside_the_scores(evaluate):
    _, output, _ = evaluate("one", evaluation=SETTINGS["evaluation"] | {"sets": {"easy": {"temperature": 0.5}}})
    found = json.loads((output / "evaluation.json").read_text())
    assert found["seed"] == 3 and list(found["sets"]) == ["easy", "hard"]
    assert [found["sets"][name]["settings"]["temperature"] for name in found["sets"]] == [0.5, 1.0]
    assert found["sets"]["hard"]["problems"] == 25 and found["tables"] == {"easy": {}, "hard": {}}
    rows = [json.loads(line) for line in (output / "outcomes.jsonl").read_text().splitlines()]
    assert {(row["domain"], row["level"]) for row in rows} == {("algebra", None)} and "cons" in rows[0]


def test_an_evaluation_goes_on_with_what_an_earlier_process_has_sampled(evaluate, tmp_path, monkeypatch):
    told, first, _ = evaluate("one", execution={"generations": str(tmp_path / "kept")})

    def refuse(*_, **__):
        raise AssertionError("a completion that is kept was sampled")

    monkeypatch.setattr("vibethinker.generation.transformers_engine.TransformersEngine.generate", refuse)
    again, second, emitter = evaluate("two", execution={"generations": str(tmp_path / "kept")})
    assert again == told | {"kept_completions": 27 * 4}
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()
    assert emitter.positions[-1][0] == emitter.positions[-1][1]
    with pytest.raises(AssertionError, match="was sampled"):
        evaluate("three", execution={"generations": str(tmp_path / "kept")}, seed=4)
