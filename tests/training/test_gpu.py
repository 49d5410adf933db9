"""What a CPU can't show: attention by lengths, compiled blocks, and stages whose rollouts come from vLLM."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from vibethinker.models import load_state
from vibethinker.models.trainable import load_trainable
from vibethinker.settings import Lora
from vibethinker.training import packed, signal

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

LENGTHS = [37, 5, 120]


@pytest.fixture
def folder(new_tiny_model, tiny_tokenizer, tmp_path) -> Path:
    from vibethinker.models import save_model

    save_model(new_tiny_model(0, hidden_size=128, intermediate_size=256), tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


def trainable(folder: Path, method: str = "full", quantization: str = "none", dtype: torch.dtype = torch.bfloat16):
    return load_trainable(
        folder,
        method=method,
        quantization=quantization,
        device="cuda",
        dtype=dtype,
        lora=Lora(),
        max_length=128,
    )


@pytest.mark.parametrize(
    ("method", "quantization", "compiled"),
    [("full", "none", False), ("full", "none", True), ("lora", "none", True), ("lora", "nf4", False)],
)
def test_sequences_end_to_end_have_the_loss_and_gradients_of_single_ones(folder, method, quantization, compiled):
    model = trainable(folder, method, quantization)
    assert packed.prepare(model, torch.bfloat16, compiled=compiled)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(5, 300, (length,), generator=generator) for length in LENGTHS]
    labels = [row.index_fill(0, torch.tensor([0]), -100) for row in rows]

    def measured(groups: list[list[int]]) -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        total = 0.0
        for group in groups:
            ids, wanted = (torch.cat([some[i] for i in group]) for some in (rows, labels))
            with torch.autocast("cuda", torch.bfloat16):
                loss, _ = packed.nll(model, packed.plain(model), ids, wanted, [LENGTHS[i] for i in group], 0.01)
            loss.backward()
            total += loss.item()
        return total, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    together, alone = measured([[0, 1, 2]]), measured([[0], [1], [2]])
    assert together[0] == pytest.approx(alone[0], rel=2e-3)
    for ours, theirs in zip(together[1], alone[1], strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.03 * float(theirs.abs().max()) + 1e-6, rtol=0)


def test_what_the_kernel_can_not_compute_is_left_to_sdpa(folder):
    assert not packed.prepare(trainable(folder, dtype=torch.float32), torch.float32)


@pytest.mark.skipif("VIBETHINKER_GPU_MODEL" not in os.environ, reason="VIBETHINKER_GPU_MODEL names no model folder")
@pytest.mark.parametrize(("method", "quantization"), [("full", "none"), ("lora", "none"), ("lora", "nf4")])
@pytest.mark.parametrize("sleep", [False, True])
def test_a_stage_samples_from_its_policy_by_vllm(new_step, data_folder, method, quantization, sleep):
    start = Path(os.environ["VIBETHINKER_GPU_MODEL"])
    settings = {
        "seed": 1,
        "deterministic": False,
        "stage": {"name": "sums", "context": 256, "steps": 3, "reward": "math"},
        "objective": {
            "group_size": 4,
            "batch_size": 32,
            "learning_rate": 1e-4 if method == "lora" else 1e-5,
            "max_prompt_tokens": 128,
            "method": method,
        },
        "domains": ["algebra"],
        "prompts": {"math_suffix": " Put your final answer within \\boxed{}."},
        "verification": {},
        "base_model": {"precision": "bfloat16", "quantization": quantization},
    }
    how = {"device": "cuda", "engine": "vllm", "vllm": {"sleep": sleep, "eager": True}, "generation_batch": 32}
    context = new_step(settings, {"model": start, "data": data_folder}, **how)
    signal.run(context)
    rows = [json.loads(line) for line in (context.output / "metrics.jsonl").read_text().splitlines()]
    assert all(row["engine_gap"] < 0.05 for row in rows)
    assert all(0.95 < row["importance"] < 1.05 for row in rows if "importance" in row)
    before, after = load_state(start), load_state(context.output)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in moved)
    assert ("model.embed_tokens.weight" in moved) == (method == "full")
