"""Steps of several processes; run by `module:function`."""

from __future__ import annotations

import time
from typing import Any

from vibethinker import preemption
from vibethinker.models import load_tokenizer
from vibethinker.settings import BaseModelSettings, Sft, TrainerCheckpoints
from vibethinker.steps import Metrics, StepContext
from vibethinker.training import processes, resuming, sft
from vibethinker.training.common import Run
from vibethinker.training.sft import Example, fine_tune


def held(context: StepContext) -> Metrics:
    """Train for one step; the share of the model's weights that are in this process."""
    run = Run.of(context, BaseModelSettings(), micro_tokens=4096)
    processes.join(run.device)
    settings = Sft(steps=1, batch_size=4, max_length=96)
    model = run.load(context.inputs["base"], settings, 96)
    whole = sum(parameter.numel() for parameter in model.parameters())
    ids = list(range(10, 40))
    fine_tune(model, load_tokenizer(context.inputs["base"]), [Example(ids, ids)], settings, run)
    parts = [p.to_local() if processes.is_sharded(model) else p for p in model.parameters()]
    return {"held": sum(part.numel() for part in parts) / whole}


def slowly_sealed_when_asked(context: StepContext) -> Metrics:
    """Train a specialist whose last checkpoint takes longer to seal than another process takes to leave."""
    seal = resuming.seal

    def slowly(*words: Any, **named: Any) -> dict[str, Any]:
        time.sleep(float(preemption.asked()))
        return seal(*words, **named)

    resuming.seal = slowly
    return sft.run(context)


class Own:
    """What one process alone remembers."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"rank": processes.rank()}

    def remembered(self) -> dict[str, Any]:
        """See `resuming.Remembers`."""
        return self.state

    def recall(self, state: dict[str, Any]) -> None:
        """See `resuming.Remembers`."""
        self.state = state


def recalled(context: StepContext) -> Metrics:
    """Save and restore a checkpoint of states alone; what each process recalled."""
    processes.join("cpu")
    folder, own = context.checkpoints / "updates", Own()
    resumable = resuming.Resumable(folder, [], TrainerCheckpoints(), context.emit)
    made = resumable.aside / "made"
    resumable.save(1, lambda: made.mkdir(parents=True, exist_ok=True), {"Own": own.remembered()}, 0)
    resumable.finish()
    processes.barrier()
    own.state = {}
    resumable.restore(resumable.newest(), {"Own": own})
    (context.output / "done").write_text("")
    return {str(rank): state["rank"] for rank, state in enumerate(processes.gathered([own.state]))}
