"""A training that is killed or asked to stop goes on as if nothing had happened."""

from __future__ import annotations

import shutil
import signal as signals
from dataclasses import replace

import pytest
from transformers import Trainer

from tests.conftest import Emitted
from tests.training.stopping import CASES, Fragile, Killed, ask, die, files, prepared, restarted, trained
from vibethinker import models, preemption
from vibethinker.artifacts import seal
from vibethinker.errors import PreemptedError
from vibethinker.training import resumable, sft, signal, trainer

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def listening(monkeypatch):
    """Requests to stop are heard as in a step's own process, and forgotten afterwards."""
    before = signals.getsignal(signals.SIGTERM)
    for name in ("_asked", "_done"):
        monkeypatch.setattr(preemption, name, False)
    preemption.install()
    yield
    signals.signal(signals.SIGTERM, before)


@pytest.fixture(params=CASES)
def training(request, new_step, taught_folder, data_folder):
    """A step's function, and one that makes a fresh context of it, with these settings of its checkpoints."""
    return prepared(request.param, new_step, taught_folder, data_folder)


@pytest.mark.parametrize("how", ["killed", "asked after an update", "asked while sampling", "asked before a gradient"])
def test_it_goes_on_as_if_nothing_had_happened(training, how, monkeypatch):
    run, new = training
    if how == "asked while sampling" and run is not signal.run:
        pytest.skip("supervised training samples nothing")
    whole = new()
    metrics = run(whole)
    assert run is models.run_base or metrics["seconds_checkpointing"] > 0
    context, update = new(), 4
    emit = Fragile(update, die if how == "killed" else ask, sampling=how == "asked while sampling")
    with monkeypatch.context() as patched, pytest.raises(Killed if how == "killed" else PreemptedError):
        if how == "asked before a gradient":
            emit = Emitted()
            for module in (sft, trainer):

                def asks(one, *rest, accumulate=module.accumulate):
                    if one.state.global_step == update:
                        ask()
                    return accumulate(one, *rest)

                patched.setattr(module, "accumulate", asks)
        run(replace(context, emit=emit))
    saved = sorted(p.name for p in (context.checkpoints / "updates").iterdir())
    # Told of update 4, a killed one hasn't saved it yet.
    assert saved == (["00000002", "00000003"] if how == "killed" else ["00000003", "00000004"])
    context = restarted(context)
    found = run(context)
    assert files(context.output) == files(whole.output)
    # All are told again, since the last events may have been lost.
    assert [step for step, _ in context.emit.rows if step] == [1, 2, 3, 4, 5, 6]
    assert trained(context.emit) == ([4, 5, 6] if how == "killed" else [5, 6])
    assert not any("difficulty" in text for *_, text in context.emit.positions)  # measured once
    timed = ("seconds", "tokens_per_second", "memory")
    assert {k: v for k, v in found.items() if not any(t in k for t in timed)} == {
        k: v for k, v in metrics.items() if not any(t in k for t in timed)
    }


@pytest.fixture
def specialist(new_step, taught_folder, data_folder):
    """A function **settings of the checkpoints → the context of a specialist."""
    return prepared("sft", new_step, taught_folder, data_folder)[1]


def test_those_of_an_interval_are_kept_beside_the_newest(specialist):
    context = specialist(seconds=1e6, keep=1, every=2)
    sft.run(context)
    assert sorted(p.name for p in (context.checkpoints / "updates").iterdir()) == ["00000002", "00000004"]


def test_without_room_a_warning_says_so_and_training_goes_on(specialist, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 10))
    context = specialist(seconds=0)
    sft.run(context)
    assert any("the disk has 0 MiB free" in text for text in context.emit.warnings)
    assert not list((context.checkpoints / "updates").iterdir())
    assert (context.output / "checkpoints" / "step-000006").is_dir()


@pytest.mark.parametrize("broken", ["write", "seal"])
def test_a_checkpoint_that_can_not_be_written_is_told_and_training_goes_on(specialist, monkeypatch, broken):
    def fails(*_, **__):
        raise RuntimeError("the disk is full")  # as torch and safetensors do, in types of their own

    context = specialist(seconds=0)
    if broken == "write":
        monkeypatch.setattr(Trainer, "_save_optimizer_and_scheduler", fails)
    else:
        monkeypatch.setattr(resumable, "seal", fails)
    sft.run(context)
    assert any("the disk is full" in text for text in context.emit.warnings)
    assert not list(context.checkpoints.glob("*-aside/*"))
    assert (context.output / "checkpoints" / "step-000006").is_dir()


def test_a_checkpoint_of_another_layout_is_not_used(specialist):
    context = specialist(seconds=0)
    with pytest.raises(Killed):
        sft.run(replace(context, emit=Fragile(3, die)))
    for folder in context.checkpoints.glob("updates/*"):
        (folder / "manifest.json").unlink()
        seal(folder, {"update": int(folder.name), "layout": "sharded by FSDP"}, at="update")
    context = restarted(context)
    sft.run(context)
    assert any("its weights are sharded by FSDP" in text for text in context.emit.warnings)
    assert trained(context.emit) == [1, 2, 3, 4, 5, 6]


def test_asked_after_the_last_update_it_leaves_and_then_has_nothing_to_train(specialist):
    whole, context = specialist(seconds=1e6), specialist(seconds=1e6)
    sft.run(whole)
    with pytest.raises(PreemptedError):
        sft.run(replace(context, emit=Fragile(6, ask)))
    context = restarted(context)
    sft.run(context)
    assert not trained(context.emit)
    assert files(context.output) == files(whole.output)
