"""One training step over two real processes on the CPU, started as the product starts them, against one process."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.worker.test_worker import ROOT
from vibethinker.artifacts import Store
from vibethinker.errors import DivergedError
from vibethinker.settings import BaseModelSettings, Objective, Prompts, Sft, Stage, Verification
from vibethinker.worker.host import Host

pytestmark = pytest.mark.slow

# Sums of float32 in another order. AdamW divides a gradient by its own size, so that where one is all but zero, its
# rounding decides the sign of an update: weights differ by parts of the learning rate, not of themselves.
LOSS = {"rel": 1e-4, "abs": 1e-5}
RATE = 1e-3


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with Host(tmp_path_factory.mktemp("host") / "worker.log", env=env, fork=sys.platform == "linux") as host:
        yield host


@pytest.fixture
def run(host: Host, tmp_path: Path) -> Callable[..., Path]:
    """A function kind, settings, inputs, **execution → the folder that the step published."""
    made = 0

    def run(kind: str, settings: dict[str, Any], inputs: dict[str, Path], **execution: Any) -> Path:
        nonlocal made
        made += 1
        workspace = tmp_path / str(made)
        store = Store(workspace)
        for role, folder in inputs.items():
            at = store.folder(role, "f")
            at.mkdir(parents=True)
            for file in folder.iterdir():
                (at / file.name).symlink_to(file)
            manifest = {"schema": 1, "fingerprint": "f", "files": {}, "inputs": {}, "metrics": {}, "seconds": 0.0}
            (at / "manifest.json").write_text(json.dumps(manifest))
        defaults = {
            "device": "cpu",
            "threads": 2,
            "sft_micro_tokens": 4096,
            "signal_micro_tokens": 4096,
            "gradient_checkpointing": None,
            "engine": "transformers",
            "vllm": {},
            "sharding": "ddp",
            "generation_batch": 64,
            "sandbox": {},
            "verifier_workers": 2,
            "backend": "transformers",
            "paths": {},
        }
        request = {
            "workspace": str(workspace),
            "step": "step",
            "kind": kind,
            "fingerprint": "f",
            "settings": {"seed": 1, "deterministic": True, "base_model": BaseModelSettings().semantic(), **settings},
            "inputs": {role: [role, "f"] for role in inputs},
            "execution": defaults | execution,
            "log": str(workspace / "step.log"),
            "stall_seconds": 60.0,
        }
        try:
            return Path(host.run(request, lambda e: None)["folder"])
        finally:
            print((workspace / "step.log").read_text())  # pytest shows it where the test fails

    return run


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def values(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows]


@pytest.fixture
def specialist(run: Callable[..., Path], tiny_model_folder: Path, data_folder: Path) -> Callable[..., Path]:
    def train(sft: dict[str, Any], **execution: Any) -> Path:
        made = Sft(**{"steps": 4, "batch_size": 8, "max_length": 96, "learning_rate": RATE, "checkpoints": 1, **sft})
        settings = {"domains": ["algebra"], "sft": made.semantic(), "prompts": Prompts().semantic()}
        return run("specialist", settings, {"base": tiny_model_folder, "data": data_folder}, **execution)

    return train


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("sft", "micro_tokens"),
    [({}, 4096), ({"method": "lora"}, 100)],
    ids=["full in one pass", "adapters in micro-batches"],
)
def test_two_processes_train_what_one_trains(
    specialist: Callable[..., Path], sft: dict[str, Any], micro_tokens: int, sharding: str
) -> None:
    one, two = (
        specialist(sft, processes=processes, sharding=sharding, sft_micro_tokens=micro_tokens) for processes in (1, 2)
    )
    assert len(logged(two)) == 4
    for folder, threads in ((one, 2), (two, 1)):
        manifest = json.loads((folder / "manifest.json").read_text())
        assert (manifest["seed"], manifest["deterministic"]) == (1, True)
        assert manifest["environment"]["deterministic_algorithms"] is True
        assert manifest["environment"]["threads"] == threads
    for name in ("loss", "grad_norm", "learning_rate", "token_accuracy"):
        assert values(logged(two), name) == pytest.approx(values(logged(one), name), **LOSS), name
    assert [file.name for file in sorted((two / "checkpoints").rglob("*"))] == [
        file.name for file in sorted((one / "checkpoints").rglob("*"))
    ]
    for file in (one / "checkpoints").rglob("*"):
        if file.suffix == ".safetensors":
            first, second = load_file(file), load_file(two / file.relative_to(one))
            assert set(first) == set(second)
            for name, weights in first.items():
                assert weights.dtype == second[name].dtype
                assert torch.allclose(weights, second[name], atol=0.2 * RATE, rtol=0), name
                assert (weights - second[name]).abs().mean() < 1e-3 * RATE, name
        elif file.is_file():
            assert file.read_bytes() == (two / file.relative_to(one)).read_bytes()


def test_all_processes_halt_at_a_sign_and_the_first_keeps_the_evidence(
    run: Callable[..., Path], tiny_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match="loss became nan at update 1"):
        run("tests.training.sharded_step:broken", {}, {"base": tiny_model_folder}, processes=2)
    [summary] = tmp_path.glob("1/checkpoints/step/f/evidence/update-1/divergence.json")
    assert json.loads(summary.read_text())["sign"] == "not_finite"


@pytest.mark.parametrize(("sharding", "share"), [("ddp", 1.0), ("fsdp", 0.5)])
def test_a_process_holds_the_whole_model_or_its_part(
    run: Callable[..., Path], tiny_model_folder: Path, sharding: str, share: float
) -> None:
    made = run("tests.training.sharded_step:held", {}, {"base": tiny_model_folder}, processes=2, sharding=sharding)
    assert json.loads((made / "manifest.json").read_text())["metrics"]["held"] == pytest.approx(share, rel=0.02)


@pytest.fixture
def signal(run: Callable[..., Path], taught_folder: Path, data_folder: Path) -> Callable[..., Path]:
    def train(objective: dict[str, Any], **execution: Any) -> Path:
        made = Objective(
            **{"group_size": 4, "batch_size": 16, "learning_rate": RATE, "max_prompt_tokens": 64, **objective}
        )
        settings = {
            "domains": ["algebra"],
            "prompts": Prompts().semantic(),
            "verification": Verification().semantic(),
            "stage": Stage(name="math", context=96, steps=3).semantic(),
            "objective": made.semantic(),
        }
        return run("signal", settings, {"model": taught_folder, "data": data_folder}, **execution)

    return train


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
def test_two_processes_sample_and_reward_what_one_does(signal: Callable[..., Path], sharding: str) -> None:
    one, two = (signal({"difficulty_samples": 4}, processes=processes, sharding=sharding) for processes in (1, 2))
    counts = [json.loads((folder / "signal.json").read_text())["counts"] for folder in (one, two)]
    assert counts[0] == counts[1]
    assert counts[0]["rollouts"] == 3 * 16
    rows, other = logged(one), logged(two)
    assert any(row["zero_variance"] < 1 for row in rows)
    assert values(other, "p_histogram") == values(rows, "p_histogram")
    for name in set(rows[0]) - {"p_histogram", "engine_gap"}:
        assert values(other, name) == pytest.approx(values(rows, name), **LOSS), name
    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert set(first) == set(second)
    for name, weights in first.items():
        assert torch.allclose(weights, second[name], atol=0.2 * RATE, rtol=0), name


def test_adapters_of_a_sharded_stage_with_refills_are_merged_into_its_model(
    signal: Callable[..., Path], taught_folder: Path
) -> None:
    made = signal({"method": "lora", "refill": 1}, processes=2, sharding="fsdp")
    counts = json.loads((made / "signal.json").read_text())["counts"]
    assert counts["refilled"] > 0
    assert counts["rollouts"] > 3 * 16
    before, after = (load_file(folder / "model.safetensors") for folder in (taught_folder, made))
    assert set(after) == set(before)
    changed = {name for name, weights in after.items() if not torch.equal(weights, before[name])}
    assert changed == {name for name in before if "_proj" in name}
