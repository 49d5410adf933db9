"""The step `distilled`: supervised training of the student on the traces that were selected for it. [3B]

It has the settings of the specialists' training but for its steps, which are so many passes over the traces, and is a
specialist's in all else (`sft`). The output is a whole model: an adapter is merged into the student.
"""

from __future__ import annotations

import shutil

import torch

from vibethinker.data.schema import Trace, read_records
from vibethinker.errors import DataError
from vibethinker.models import load_model, load_tokenizer, save_model
from vibethinker.steps import Metrics, StepContext
from vibethinker.training import processes
from vibethinker.training.common import begin_supervised, memory_errors
from vibethinker.training.halting import Rollbacks
from vibethinker.training.phases import Phases
from vibethinker.training.sft import fine_tune, of_epochs, to_examples


def run(context: StepContext) -> Metrics:
    """Train `inputs["student"]` on `inputs["traces"]`; leaves a model folder and metrics.jsonl.

    Raises:
        DataError: no trace is short enough.
        DivergedError, RolledBackError, OutOfMemoryError: see `sft.run`.
    """
    settings, prompts, run = begin_supervised(context)
    student, work = context.inputs["student"], context.output / "trained"
    tokenizer = load_tokenizer(student)
    files = sorted((context.inputs["traces"] / "sft").glob("*.parquet"))
    traces = [trace for file in files for trace in read_records(file, Trace)]
    examples, left_out = to_examples(tokenizer, traces, prompts, settings.max_length)
    if not examples:
        raise DataError(
            f"None of the {len(traces)} selected traces has at most spectrum.sft.max_length = {settings.max_length} "
            "tokens: raise it, or lower distillation.max_tokens."
        )
    if left_out:
        context.emit.warning(f"{left_out} of {len(traces)} traces exceed {settings.max_length} tokens: left out.")
    settings = of_epochs(settings.model_copy(update={"checkpoints": 1}), examples, context.settings["epochs"])
    with memory_errors():
        model = run.load(student, settings, settings.max_length)
        phases = Phases(run.device)
        last = fine_tune(model, tokenizer, examples, settings, run, work, phases=phases)
    if processes.rank() == 0:
        [trained] = work.iterdir()
        if settings.method == "lora":
            save_model(load_model(trained, base=student, dtype=torch.float32), tokenizer, context.output, run.dtype)
        else:
            for file in trained.iterdir():
                file.rename(context.output / file.name)
        shutil.rmtree(work)
    processes.barrier()
    counts = {"traces": len(examples), "traces_left_out": left_out, "loss": last["loss"]}
    return counts | phases.summary() | Rollbacks(run.state).metrics()
