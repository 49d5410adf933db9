"""The embedded base: tokenizer and network made from the data's own traces, trained on the mixture of all
domains.

The training is that of the specialists (`vibethinker.training.sft`) with random weights to start from and an
optimizer of its own. After a warm-up its rate stays where it is, and the specialists anneal the model: fusion
gained more so than from a base of like strength whose rate had decayed (docs/results.md).
"""

from __future__ import annotations

from vibethinker.data.schema import Trace, read_records
from vibethinker.embedded.model import new_model
from vibethinker.embedded.optimizer import MuonWithAdamW
from vibethinker.embedded.tokenizer import train_tokenizer
from vibethinker.errors import DataError
from vibethinker.models import check_model_folder, save_model, seed_everything, set_threads
from vibethinker.settings import BaseModelSettings, Prompts, Sft
from vibethinker.steps import Metrics, StepContext
from vibethinker.training.common import Run, memory_errors
from vibethinker.training.halting import Rollbacks
from vibethinker.training.sft import fine_tune, to_examples


def train(context: StepContext, base_model: BaseModelSettings) -> Metrics:
    """Train the embedded model on `inputs["data"]`; leaves a model folder and metrics.jsonl.

    Raises:
        DataError: the data has no traces.
        DivergedError: loss or gradient became NaN or infinite; the evidence is beside the step's checkpoints.
        RolledBackError: likewise, and the step is to be run again.
    """
    settings = base_model.embedded
    files = sorted((context.inputs["data"] / "sft").glob("*.parquet"))
    traces = [trace for file in files for trace in read_records(file, Trace)]
    if not traces:
        raise DataError(
            "The data step left no traces (sft/*.parquet), so the embedded model has nothing to learn from."
        )
    context.emit.progress(0, settings.steps, "training the tokenizer")
    texts = (text for trace in traces for text in (trace.problem, trace.text))
    tokenizer = train_tokenizer(texts, settings.vocabulary, settings.positions)
    run = Run.of(context, base_model, micro_tokens=context.execution["sft_micro_tokens"])
    set_threads(context.execution["threads"])
    seed_everything(run.seed, run.deterministic)
    model = new_model(settings, tokenizer).to(run.device)
    prompts = Prompts.model_validate(context.settings["prompts"])
    examples, left_out = to_examples(tokenizer, traces, prompts, settings.positions)
    optimizer = MuonWithAdamW(model, settings.matrix_rate, settings.learning_rate)
    with memory_errors():
        last = fine_tune(model, tokenizer, examples, _as_sft(base_model), run, optimizer=optimizer)
    save_model(model, tokenizer, context.output, run.dtype)
    check_model_folder(context.output)
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "parameters": parameters,
        "traces": len(examples),
        "traces_left_out": left_out,
        "loss": last["loss"],
        **Rollbacks(run.state).metrics(),
    }


def _as_sft(base_model: BaseModelSettings) -> Sft:
    settings = base_model.embedded
    return Sft(
        steps=settings.steps,
        batch_size=settings.batch_size,
        max_length=settings.positions,
        learning_rate=settings.learning_rate,
        final_learning_rate=settings.learning_rate,
        checkpoints=1,
    )
