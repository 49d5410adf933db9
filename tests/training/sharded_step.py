"""Steps of several processes; run by `module:function`."""

from __future__ import annotations

import time
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from tests.leaks import beyond_loopback
from vibethinker import preemption
from vibethinker.models import load_tokenizer
from vibethinker.operations import TrainerCheckpoints
from vibethinker.settings import BaseModelSettings, Sft
from vibethinker.steps import Metrics, StepContext
from vibethinker.training import processes, resumable, sft
from vibethinker.training.common import Run
from vibethinker.training.sft import Example, fine_tune

SETTINGS = Sft(steps=1, batch_size=4, max_length=96)


def held(context: StepContext) -> Metrics:
    """Train for one step; the share of the model's weights that are in this process, and how many of the addresses on
    which it listens other machines can reach."""
    run, model = _loaded(context)
    whole = sum(parameter.numel() for parameter in model.parameters())
    _train(context, run, model)
    parts = [p.to_local() if processes.is_sharded(model) else p for p in model.parameters()]
    addresses = {one.laddr.ip for one in psutil.Process().net_connections("inet") if not one.raddr}
    counts = {"listening": len(addresses), "reachable": len(beyond_loopback(addresses))}
    return {"held": sum(part.numel() for part in parts) / whole, **counts}


def broken(context: StepContext) -> Metrics:
    """Train a model that has a NaN."""
    run, model = _loaded(context)
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    _train(context, run, model)
    return {}


def _loaded(context: StepContext) -> tuple[Run, PreTrainedModel]:
    run = Run.of(context, BaseModelSettings(), micro_tokens=4096)
    processes.join(run.device)
    return run, run.load(context.inputs["base"], SETTINGS, SETTINGS.max_length)


def _train(context: StepContext, run: Run, model: PreTrainedModel) -> None:
    ids = list(range(10, 40))
    fine_tune(model, load_tokenizer(context.inputs["base"]), [Example(ids, ids)], SETTINGS, run)


def slowly_sealed_when_asked(context: StepContext) -> Metrics:
    """Train a specialist whose last checkpoint takes longer to seal than another process takes to leave."""
    seal = resumable.seal

    def slowly(*words: Any, **named: Any) -> dict[str, Any]:
        time.sleep(float(preemption.asked()))
        return seal(*words, **named)

    resumable.seal = slowly
    return sft.run(context)


class Own:
    """What one process alone remembers."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"rank": processes.rank()}

    def remembered(self) -> dict[str, Any]:
        """See `resumable.Remembers`."""
        return self.state

    def recall(self, state: dict[str, Any]) -> None:
        """See `resumable.Remembers`."""
        self.state = state


def recalled(context: StepContext) -> Metrics:
    """Save and restore a checkpoint of states alone; what each process recalled."""
    processes.join("cpu")
    folder, own = context.checkpoints / "updates", Own()
    saved = resumable.Resumable(folder, [], TrainerCheckpoints(), context.emit)
    made = saved.aside / "made"
    saved.save(1, lambda: made.mkdir(parents=True, exist_ok=True), {"Own": own.remembered()}, 0, 1)
    saved.finish()
    processes.barrier()
    own.state = {}
    saved.restore(saved.newest(), {"Own": own})
    (context.output / "done").write_text("")
    return {str(rank): state["rank"] for rank, state in enumerate(processes.gathered([own.state]))}
