"""The step `signal`: one stage of the curriculum, a model made more often right by reinforcement.

The stage's problems are those of its domains in the data step's `rl/`, or its own file. Prompts longer than
`max_prompt_tokens` are left out and counted; a completion may take what the stage's context leaves after
`max_prompt_tokens`. With `difficulty_samples` the starting model first draws that many rollouts a problem,
and problems that it always or never solves are left out [3B]. Training goes through the problems pass by
pass, each a seeded shuffle, one on-policy update a batch of `batch_size / group_size` prompts; see `trainer`
and `mgpo`.

Rollouts come from vLLM beside the trainer where it is installed, else from the model in training itself.

With `signal.validation` held-out problems are measured meanwhile (`validating`), and the output may be the best update.

The output is a whole model (adapters are merged into the unquantised start), metrics.jsonl, samples.jsonl (rollouts to
read) and signal.json.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import GRPOConfig

from vibethinker import verifiers
from vibethinker.artifacts import write_json
from vibethinker.data.prompts import all_prompt_ids
from vibethinker.data.schema import Problem
from vibethinker.errors import DataError
from vibethinker.evaluation.measuring import Outcome, derived_seed, measure, scores, votes
from vibethinker.generation import Engine
from vibethinker.generation.opening import engine_name, open_engine
from vibethinker.models import load_model, load_tokenizer, seed_everything, set_threads
from vibethinker.models.policy import policy_tensors
from vibethinker.operations import Vllm
from vibethinker.settings import BaseModelSettings, Evaluation, Objective, Prompts, Stage, Validation
from vibethinker.steps import Metrics, StepContext
from vibethinker.training import packed, processes
from vibethinker.training.callbacks import Reporter
from vibethinker.training.common import Run, memory_errors, train, trainer_arguments, training_order
from vibethinker.training.divergence import Watch
from vibethinker.training.halting import Rollbacks
from vibethinker.training.objectives import trl_arguments
from vibethinker.training.phases import Phases
from vibethinker.training.problems import StageProblems
from vibethinker.training.rollouts import RolloutGrading, Rollouts
from vibethinker.training.samples import Samples
from vibethinker.training.trainer import SignalTrainer
from vibethinker.training.validating import Validating
from vibethinker.verification import Verifier

VALIDATED = "validated"  # of the output while it is made: the best update so far
# The trainer's metric → its name in metrics.jsonl.
METRICS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "kl": "kl",
    "reward": "reward",
    "completions/mean_length": "length",
    "p": "p",
    "p_histogram": "p_histogram",
    "weight": "weight",
    "zero_variance": "zero_variance",
    "truncated": "truncated",
    "repeating": "repeating",
    "infrastructure": "infrastructure",
    "importance": "importance",
    "engine_gap": "engine_gap",
}


def run(context: StepContext) -> Metrics:
    """Train `inputs["model"]` on one stage; leaves a model folder, metrics.jsonl and signal.json.

    Raises:
        DataError: the stage has no usable problem, or one that its reward can't judge.
        ConfigurationError: it rewards code and no sandbox works here.
        DivergedError: a sign of `divergence` has shown; its evidence is beside the step's checkpoints.
        RolledBackError: likewise, and the step is to be run again.
        InfrastructureError: the verifier failed on every rollout of an update.
        OutOfMemoryError: the device's memory did not suffice.
    """
    base_model = BaseModelSettings.model_validate(context.settings["base_model"])
    run = Run.of(context, base_model, micro_tokens=context.execution["signal_micro_tokens"])
    run = replace(run, backend="transformers")  # see vibethinker.steps
    set_threads(context.execution["threads"])
    processes.join(run.device)
    start, validation = context.inputs["model"], {}
    with verifiers.of_step(context) as grader, memory_errors():
        training = SignalTraining(context, run, load_tokenizer(start), grader)
        if training.stage.reward == "code":
            grader.try_sandbox()  # before hours of rollouts rather than at the first program
        problems = training.problems()
        held_out = training.held_out(problems)
        with training.opened(start) as model:
            trained = training.train(model, training.of_middling_difficulty(problems), held_out)
            chosen = training.validating.chosen() if training.validating else None
            if training.objective.method == "lora" and chosen is None:
                chosen = run.state / "adapter"
                processes.save(trained, training.tokenizer, chosen)
            if chosen is not None:
                place = "cpu" if training.own_weights else run.device
                trained = load_model(chosen, base=start, device=place, dtype=torch.float32)
            processes.save(trained, training.tokenizer, context.output, run.dtype)
            if training.stage.validation_data is not None:
                validation = training.validate(trained)
    counts = training.counts
    told = {"stage": training.stage.name, "counts": counts, "validation": validation}
    scored: Metrics = {f"validation/{name}": score["value"] for name, score in validation.items()}
    if training.validating:
        told["selected"] = training.validating.record()
        scored |= training.validating.metrics()
        if processes.rank() == 0:
            shutil.rmtree(context.output / VALIDATED, ignore_errors=True)
    write_json(context.output / "signal.json", told)
    return counts | scored | training.phases.summary() | Rollbacks(run.state).metrics()


@dataclass
class SignalTraining:
    """One stage: its settings, and what is counted on the way."""

    context: StepContext
    run: Run
    tokenizer: PreTrainedTokenizerBase
    grader: Verifier
    counts: dict[str, int] = field(default_factory=dict)
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.stage = Stage.model_validate(self.context.settings["stage"])
        self.objective = Objective.model_validate(self.context.settings["objective"])
        self.prompts = Prompts.model_validate(self.context.settings["prompts"])
        measured = self.context.settings.get("validation")
        self.measured = None if measured is None else Validation.model_validate(measured)
        self.sources = StageProblems(self.context, self.stage, self.objective, self.prompts, self.tokenizer)
        self.validating: Validating | None = None
        self.max_tokens = self.stage.context - self.objective.max_prompt_tokens
        # A sharded model can't decode alone: each of its forward passes is one of all processes.
        sharded = self.run.processes > 1 and self.run.sharding == "fsdp"
        self.own_weights = sharded or engine_name(self.context.execution) == "vllm"
        self.phases = Phases(self.run.device)

    @contextmanager
    def opened(self, start: Path) -> Iterator[PreTrainedModel]:
        """The model of the folder `start`, ready to be trained, and `engine`, which samples by its weights."""
        execution, run = dict(self.context.execution), self.run
        # More than an update has would only cost an engine its start.
        execution["generation_batch"] = min(execution["generation_batch"], self.objective.batch_size)
        vllm = Vllm.model_validate(execution.get("vllm", {}))
        engine, beside = None, 0.0
        if self.own_weights:  # first, since it measures the GPU's memory and seeds everything
            length = self.stage.context
            run.emit.progress(0, self.stage.steps, "starting the engine that samples")
            engine = open_engine(start, execution=execution, tokenizer=self.tokenizer, share=True, max_length=length)
            beside = 0.0 if vllm.sleep else vllm.shared_memory
        try:
            run.emit.progress(0, self.stage.steps, "loading the model")
            seed_everything(run.seed, run.deterministic)
            model = run.load(start, self.objective, self.stage.context, beside)
            self.engine = engine or open_engine(start, execution=execution, tokenizer=self.tokenizer, model=model)
            yield model
        finally:
            if engine is not None:
                engine.close()

    def problems(self) -> list[Problem]:
        """The stage's problems with prompts that aren't too long; each has what its reward needs."""
        kept, count = self.sources.training()
        self.counts |= {"problems": count, "long_prompts": count - len(kept)}
        return kept

    def held_out(self, training: Sequence[Problem]) -> list[Problem]:
        """The problems that the stage is measured on while it is trained; none where that is off."""
        if self.measured is None:
            return []
        return self.sources.held_out(training, self.measured.problems, self.run.seed)

    def of_middling_difficulty(self, problems: Sequence[Problem]) -> Sequence[Problem]:
        """The problems that the starting model solves sometimes [3B]; all of them where the filter is off."""
        if not self.objective.difficulty_samples:
            return problems
        known = self.run.state / "difficulty.json"  # a resumed training must see the same problems in the same order
        if known.is_file():
            found = json.loads(known.read_text())
        else:
            outcomes = self._measure(problems, self.objective.difficulty_samples, "difficulty", 0)
            found = {
                "kept": [i for i, outcome in enumerate(outcomes) if 0 < outcome.correct < outcome.samples],
                "never": sum(outcome.correct == 0 for outcome in outcomes),
            }
            processes.barrier()  # after which none looks for the file
            if processes.rank() == 0:
                write_json(known, found)
        kept, never = [problems[i] for i in found["kept"]], found["never"]
        self.counts |= {"never_solved": never, "always_solved": len(problems) - len(kept) - never}
        if not kept:
            raise DataError(
                f"The starting model solves each of the {len(problems)} problems of stage {self.stage.name} always or "
                "never, so nothing can be learned: give easier or harder ones, or set difficulty_samples to 0."
            )
        return kept

    def train(
        self, model: PreTrainedModel, problems: Sequence[Problem], held_out: Sequence[Problem]
    ) -> PreTrainedModel:
        """Train `model`, or adapters on it, for the stage's steps, measured on the held-out problems, and return it."""
        run, stage, objective = self.run, self.stage, self.objective
        ids = all_prompt_ids(self.tokenizer, problems, self.prompts)
        prompts_an_update = objective.batch_size // objective.group_size
        planned = stage.steps * prompts_an_update
        order = training_order(len(problems), planned * (1 + objective.refill), run.seed)
        rows = [{"prompt": ids[number], "number": number} for number in order]
        spare = iter(processes.share(rows[planned:])[1])

        def progress(text: str) -> None:
            run.emit.progress(trainer.state.global_step, stage.steps, text)

        graded = RolloutGrading(self.grader, problems, progress, self.phases, stage.reward)

        def sampled(done: int, total: int) -> None:
            progress(f"{done} of {total} rollouts")

        rollouts = Rollouts(
            self.engine,
            objective,
            self.max_tokens,
            run.seed,
            own_weights=self.own_weights,
            phases=self.phases,
            progress=sampled,
            ended=graded.ended,
        )
        if held_out:
            self.validating = self._new_validating(rollouts, held_out)
        samples = self.context.output / "samples.jsonl"
        compiled = self.own_weights and run.quantization == "none"
        trainer = SignalTrainer(
            objective=objective,
            grade=graded,
            micro_tokens=run.micro_tokens,
            end_to_end=run.backend == "transformers" and packed.prepare(model, run.dtype, compiled=compiled),
            spare=spare,
            budget=stage.rollouts,
            validating=self.validating,
            model=model,
            args=GRPOConfig(
                **trainer_arguments(run, stage.steps, objective.batch_size, objective.optimizer),
                learning_rate=objective.learning_rate,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=math.ceil(stage.steps * objective.warmup),
                max_grad_norm=objective.max_grad_norm,
                num_generations=objective.group_size,
                max_completion_length=self.max_tokens,
                steps_per_generation=1,
                num_iterations=1,
                **trl_arguments(objective),
                temperature=objective.temperature,
                top_p=objective.top_p,
                shuffle_dataset=False,
                remove_unused_columns=False,
            ),
            train_dataset=Dataset.from_list(rows[:planned]),
            processing_class=self.tokenizer,
            rollout_func=rollouts,
            callbacks=[
                Watch(run.divergence, objective.batch_size),
                Reporter(run.emit, run.metrics_file, stage.steps, METRICS, tokens="num_tokens", phases=self.phases),
                Samples(samples, stage.steps, problems, lambda: trainer.groups()),
                *([self.validating] if self.validating else []),
            ],
        )
        written = [samples, self.context.output / VALIDATED]
        train(trainer, run, written, save_last=bool(held_out) or stage.validation_data is not None)
        if self.validating:
            self.validating(trainer, last=True)
            rollouts.rest()
        self.counts |= trainer.totals
        return trainer.accelerator.unwrap_model(trainer.model)

    def _new_validating(self, rollouts: Rollouts, problems: Sequence[Problem]) -> Validating:
        settings = self.measured
        assert settings is not None

        def measured(trainer: SignalTrainer, update: int) -> list[Outcome]:
            with rollouts.at_policy(trainer):
                return self._measure(problems, settings.samples, "validation", update)

        # Where the first process writes, since others have an output that nobody publishes.
        folder = Path(processes.gathered([str(self.context.output / VALIDATED)])[0])
        return Validating(settings, self.run, self.stage.steps, folder, measured, self.phases)

    def validate(self, model: PreTrainedModel) -> dict[str, dict[str, float]]:
        """The trained model's scores on the stage's validation file, `group_size` samples a problem."""
        assert self.stage.validation_data is not None
        problems = self.sources.read(self.stage.validation_data)
        size = self.objective.group_size
        if self.own_weights:
            self.engine.wake()
            self.engine.update(policy_tensors(model))
        else:
            execution = self.context.execution
            self.engine = open_engine(self.context.output, execution=execution, tokenizer=self.tokenizer, model=model)
        outcomes = self._measure(problems, size, "validation", self.stage.steps)
        sampling = self._sampling(size)
        return scores(outcomes, sampling, votes(outcomes, sampling, self.grader))

    def _measure(self, problems: Sequence[Problem], samples: int, purpose: str, step: int) -> list[Outcome]:
        def progress(done: int, total: int, text: str) -> None:
            self.run.emit.progress(step, self.stage.steps, f"{purpose}: {text}, {done} of {total}")

        seed = derived_seed(self.run.seed, purpose, self.stage.name)
        sampling = self._sampling(samples)
        first, own = processes.share(problems)
        return processes.gathered(
            measure(
                self.engine, self.tokenizer, self.grader, own, sampling, self.prompts, seed, progress, first,
                self.stage.reward,
            )
        )  # fmt: skip

    def _sampling(self, samples: int) -> Evaluation:
        """Sampling as in training, for measurements."""
        objective = self.objective
        return Evaluation(
            samples=samples,
            k=(samples,),
            temperature=objective.temperature,
            top_p=objective.top_p,
            max_tokens=self.max_tokens,
        )
