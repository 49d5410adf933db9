"""Self-distillation: which traces a student learns from, and that it learns from them."""

from __future__ import annotations

import json
import math

import pytest
import torch

from vibethinker.data.prompts import all_training_ids
from vibethinker.data.schema import Trace, read_records, write_records
from vibethinker.errors import DataError
from vibethinker.models import check_model_folder, load_model, load_state, load_tokenizer
from vibethinker.settings import Prompts, Selection
from vibethinker.training import distilled, selection
from vibethinker.training.selection import Scored, choose

pytestmark = pytest.mark.slow

COMMON = {"seed": 1, "deterministic": True, "prompts": {}, "base_model": {}}


def scored(lengths_and_scores, domain="algebra") -> list[Scored]:
    return [Scored(Trace(str(i), domain, "?", "!", "test"), n, s) for i, (n, s) in enumerate(lengths_and_scores)]


@pytest.fixture
def chosen(new_step, data_folder):
    """A function student, domains, **shares → the context of a step `selection`, run, on the traces of the data."""

    def select(student, domains=("algebra", "geometry"), inputs=None, **shares):
        settings = {"prompts": {}, "domains": list(domains), "selection": shares}
        context = new_step(settings, {"student": student, **(inputs or {"solutions-signal-1": data_folder})})
        context.settings["measured"] = selection.run(context)
        return context

    return select


@pytest.fixture
def trained(new_step, tiny_model_folder, data_folder):
    """A function **settings of sft → the context of a step `distilled`, run: the random model on the data's traces."""

    def train(**sft):
        sft = {"steps": 999, "batch_size": 24, "max_length": 64, "learning_rate": 1e-3} | sft
        inputs = {"student": tiny_model_folder, "traces": data_folder}
        context = new_step(COMMON | {"sft": sft, "epochs": 2}, inputs)
        context.settings["measured"] = distilled.run(context)
        return context

    return train


def rows(context, name: str) -> list[dict]:
    return [json.loads(line) for line in (context.output / name).read_text().splitlines()]


def test_the_middle_and_the_upper_part_of_each_bucket_are_kept():
    # Ten traces of each of two lengths; the longer ones score lower throughout.
    short, long = [(10, 2 + i / 10) for i in range(10)], [(99, 1 + i / 10) for i in range(10)]
    fates = choose(scored(short + long), Selection(buckets=2, shortest=0, lowest=0.3, outliers=0.1))
    assert fates == (["low"] * 3 + ["kept"] * 6 + ["outlier"]) * 2


def test_the_shortest_of_each_domain_are_dropped_whatever_they_score():
    some = scored([(n, float(n)) for n in range(1, 21)]) + scored([(100 + n, 1.0) for n in range(20)], "code")
    fates = choose(some, Selection(buckets=4, shortest=0.1, lowest=0, outliers=0))
    assert [i for i, fate in enumerate(fates) if fate != "kept"] == [0, 1, 20, 21]
    assert {fates[i] for i in (0, 1, 20, 21)} == {"short"}


@pytest.mark.parametrize("count", range(1, 6))
def test_of_few_traces_some_are_kept(count):
    assert "kept" in choose(scored([(n, 1.0) for n in range(count)]), Selection())


def test_the_score_is_the_mean_negative_log_likelihood_a_token(chosen, tiny_model_folder, data_folder):
    context = chosen(tiny_model_folder, ("geometry",))
    traces = read_records(data_folder / "sft" / "geometry.parquet", Trace)
    found = rows(context, "scores.jsonl")
    assert [row["problem"] for row in found] == [trace.problem_id for trace in traces]
    model = load_model(tiny_model_folder)
    pairs = all_training_ids(load_tokenizer(tiny_model_folder), traces[:5], Prompts())
    for row, (ids, mask) in zip(found, pairs, strict=False):
        labels = torch.tensor([token if counts else -100 for token, counts in zip(ids, mask, strict=True)])
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([ids]), labels=labels.unsqueeze(0)).loss
        assert row["score"] == pytest.approx(mean.item(), rel=1e-4)
        assert row["tokens"] == sum(mask)


def test_what_is_selected_lies_as_the_data_step_s_traces_do(chosen, taught_folder, data_folder):
    context = chosen(taught_folder)
    files = ("sft/algebra.parquet", "sft/geometry.parquet")
    known = {t.problem_id: t for file in files for t in read_records(data_folder / file, Trace)}
    kept = {row["problem"] for row in rows(context, "scores.jsonl") if row["fate"] == "kept"}
    found = [t for file in files for t in read_records(context.output / file, Trace)]
    assert {t.problem_id for t in found} == kept
    assert all(known[t.problem_id] == t for t in found)
    counts = json.loads((context.output / "selection.json").read_text())["counts"]
    assert sum(one["kept"] for one in counts.values()) == len(kept) == context.settings["measured"]["traces_kept"]
    assert 0 < len(kept) < 72
    again = chosen(taught_folder)
    for name in ("scores.jsonl", "selection.json", "sft/algebra.parquet"):
        assert (again.output / name).read_bytes() == (context.output / name).read_bytes()


def test_a_student_that_was_taught_the_traces_finds_them_likelier(chosen, taught_folder, tiny_model_folder):
    taught, new = chosen(taught_folder), chosen(tiny_model_folder)
    assert taught.settings["measured"]["nll"] < new.settings["measured"]["nll"] / 2


def test_a_trace_that_two_stages_wrote_counts_once_and_none_at_all_is_an_error(
    chosen, tiny_model_folder, data_folder, tmp_path
):
    both = {"solutions-signal-1": data_folder, "solutions-signal-2": data_folder}
    assert chosen(tiny_model_folder, inputs=both).settings["measured"]["traces"] == 72
    (tmp_path / "sft").mkdir()
    write_records(tmp_path / "sft" / "algebra.parquet", Trace, [])
    with pytest.raises(DataError, match="nothing to distil"):
        chosen(tiny_model_folder, inputs={"solutions-signal-1": tmp_path})


def test_a_distilled_model_is_a_whole_one_that_went_over_the_traces_so_often(trained, tiny_model_folder):
    context = trained()
    check_model_folder(context.output)
    assert not any(path.is_dir() for path in context.output.iterdir())
    losses = [row["loss"] for row in rows(context, "metrics.jsonl")]
    assert len(losses) == math.ceil(2 * 72 / 24)
    assert losses[-1] < losses[0]
    before, after = load_state(tiny_model_folder), load_state(context.output)
    assert set(before) == set(after)


def test_a_distilled_adapter_is_merged_into_the_student(trained, tiny_model_folder):
    context = trained(method="lora", lora={"rank": 4, "alpha": 4})
    check_model_folder(context.output)
    before, after = load_state(tiny_model_folder), load_state(context.output)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)
