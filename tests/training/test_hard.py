"""The second stage of supervised training, and the solutions by which it knows what is hard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from vibethinker import solutions
from vibethinker.data.schema import Problem, Trace, read_records
from vibethinker.models import check_model_folder, load_state
from vibethinker.training import sft

pytestmark = pytest.mark.slow

COMMON = {"seed": 1, "deterministic": True, "domains": ["algebra"], "prompts": {}, "base_model": {}}


@pytest.fixture
def solved(new_step, taught_folder, data_folder):
    """A function → the context of a step `solutions`, run: the taught model's of sums."""

    def sample(samples: int = 4):
        asked = {"samples": samples, "k": [1], "temperature": 1.0, "top_p": 1.0, "max_tokens": 24}
        settings = COMMON | {"verification": {}, "model": "specialist-algebra", "evaluation": asked}
        context = new_step(settings, {"model": taught_folder, "data": data_folder})
        context.settings["measured"] = solutions.run(context)
        return context

    return sample


@pytest.fixture
def hard(new_step, taught_folder, tiny_model_folder, data_folder, tmp_path):
    """A function solutions → the context of a second stage, run: from the taught model's checkpoint."""

    def train(solved: Path, **settings):
        specialist = tmp_path / "specialist" / "checkpoints"
        shutil.copytree(tiny_model_folder, specialist / "step-000002")
        shutil.copytree(taught_folder, specialist / "step-000004")
        chosen = {"accuracy": 0.25, "epochs": 2} | settings
        rates = {"steps": 100, "batch_size": 8, "checkpoints": 4, "max_length": 64, "learning_rate": 1e-6}
        inputs = {"base": tiny_model_folder, "data": data_folder, "specialist": specialist.parent, "solutions": solved}
        context = new_step(COMMON | {"sft": rates, "hard": chosen}, inputs)
        context.settings["measured"] = sft.run(context)
        return context

    return train


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]


def test_right_solutions_become_traces_of_the_model_each_once(solved, data_folder):
    context = solved()
    found = read_records(context.output / "sft" / "algebra.parquet", Trace)
    problems = {p.id: p for p in read_records(data_folder / "rl" / "algebra.parquet", Problem)}
    assert [row["id"] for row in rows(context.output)] == list(problems)
    assert found
    assert len({(t.problem_id, t.text) for t in found}) == len(found) <= sum(r["correct"] for r in rows(context.output))
    for trace in found:
        assert (trace.answer, trace.verdict) == (problems[trace.problem_id].answer, "correct")
        assert (trace.teacher, trace.problem) == ("specialist-algebra", problems[trace.problem_id].problem)
        assert trace.sampling == {"temperature": 1.0, "top_p": 1.0, "max_tokens": 24}
    assert context.settings["measured"]["traces"] == len(found)


def test_the_second_stage_trains_the_last_checkpoint_on_rarely_solved_problems(solved, hard, taught_folder):
    known = solved().output
    few = [row for row in rows(known) if row["correct"] <= 1]  # of 4
    assert 0 < len(few) < 36
    context = hard(known)
    assert context.settings["measured"]["traces"] == len(few)
    steps = -(-2 * len(few) // 8)
    assert (context.output / "metrics.jsonl").read_text().count("\n") == steps
    last = context.output / "checkpoints" / f"step-{steps:06d}"
    check_model_folder(last)
    taught, trained = load_state(taught_folder), load_state(last)
    for name, tensor in taught.items():
        torch.testing.assert_close(trained[name], tensor, atol=1e-3, rtol=0)
    assert any(not torch.equal(trained[name], taught[name]) for name in taught)


def test_where_nothing_is_hard_the_model_stays(hard, taught_folder, tmp_path):
    (tmp_path / "outcomes.jsonl").write_text('{"id": "algebra-1-1", "samples": 4, "correct": 4}\n')
    context = hard(tmp_path)
    assert "nothing learned" in context.emit.warnings[0]
    [only] = (context.output / "checkpoints").iterdir()
    assert (only / "model.safetensors").read_bytes() == (taught_folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("correct", "samples", "kept"), [(2, 8, 1), (3, 8, 0), (0, 8, 1), (0, 0, 0), (1, 5, 1)])
def test_hard_is_what_at_most_that_share_of_graded_samples_solves(tmp_path, correct, samples, kept):
    (tmp_path / "outcomes.jsonl").write_text(json.dumps({"id": "a", "correct": correct, "samples": samples}))
    traces = [Trace(problem, "algebra", "1+1?", "2", "test") for problem in ("a", "unknown")]
    assert len(sft.rarely_solved(traces, tmp_path, 0.25)) == kept
