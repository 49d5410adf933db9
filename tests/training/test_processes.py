"""One training step over two real processes on the CPU, started as the product starts them, against one process, and
stopped in the middle against left alone."""

from __future__ import annotations

import json
import os
import signal as signals
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.worker.test_worker import ROOT, assert_gone
from vibethinker.artifacts import Store
from vibethinker.errors import DivergedError, InfrastructureError, PreemptedError
from vibethinker.settings import BaseModelSettings, Objective, Prompts, Sft, Stage, Verification
from vibethinker.worker.host import Event, Host

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


@dataclass
class Step:
    """A step in a workspace of its own; what it saved is there when it is run again."""

    host: Host
    request: dict[str, Any]

    def run(
        self, hear: Callable[[Event], None] = lambda event: None, asked: Callable[[], bool] = lambda: False
    ) -> Path:
        """Run it to its end; the folder that it published."""
        try:
            return Path(self.host.run(self.request, hear, asked)["folder"])
        finally:
            print(Path(self.request["log"]).read_text())  # pytest shows it where the test fails

    def saved(self) -> list[int]:
        """The updates after which its state was saved."""
        return sorted(int(path.name) for path in Path(self.request["workspace"]).glob("checkpoints/step/f/updates/0*"))


@pytest.fixture
def new(host: Host, tmp_path: Path) -> Callable[..., Step]:
    """A function kind, settings, inputs, **execution → the step."""
    made = 0

    def new(kind: str, settings: dict[str, Any], inputs: dict[str, Path], **execution: Any) -> Step:
        nonlocal made
        made += 1
        workspace = tmp_path / str(made)
        workspace.mkdir()
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
            "stop_seconds": 30.0,
        }
        return Step(host, request)

    return new


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def values(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows]


@pytest.fixture
def specialist(new: Callable[..., Step], tiny_model_folder: Path, data_folder: Path) -> Callable[..., Step]:
    def train(sft: dict[str, Any], kind: str = "specialist", **execution: Any) -> Step:
        made = Sft(**{"steps": 4, "batch_size": 8, "max_length": 96, "learning_rate": RATE, "checkpoints": 1, **sft})
        settings = {"domains": ["algebra"], "sft": made.semantic(), "prompts": Prompts().semantic()}
        return new(kind, settings, {"base": tiny_model_folder, "data": data_folder}, **execution)

    return train


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("sft", "micro_tokens"),
    [({}, 4096), ({"method": "lora"}, 100)],
    ids=["full in one pass", "adapters in micro-batches"],
)
def test_two_processes_train_what_one_trains(
    specialist: Callable[..., Step], sft: dict[str, Any], micro_tokens: int, sharding: str
) -> None:
    one, two = (
        specialist(sft, processes=processes, sharding=sharding, sft_micro_tokens=micro_tokens).run()
        for processes in (1, 2)
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
    new: Callable[..., Step], tiny_model_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match="loss became nan at update 1"):
        new("tests.training.sharded_step:broken", {}, {"base": tiny_model_folder}, processes=2).run()
    [summary] = tmp_path.glob("1/checkpoints/step/f/evidence/update-1/divergence.json")
    assert json.loads(summary.read_text())["sign"] == "not_finite"


@pytest.mark.parametrize(("sharding", "share"), [("ddp", 1.0), ("fsdp", 0.5)])
def test_a_process_holds_the_whole_model_or_its_part_and_listens_on_loopback_alone(
    new: Callable[..., Step], tiny_model_folder: Path, sharding: str, share: float
) -> None:
    made = new(
        "tests.training.sharded_step:held", {}, {"base": tiny_model_folder}, processes=2, sharding=sharding
    ).run()
    metrics = json.loads((made / "manifest.json").read_text())["metrics"]
    assert metrics["held"] == pytest.approx(share, rel=0.02)
    assert metrics["listening"] and not metrics["reachable"]


@pytest.fixture
def signal(new: Callable[..., Step], taught_folder: Path, data_folder: Path) -> Callable[..., Step]:
    def train(objective: dict[str, Any], steps: int = 3, **execution: Any) -> Step:
        made = Objective(
            **{"group_size": 4, "batch_size": 16, "learning_rate": RATE, "max_prompt_tokens": 64, **objective}
        )
        settings = {
            "domains": ["algebra"],
            "prompts": Prompts().semantic(),
            "verification": Verification().semantic(),
            "stage": Stage(name="math", context=96, steps=steps).semantic(),
            "objective": made.semantic(),
        }
        return new("signal", settings, {"model": taught_folder, "data": data_folder}, **execution)

    return train


@pytest.mark.parametrize(
    ("sharding", "micro_tokens"),
    [("ddp", 4096), ("ddp", 150), ("fsdp", 4096)],
    ids=["ddp", "ddp in micro-batches of unlike numbers of rows", "fsdp"],
)
def test_two_processes_sample_and_reward_what_one_does(
    signal: Callable[..., Step], sharding: str, micro_tokens: int
) -> None:
    how = {"sharding": sharding, "signal_micro_tokens": micro_tokens}
    one, two = (signal({"difficulty_samples": 4}, processes=processes, **how).run() for processes in (1, 2))
    counts = [json.loads((folder / "signal.json").read_text())["counts"] for folder in (one, two)]
    assert counts[0] == counts[1]
    assert counts[0]["rollouts"] == 3 * 16
    rows, other = logged(one), logged(two)
    assert any(row["zero_variance"] < 1 for row in rows)
    assert values(other, "p_histogram") == values(rows, "p_histogram")
    # TRL's entropy is a mean over micro-batches, which two processes cut otherwise.
    compared = set(rows[0]) - {"p_histogram", "engine_gap"} - ({"entropy"} if micro_tokens < 4096 else set())
    for name in compared:
        assert values(other, name) == pytest.approx(values(rows, name), **LOSS), name
    first, second = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert set(first) == set(second)
    for name, weights in first.items():
        assert torch.allclose(weights, second[name], atol=0.2 * RATE, rtol=0), name


def test_adapters_of_a_sharded_stage_with_refills_are_merged_into_its_model(
    signal: Callable[..., Step], taught_folder: Path
) -> None:
    made = signal({"method": "lora", "refill": 1}, processes=2, sharding="fsdp").run()
    counts = json.loads((made / "signal.json").read_text())["counts"]
    assert counts["refilled"] > 0
    assert counts["rollouts"] > 3 * 16
    before, after = (load_file(folder / "model.safetensors") for folder in (taught_folder, made))
    assert set(after) == set(before)
    changed = {name for name, weights in after.items() if not torch.equal(weights, before[name])}
    assert changed == {name for name in before if "_proj" in name}


# What a training of several processes is stopped by, and what its end says.
WAYS = {
    "all killed": (InfrastructureError, "killed by SIGKILL"),
    "one killed": (InfrastructureError, "killed by SIGKILL.*rank 1 of 2"),
    "asked": (PreemptedError, "asked to stop"),
}
STEPS = 7


def ranks(host: Host) -> tuple[int, int, dict[str, float]]:
    """The two processes of the host's only step, and all that they started with them."""
    server = psutil.Process(host._process.pid)
    forking = [child for child in server.children() if os.getpgid(child.pid) == server.pid]
    [first] = [child for one in (server, *forking) for child in one.children() if os.getpgid(child.pid) == child.pid]
    [second] = [child for child in first.children() if os.getpgid(child.pid) == first.pid]
    everyone = [first.pid, *(child.pid for child in first.children(recursive=True))]
    return first.pid, second.pid, {str(pid): pid for pid in everyone}


def stopped(step: Step, way: str, update: int) -> None:
    """Run a step and stop it once this update is told; nothing of it is left but what it saved."""
    pids: dict[str, float] = {}
    told = 0

    def hear(event: Event) -> None:
        nonlocal told
        told = event["step"] if event["event"] == "metrics" else told
        if pids or told < update:
            return
        first, second, everyone = ranks(step.host)
        pids.update(everyone)
        if way == "all killed":
            os.killpg(first, signals.SIGKILL)
        elif way == "one killed":
            os.kill(second, signals.SIGKILL)

    error, words = WAYS[way]
    with pytest.raises(error, match=words) as caught:
        step.run(hear, lambda: way == "asked" and bool(pids))
    assert type(caught.value) is error
    assert_gone(pids)
    if way == "asked":
        assert max(step.saved()) == told


def resumed(step: Step) -> tuple[Path, list[int]]:
    """Run it again: the folder that it published, and the updates that were computed and not only told again."""
    events: list[Event] = []
    made = step.run(events.append)
    told = [event for event in events if event["event"] == "metrics"]
    return made, [event["step"] for event in told if any("tokens_per_second" in name for name in event["values"])]


def contents(folder: Path) -> dict[str, bytes]:
    """The files of an output; its manifest has times."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def assert_it_goes_on(new: Callable[..., Step], *ways: str) -> None:
    """A step that is stopped, once for each of `ways`, ends with the bytes of one that wasn't and saved nothing."""
    whole, step = (new(processes=2, checkpoints={"seconds": seconds}) for seconds in (1e6, 0))
    for update, way in enumerate(ways, start=2):
        stopped(step, way, update)
    last = max(step.saved())
    assert last < STEPS
    made, computed = resumed(step)
    assert computed == list(range(last + 1, STEPS + 1))
    assert contents(made) == contents(whole.run())


def test_each_process_recalls_what_it_remembered_itself(new: Callable[..., Step]) -> None:
    made = new("tests.training.sharded_step:recalled", {}, {}, processes=2).run()
    assert json.loads((made / "manifest.json").read_text())["metrics"] == {"0": 0, "1": 1}


def test_a_training_of_two_processes_goes_on_after_one_was_killed_and_after_a_request(
    specialist: Callable[..., Step],
) -> None:
    slowly = "tests.training.sharded_step:slowly_sealed_when_asked"
    assert_it_goes_on(partial(specialist, {"steps": STEPS}, slowly), "one killed", "asked")


@pytest.mark.long
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "sft", [{}, {"method": "lora", "lora": {"dropout": 0.3}, "packing": True}], ids=["full", "lora"]
)
def test_a_specialist_of_two_processes_goes_on_as_if_nothing_had_happened(
    specialist: Callable[..., Step], sft: dict[str, Any], sharding: str
) -> None:
    assert_it_goes_on(partial(specialist, {"steps": STEPS, **sft}, sharding=sharding), *WAYS)


@pytest.mark.long
@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "objective",
    [{"difficulty_samples": 4}, {"method": "lora", "lora": {"dropout": 0.3}, "refill": 1, "beta": 0.01}],
    ids=["full", "lora, refilled, near a reference"],
)
def test_a_signal_stage_of_two_processes_goes_on_as_if_nothing_had_happened(
    signal: Callable[..., Step], objective: dict[str, Any], sharding: str
) -> None:
    assert_it_goes_on(partial(signal, objective, STEPS, sharding=sharding), *WAYS)
