"""Supervised training of a specialist: its checkpoints, its loss, its schedule, LoRA."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from vibethinker.data.schema import Trace, read_records
from vibethinker.errors import DataError, DivergedError, OutOfMemoryError
from vibethinker.models import check_model_folder, is_adapter, load_model, load_state, load_tokenizer, save_model
from vibethinker.models.trainable import PROJECTIONS
from vibethinker.settings import Prompts
from vibethinker.training import attention
from vibethinker.training.common import memory_errors, training_order
from vibethinker.training.sft import batches_by_length, checkpoint_steps, run, to_examples, to_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def specialist(new_step, tiny_model_folder, data_folder):
    """A function **settings of sft → the context of a specialist's step, run."""

    def train(*, base=tiny_model_folder, domains=("algebra",), precision="float32", micro=1024, **sft):
        sft = {"steps": 3, "batch_size": 8, "checkpoints": 1, "max_length": 64, "learning_rate": 1e-3} | sft
        settings = {
            "seed": 1,
            "deterministic": True,
            "domains": list(domains),
            "sft": sft,
            "prompts": {},
            "base_model": {"precision": precision},
        }
        context = new_step(settings, {"base": base, "data": data_folder}, sft_micro_tokens=micro)
        context.settings["measured"] = run(context)
        return context

    return train


def metrics(context) -> list[dict]:
    return [json.loads(line) for line in (context.output / "metrics.jsonl").read_text().splitlines()]


def weights(context, step: int = 3, base: Path | None = None) -> dict[str, torch.Tensor]:
    return dict(load_state(context.output / "checkpoints" / f"step-{step:06d}", base))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_kept_checkpoints_are_whole_models_at_even_distances(specialist):
    context = specialist(steps=6, checkpoints=3)
    folders = sorted((context.output / "checkpoints").iterdir())
    assert [folder.name for folder in folders] == ["step-000002", "step-000004", "step-000006"]
    for folder in folders:
        check_model_folder(folder)
        load_tokenizer(folder)
    states = [weights(context, step) for step in (2, 4, 6)]
    assert not torch.equal(states[0]["model.norm.weight"], states[2]["model.norm.weight"])


def test_the_same_seed_gives_the_same_bytes(specialist):
    assert digests(specialist().output) == digests(specialist().output)


def test_batch_1_with_accumulation_8_equals_batch_8(specialist):
    whole, parts = specialist(), specialist(micro=1)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], tensor, atol=2e-5, rtol=1e-4)
    for a, b in zip(metrics(whole), metrics(parts), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_the_loss_is_the_mean_over_completion_tokens_alone(specialist, tiny_model_folder, data_folder):
    context = specialist(steps=1, batch_size=36)  # one pass over the 36 traces
    model, tokenizer = load_model(tiny_model_folder), load_tokenizer(tiny_model_folder)
    examples, _ = to_examples(tokenizer, read_records(data_folder / "sft" / "algebra.parquet", Trace), Prompts(), 64)
    total = count = 0
    for example in examples:
        ids, labels = torch.tensor([example.ids]), torch.tensor(example.labels)
        with torch.no_grad():
            log_p = model(ids).logits[0].log_softmax(-1)
        counts = labels[1:] != -100
        total -= log_p[:-1].gather(1, ids[0, 1:, None])[counts].sum().item()
        count += int(counts.sum())
    assert metrics(context)[0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_the_learning_rate_warms_up_and_falls_to_its_final_value(specialist):
    context = specialist(steps=20, warmup=0.2, learning_rate=1e-3, final_learning_rate=1e-4)
    rates = [row["learning_rate"] for row in metrics(context)]
    assert rates[0] == 0
    assert max(rates) == rates[4] == pytest.approx(1e-3)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 1e-4 <= rates[-1] < 1.2e-4


def test_each_step_is_reported_and_written(specialist):
    context = specialist()
    assert [row["step"] for row in metrics(context)] == [1, 2, 3]
    assert set(metrics(context)[0]) >= {"loss", "grad_norm", "learning_rate", "token_accuracy"}
    assert [step for step, _ in context.emit.rows] == [1, 2, 3]
    assert context.emit.rows[-1][1]["trained_tokens_per_second"] > 0
    assert [position[:2] for position in context.emit.positions] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_longer_traces_are_left_out_and_counted(specialist, data_folder, tiny_tokenizer):
    traces = read_records(data_folder / "sft" / "algebra.parquet", Trace)
    lengths = [len(e.ids) for e in to_examples(tiny_tokenizer, traces, Prompts(), 999)[0]]
    limit = max(lengths) - 1
    context = specialist(max_length=limit)
    left_out = sum(length > limit for length in lengths)
    assert 0 < left_out < len(traces)
    assert context.settings["measured"]["traces_left_out"] == left_out
    assert context.settings["measured"]["traces"] == len(traces) - left_out
    assert str(left_out) in context.emit.warnings[0]


def test_traces_that_are_all_too_long_are_an_error(specialist):
    with pytest.raises(DataError, match="max_length"):
        specialist(max_length=5)


def test_a_mixture_trains_on_all_its_domains(specialist):
    assert specialist(domains=("algebra", "geometry")).settings["measured"]["traces"] == 72


def test_lora_leaves_adapters_on_all_seven_projections_and_the_base_as_it_was(specialist, tiny_model_folder):
    context = specialist(method="lora", lora={"rank": 4, "alpha": 8}, learning_rate=1e-2)
    folder = context.output / "checkpoints" / "step-000003"
    assert is_adapter(folder)
    merged, base = weights(context, base=tiny_model_folder), load_state(tiny_model_folder)
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert changed == {name for name in base if name.split(".")[-2] in PROJECTIONS}


def test_packed_traces_train_as_unpacked_ones_do(specialist, data_folder, tiny_tokenizer):
    """36 traces as 36 rows or packed into a few; either way one step sees them all."""
    traces = read_records(data_folder / "sft" / "algebra.parquet", Trace)
    rows = to_rows(to_examples(tiny_tokenizer, traces, Prompts(), 128)[0], 128)
    assert len(rows) < 12
    unpacked = specialist(steps=1, batch_size=36)
    packed = specialist(steps=1, batch_size=len(rows), packing=True, max_length=128, micro=300)
    assert metrics(packed)[0]["loss"] == pytest.approx(metrics(unpacked)[0]["loss"], rel=1e-4)
    assert metrics(packed)[0]["grad_norm"] == pytest.approx(metrics(unpacked)[0]["grad_norm"], rel=1e-3)


def test_sequences_end_to_end_train_as_padded_ones_do(specialist, monkeypatch):
    """As on a GPU, but for the kernel of the attention."""
    padded = specialist(batch_size=12)
    monkeypatch.setattr(attention, "use_varlen", lambda model, dtype: True)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block, **options: None)
    joined = specialist(batch_size=12, micro=200)
    for name, tensor in weights(padded).items():
        torch.testing.assert_close(weights(joined)[name], tensor, atol=2e-5, rtol=0)
    for ours, theirs in zip(metrics(joined), metrics(padded), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


def test_training_agrees_with_trls_trainer(specialist, tiny_model_folder, data_folder, tmp_path):
    """One step on the same sequences: TRL's loss of prompt and completion is this package's."""
    ours = metrics(specialist(steps=1, batch_size=36))[0]
    tokenizer = load_tokenizer(tiny_model_folder)
    traces = read_records(data_folder / "sft" / "algebra.parquet", Trace)
    examples, _ = to_examples(tokenizer, traces, Prompts(), 128)
    stock = SFTTrainer(
        model=load_model(tiny_model_folder),
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_steps=1,
            per_device_train_batch_size=36,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            max_length=None,
            logging_steps=1,
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list([{"input_ids": e.ids, "labels": e.labels} for e in examples]),
        processing_class=tokenizer,
    )
    stock.train()
    theirs = stock.state.log_history[0]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert ours["token_accuracy"] == pytest.approx(theirs["mean_token_accuracy"], rel=1e-4)


def test_moments_of_8_bits_train_nearly_as_well(specialist, new_tiny_model, tiny_tokenizer, tmp_path):
    save_model(
        new_tiny_model(0, hidden_size=64, intermediate_size=128), tiny_tokenizer, tmp_path
    )  # small ones stay whole
    full, small = (metrics(specialist(base=tmp_path, steps=8, optimizer=name))[-1] for name in ("adamw", "adamw_8bit"))
    assert small["loss"] == pytest.approx(full["loss"], rel=0.02)
    assert small["loss"] != full["loss"]


def test_bfloat16_trains_on_float32_weights_and_stores_bfloat16(specialist):
    context = specialist(precision="bfloat16")
    assert {tensor.dtype for tensor in weights(context).values()} == {torch.bfloat16}
    assert metrics(context)[-1]["loss"] < metrics(context)[0]["loss"]


def test_a_loss_that_is_no_number_halts(specialist, new_tiny_model, tiny_tokenizer, tmp_path):
    model = new_tiny_model(0)
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    save_model(model, tiny_tokenizer, tmp_path / "broken")
    with pytest.raises(DivergedError, match=r"loss became nan at update 1 \(evidence is in .*look at the weights"):
        specialist(base=tmp_path / "broken")


def test_running_out_of_device_memory_is_reported_as_such():
    with pytest.raises(OutOfMemoryError, match="micro-batch"), memory_errors():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_training_sees_every_example_once_a_pass_in_an_order_of_the_seed():
    order = training_order(10, 25, seed=1)
    assert len(order) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert training_order(10, 25, seed=1) == order
    assert training_order(10, 25, seed=2) != order


def test_a_longer_training_begins_with_the_order_of_a_shorter_one():
    assert training_order(10, 40, seed=1)[:25] == training_order(10, 25, seed=1)


def test_sorting_by_length_stays_within_a_batch():
    lengths = [5, 1, 4, 2, 3, 0]
    assert batches_by_length([0, 1, 2, 3, 4, 5], lengths, 3) == [1, 2, 0, 5, 3, 4]


def test_checkpoints_are_evenly_spaced_and_include_the_last_step():
    assert checkpoint_steps(100, 4) == [25, 50, 75, 100]
    assert checkpoint_steps(10, 3) == [3, 7, 10]
    assert checkpoint_steps(2, 2) == [1, 2]
