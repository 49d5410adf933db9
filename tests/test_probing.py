"""Which checkpoint probing chooses, and what its step writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vibethinker import probing
from vibethinker.data.schema import Problem, write_records
from vibethinker.errors import ConfigurationError, DataError
from vibethinker.evaluation.measuring import Outcome
from vibethinker.generation import Completion
from vibethinker.models import save_model
from vibethinker.settings import Probing
from vibethinker.steps import StepContext
from vibethinker.verification import Verdict

pytestmark = pytest.mark.slow

EXECUTION = {"device": "cpu", "threads": 1, "generation_batch": 16, "sandbox": {}, "verifier_workers": 1}
SETTINGS = {
    "seed": 3,
    "domain": "algebra",
    "probing": {"samples": 4, "k": 2, "report_k": [1, 4, 8], "max_tokens": 6},
    "prompts": {},
    "verification": {},
}


def problem(id: str) -> Problem:
    return Problem(id=id, domain="algebra", problem=f"What is {id}?", source="test", licence="MIT", answer="7")


def outcomes(*right: int, n: int = 8, failed: int = 0) -> list[Outcome]:
    """Problems with that many right samples of n, and `failed` more on which the verifier failed."""
    completion = Completion("", 5, False, (1,) * 5)
    return [
        Outcome(
            problem(str(i)),
            (completion,) * (n + failed),
            (Verdict("correct", "7", 0.0),) * c
            + (Verdict("wrong", "8", 0.0),) * (n - c)
            + (Verdict("error", "7", 0.0),) * failed,
        )
        for i, c in enumerate(right)
    ]


def test_the_choice_follows_pass_at_k_not_pass_at_1():
    settings = Probing(samples=8, k=4)
    narrow = probing.candidate("narrow", outcomes(8, 8, 0, 0), settings)
    wide = probing.candidate("wide", outcomes(2, 2, 2, 2), settings)
    assert narrow["pass_at"]["1"]["value"] == 0.5 > wide["pass_at"]["1"]["value"] == 0.25
    assert narrow["pass_at"]["4"]["value"] == 0.5 < wide["pass_at"]["4"]["value"]
    assert probing.choose([narrow, wide], 4) == "wide"
    assert probing.choose([narrow, wide], 1) == "narrow"


def test_for_comparison_loss_pass_at_1_or_nothing_chooses(tmp_path: Path):
    settings = Probing(samples=8, k=4, report_k=(), select="pass_at_1")
    names = ("step-000010", "step-000020", "step-000030")
    found = [probing.candidate(n, outcomes(*c), settings) for n, c in zip(names, [(8, 0), (2, 2), (1, 1)], strict=True)]
    rows = [{"step": step, "loss": loss} for step, loss in ((5, 3.0), (10, 1.0), (11, 0.5), (20, 0.7), (30, 0.9))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    losses = probing.training_losses(tmp_path, [tmp_path / name for name in names])
    assert losses == {n: {"loss": pytest.approx(loss)} for n, loss in zip(names, (2.0, 0.6, 0.9), strict=True)}
    with_losses = [one | losses[one["checkpoint"]] for one in found]
    chosen = {s: probing.choose(with_losses, 4, s) for s in ("pass_at_k", "pass_at_1", "loss", "last")}
    assert list(chosen.values()) == [names[1], names[0], names[1], names[2]]
    with pytest.raises(ConfigurationError, match=r"select is loss, and .* has no metrics\.jsonl"):
        probing.training_losses(tmp_path / "mine", [tmp_path / name for name in names])


def test_a_tie_goes_to_the_earlier_checkpoint():
    settings = Probing(samples=8, k=4)
    tied = [probing.candidate(name, outcomes(2, 2), settings) for name in ("step-000010", "step-000020")]
    assert probing.choose(tied, 4) == "step-000010"


def test_a_candidate_reports_each_k_up_to_n_with_its_interval():
    found = probing.candidate("c", outcomes(1, 0, 5, 8), Probing(samples=8, k=2, report_k=(1, 4, 8, 16)))
    assert list(found["pass_at"]) == ["1", "2", "4", "8"]
    assert all(
        set(s) == {"value", "low", "high"} and s["low"] <= s["value"] <= s["high"] for s in found["pass_at"].values()
    )
    assert found["pass_at"]["8"]["value"] == 0.75
    assert (found["checkpoint"], found["problems"], found["samples"], found["left_out"]) == ("c", 4, 8, 0)


def test_samples_on_which_the_verifier_failed_count_neither_way():
    found = probing.candidate("c", outcomes(4, n=6, failed=2), Probing(samples=8, k=2, report_k=(1,)))
    assert found["pass_at"]["1"]["value"] == pytest.approx(4 / 6)
    assert found["left_out"] == 2


def test_more_draws_than_samples_are_refused():
    with pytest.raises(ConfigurationError, match="K is 9 but only 8 samples"):
        probing.check_k(Probing(samples=8, k=9))


class Recorder:
    def __init__(self) -> None:
        self.positions, self.steps = [], []

    def progress(self, done, total, text=""):
        self.positions.append((done, total))

    def metrics(self, step, values):
        self.steps.append((step, sorted(values)))

    def warning(self, text): ...


@pytest.fixture
def inputs(tmp_path, new_tiny_model, tiny_tokenizer, tiny_model_folder) -> dict[str, Path]:
    for seed in (1, 2):
        folder = tmp_path / "specialist" / "checkpoints" / f"step-00000{seed}"
        save_model(new_tiny_model(seed), tiny_tokenizer, folder)
    for split, count in (("probe", 3), ("validation", 2)):
        (tmp_path / "data" / split).mkdir(parents=True)
        problems = [problem(f"{split}-{number}") for number in range(count)]
        write_records(tmp_path / "data" / split / "algebra.parquet", Problem, problems)
    return {"base": tiny_model_folder, "specialist": tmp_path / "specialist", "data": tmp_path / "data"}


@pytest.fixture
def probe(tmp_path, inputs):
    def run(name: str, **settings):
        output = tmp_path / name
        output.mkdir()
        emitter = Recorder()
        merged = {**SETTINGS, **settings}
        context = StepContext("probe-algebra", merged, EXECUTION, inputs, output, tmp_path / "state", emitter)
        return probing.run(context), output, emitter

    return run


def test_the_step_measures_every_checkpoint_and_the_chosen_one_again(probe):
    metrics, output, emitter = probe("out")
    found = json.loads((output / "probe.json").read_text())
    assert (found["domain"], found["k"]) == ("algebra", 2)
    assert [c["checkpoint"] for c in found["candidates"]] == ["step-000001", "step-000002"]
    assert [c["problems"] for c in found["candidates"]] == [3, 3] and found["validation"]["problems"] == 2
    assert found["selected"] == found["validation"]["checkpoint"] == probing.choose(found["candidates"], 2)
    assert 0 < metrics.pop("generated_tokens") <= 4 * (3 + 3 + 2) * SETTINGS["probing"]["max_tokens"]
    assert metrics == {f"pass@{k}": found["validation"]["pass_at"][str(k)]["value"] for k in (1, 2, 4)} | {
        "checkpoints": 2
    }
    rows = [json.loads(line) for line in (output / "outcomes.jsonl").read_text().splitlines()]
    assert [(r["checkpoint"], r["split"], r["id"]) for r in rows][2:7] == [
        ("step-000001", "probe", "probe-2"),
        *(("step-000002", "probe", f"probe-{i}") for i in range(3)),
        (found["selected"], "validation", "validation-0"),
    ]
    assert emitter.positions == sorted(emitter.positions) and emitter.positions[-1] == (32, 32)
    *measured, (_, verified) = emitter.steps
    names = ["generated_tokens", "pass@1", "pass@2", "pass@4", "tokens_per_second"]
    assert measured == [(1, names), (2, names)]
    assert {"verifier/math/no_answer", "verifier/math/seconds_p95"} <= set(verified)


def test_the_only_checkpoint_is_chosen_by_loss_though_nothing_tells_one(probe, inputs):
    """As where a second stage finds no hard problem."""
    (inputs["specialist"] / "checkpoints" / "step-000002").rename(inputs["specialist"] / "unused")
    output = probe("out", probing={**SETTINGS["probing"], "select": "loss"})[1]
    assert json.loads((output / "probe.json").read_text())["selected"] == "step-000001"


def test_a_repetition_gives_the_same_bytes(probe):
    first, again = probe("first")[1], probe("again")[1]
    assert {f.name: f.read_bytes() for f in first.iterdir()} == {f.name: f.read_bytes() for f in again.iterdir()}


def test_an_adapter_checkpoint_is_probed_on_its_base(probe, inputs, tiny_model_folder, tiny_tokenizer):
    from peft import LoraConfig, get_peft_model

    from vibethinker.models import load_model

    shutil.rmtree(inputs["specialist"])
    model = get_peft_model(load_model(tiny_model_folder), LoraConfig(r=2, target_modules=["q_proj"]))
    save_model(model, tiny_tokenizer, inputs["specialist"] / "checkpoints" / "step-000005")
    probe("out")


def test_missing_checkpoints_problems_and_impossible_k_are_refused(probe, inputs):
    with pytest.raises(ConfigurationError, match="K <= n"):
        probe("k", probing={"samples": 4, "k": 8})
    write_records(inputs["data"] / "validation" / "algebra.parquet", Problem, [])
    with pytest.raises(DataError, match="has no problems to probe with"):
        probe("empty")
    shutil.rmtree(inputs["specialist"] / "checkpoints")
    write_records(inputs["data"] / "validation" / "algebra.parquet", Problem, [problem("v")])
    with pytest.raises(ConfigurationError, match="has no folder in checkpoints/"):
        probe("none")
