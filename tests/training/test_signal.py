"""A signal stage as a step: its model, its measurements, and the problems it leaves out."""

from __future__ import annotations

import json

import pytest
import torch

from vibethinker.data.prompts import prompt_ids
from vibethinker.data.schema import Problem, read_records, write_records
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.models import check_model_folder, load_model, load_state
from vibethinker.settings import Prompts
from vibethinker.training.samples import chosen, told
from vibethinker.training.signal import METRICS, run

pytestmark = pytest.mark.slow


@pytest.fixture
def signal(new_step, taught_folder, data_folder):
    """A function **settings of the objective → the context of a signal step, run."""

    def train(
        *, stage=None, data=data_folder, domains=("algebra",), micro=4096, seed=1, paths=None, sandbox=None, **objective
    ):
        stage = {"name": "sums", "context": 64, "steps": 2, "reward": "math"} | (stage or {})
        objective = {
            "group_size": 4,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "max_prompt_tokens": 32,
        } | objective
        settings = {
            "seed": seed,
            "deterministic": True,
            "stage": stage,
            "objective": objective,
            "domains": list(domains),
            "prompts": {},
            "verification": {},
            "base_model": {},
        }
        inputs = {"model": taught_folder, "data": data}
        context = new_step(settings, inputs, signal_micro_tokens=micro, paths=paths or {}, sandbox=sandbox or {})
        context.settings["measured"] = run(context)
        return context

    return train


def metrics(context) -> list[dict]:
    return [json.loads(line) for line in (context.output / "metrics.jsonl").read_text().splitlines()]


def counts(context) -> dict[str, int]:
    return json.loads((context.output / "signal.json").read_text())["counts"]


def test_a_stage_leaves_a_whole_model_that_has_moved(signal, taught_folder):
    context = signal()
    check_model_folder(context.output)
    before, after = load_state(taught_folder), load_state(context.output)
    assert set(before) == set(after)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_each_update_is_measured(signal):
    context = signal()
    rows, told = metrics(context), dict(context.emit.rows)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert [told[row["step"]][f"p_histogram/{right:02d} of 4"] for right in range(5)] == row["p_histogram"]
        assert set(row) == set(METRICS.values()) - {"kl", "importance"} | {"step"}
        assert sum(row["p_histogram"]) == 4
        assert sum(right * groups for right, groups in enumerate(row["p_histogram"])) / 16 == pytest.approx(row["p"])
        assert 0 < row["p"] < 1  # the taught model is right now and then
        assert row["reward"] == pytest.approx(row["p"])
        assert 0.5 <= row["weight"] <= 1


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(signal):
    first, again, other = signal(), signal(), signal(seed=2)
    for name in ("model.safetensors", "metrics.jsonl", "samples.jsonl", "signal.json"):
        assert (first.output / name).read_bytes() == (again.output / name).read_bytes()
    assert (first.output / "model.safetensors").read_bytes() != (other.output / "model.safetensors").read_bytes()


def test_some_groups_of_some_updates_are_kept_for_people_to_read(signal):
    context = signal()
    rows = [json.loads(line) for line in (context.output / "samples.jsonl").read_text().splitlines()]
    assert {row["update"] for row in rows} == {1, 2}
    for row in rows:
        verdicts = [sample["verdict"] for sample in row["samples"]]
        assert row["count"] == 4
        assert verdicts == ["correct"] * min(2, row["correct"]) + ["wrong"] * min(2, 4 - row["correct"])
        assert eval(row["problem"].removesuffix("?")) == int(row["gold"])


def test_the_groups_that_say_most_are_the_best_the_worst_and_the_most_disputed():
    def group(problem: int, *verdicts: float | None) -> list[dict]:
        text = "a" * 5000
        return [{"problem": problem, "verdict": v, "text": text, "tokens": 9, "truncated": False} for v in verdicts]

    groups = [group(0, 1, 0, 0), group(1, 0, 0, None), group(2, 1, 1, 0), group(3, 1, 1, 1), group(4, 0, 0, 0)]
    assert [one[0]["problem"] for one in chosen(groups)] == [0, 1, 3]
    assert [one[0]["problem"] for one in chosen([group(7, 1, 1, 1)])] == [7]
    told_of = told(groups[1])
    assert (told_of["correct"], told_of["count"]) == (0, 3)
    assert [one["verdict"] for one in told_of["samples"]] == ["wrong", "wrong", "infrastructure"]
    assert all(len(one["text"]) < 2100 for one in told_of["samples"])


def test_counts_cover_the_whole_stage(signal):
    context = signal()
    found = counts(context)
    assert found == {
        "problems": 36,
        "long_prompts": 0,
        "rollouts": 32,
        "groups": 8,
        "truncated": sum(round(row["truncated"] * 16) for row in metrics(context)),
        "infrastructure": 0,
        "refilled": 0,
        "zero_variance": sum(round(row["zero_variance"] * 4) for row in metrics(context)),
    }
    assert found.items() <= context.settings["measured"].items()
    assert context.settings["measured"]["seconds_training"] > 0


def test_reinforcement_raises_the_share_of_right_rollouts(signal):
    rows = metrics(signal(stage={"steps": 100}, batch_size=64, learning_rate=1e-3))
    before, after = (sum(row["p"] for row in part) / 15 for part in (rows[:15], rows[-15:]))
    assert after > before + 0.1


def test_a_completion_takes_at_most_what_the_context_leaves(signal):
    rows = metrics(signal(stage={"context": 34}))  # 2 tokens after max_prompt_tokens
    assert all(row["length"] <= 2 for row in rows)
    assert all(row["truncated"] > 0.5 and row["reward"] == 0 for row in rows)


def test_longer_prompts_are_left_out_and_counted(signal, data_folder, tiny_tokenizer, tmp_path):
    problems = read_records(data_folder / "rl" / "algebra.parquet", Problem)
    long = Problem("long", "algebra", "1+" * 40 + "1?", "test", "MIT", answer="41")
    assert len(prompt_ids(tiny_tokenizer, long, Prompts())) > 32
    (tmp_path / "rl").mkdir()
    write_records(tmp_path / "rl" / "algebra.parquet", Problem, [*problems, long])
    context = signal(data=tmp_path)
    assert (counts(context)["problems"], counts(context)["long_prompts"]) == (37, 1)


def test_prompts_that_are_all_too_long_are_an_error(signal):
    with pytest.raises(DataError, match="max_prompt_tokens"):
        signal(max_prompt_tokens=2)


def test_a_problem_without_gold_is_an_error_that_names_it(signal, tmp_path):
    (tmp_path / "rl").mkdir()
    write_records(tmp_path / "rl" / "algebra.parquet", Problem, [Problem("bare", "algebra", "1+1?", "test", "MIT")])
    with pytest.raises(DataError, match="bare has no gold answer"):
        signal(data=tmp_path)


def test_a_stage_that_rewards_code_needs_a_sandbox_or_leave_to_run_without(signal, tmp_path):
    tests = {"kind": "function", "entry_point": "f", "cases": [{"args": [1], "expected": 2}]}
    (tmp_path / "rl").mkdir()
    write_records(tmp_path / "rl" / "code.parquet", Problem, [Problem("c", "code", "f?", "test", "MIT", tests=tests)])
    with pytest.raises(ConfigurationError, match=r"sandbox\.allow_unsafe"):
        signal(data=tmp_path, domains=("code",), stage={"reward": "code"}, sandbox={"tier": "rlimits"})


def test_the_difficulty_filter_keeps_what_is_solved_sometimes(signal):
    context = signal(difficulty_samples=4)
    found = counts(context)
    assert 0 < found["never_solved"] + found["always_solved"] < 36
    assert found["never_solved"] > 0


def test_a_stage_can_have_its_own_problems_and_be_measured_on_others(signal, tmp_path):
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"problem": "2+3?", "answer": 5}\n{"problem": "4+4?", "answer": "8"}\n')
    stage = {"train_data": "mine.jsonl", "validation_data": "mine.jsonl"}
    context = signal(stage=stage, paths={"mine.jsonl": str(mine)})
    assert counts(context)["problems"] == 2
    validation = json.loads((context.output / "signal.json").read_text())["validation"]
    assert validation["avg@4"]["problems"] == 2
    assert context.settings["measured"]["validation/avg@4"] == validation["avg@4"]["value"]


def test_a_kl_term_is_measured_against_the_start_of_the_stage(signal):
    rows = metrics(signal(beta=0.1))
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[1]["kl"] > 0


def test_lora_ends_in_a_whole_model_with_changed_projections_only(signal, taught_folder):
    context = signal(method="lora", lora={"rank": 4, "alpha": 4}, learning_rate=1e-2)
    check_model_folder(context.output)
    before, after = load_state(taught_folder), load_state(context.output)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)
    assert load_model(context.output).dtype == torch.float32


def test_the_parent_hears_of_rollouts_and_grading(signal):
    texts = {text.split()[0] if "grading" in text else text for _, _, text in signal().emit.positions}
    assert "grading" in texts
    assert any("rollouts" in text for text in texts)


def test_rollouts_are_graded_while_others_are_sampled_and_each_generation_anew():
    from vibethinker.generation import Completion
    from vibethinker.training.rollouts import RolloutGrading
    from vibethinker.verification import Verifier

    problems = [Problem(str(n), "algebra", f"{n}?", "test", "MIT", answer=str(n)) for n in range(2)]
    with Verifier() as verifier:
        grading = RolloutGrading(verifier, problems, lambda text: None)
        grading.ended(0, Completion("\\boxed{0}", 5, False, ()))
        grading.ended(1, Completion("\\boxed{1", 5, True, ()))  # truncated: never graded
        assert verifier.statistics.values() == {}
        assert grading(["\\boxed{0}", "\\boxed{0}", "\\boxed{\\sqrt{1}}"], [0, 1, 1]) == [True, False, True]
        assert grading(["\\boxed{7}"], [0]) == [False]
        counts = {name: n for name, n in verifier.statistics.values().items() if "seconds" not in name}
    assert counts == {"math/correct": 2, "math/wrong": 2}
