"""Rollouts of a signal stage: the engine that samples them, kept at the policy's weights, and their grading.

Strictly on-policy: before each update's generation the engine is given the weights in training, unless it decodes with
that very model. Where it sleeps while the trainer computes, it wakes for the generation alone. Each rollout is graded
from the moment that it has ended, while others are still being sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from vibethinker.data.schema import Problem
from vibethinker.evaluation.measuring import derived_seed, grading_item
from vibethinker.generation import Completion, Engine
from vibethinker.models.policy import policy_tensors
from vibethinker.settings import Objective
from vibethinker.training import packed
from vibethinker.training.canary import Canary
from vibethinker.training.phases import Phases
from vibethinker.verification import Verifier

if TYPE_CHECKING:
    from vibethinker.training.trainer import SignalTrainer

Batch = dict[str, Any]


class Rollouts:
    """TRL's rollout function: `group_size` completions of each prompt, from an engine.

    Args:
        engine: samples.
        objective: group size, temperature and nucleus.
        max_tokens: longest completion.
        seed: of the run; each generation derives its own.
        own_weights: whether the engine has weights of its own, which must be sent after each update, and whose rounding
            differs from the trainer's.
        phases: where seconds and tokens are booked.
        progress: called with finished and all rollouts of the generation.
        ended: called with the problem's number and each rollout as soon as it is known.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        max_tokens: int,
        seed: int,
        *,
        own_weights: bool = False,
        phases: Phases | None = None,
        progress: Callable[[int, int], None] | None = None,
        ended: Callable[[int, Completion], None] | None = None,
    ) -> None:
        self._engine, self._objective, self._max_tokens = engine, objective, max_tokens
        self._seed, self._progress, self._ended = seed, progress, ended
        self._own_weights, self._phases = own_weights, phases or Phases("cpu")
        self._canary: Canary | None = None
        self._sent = -1  # updates whose weights the engine has; a quantised policy differs from its folder at once
        self._round = 0

    @property
    def gap(self) -> float | None:
        """How far engine and trainer were apart at the canary's last look, in nats a token."""
        return self._canary.gap if self._canary else None

    def __call__(self, prompts: list[list[int]], trainer: SignalTrainer) -> Batch:
        """The completions of `prompts`, token ids, in which each prompt stands `group_size` times in a
        row."""
        size, tell = self._objective.group_size, self._ended

        def ended(index: int, sample: int, completion: Completion) -> None:
            if tell:
                tell(trainer.numbers[index * size], completion)

        with self._phases("generation") as phase, self.at_policy(trainer) as engine:
            groups = engine.generate(
                prompts[::size],
                first=trainer.accelerator.process_index * (len(prompts) // size),
                samples=size,
                max_tokens=self._max_tokens,
                temperature=self._objective.temperature,
                top_p=self._objective.top_p,
                seed=self._next_seed(trainer),
                logprobs=self._own_weights and self._objective.importance_cap > 0,
                progress=self._progress,
                ended=ended,
            )
            completions: list[Completion] = [completion for group in groups for completion in group]
            phase.tokens = sum(completion.tokens for completion in completions)
            if self._canary is None:
                self._canary = self._new_canary(trainer)
            if self._round == 1:
                fresh = [(prompt, group[0].ids) for prompt, group in zip(prompts[::size], groups, strict=True)]
                self._canary.renew(trainer.state.global_step, fresh)
        told = [completion.logprobs for completion in completions]
        return {
            "prompt_ids": prompts,
            "completion_ids": [list(completion.ids) for completion in completions],
            "logprobs": None if told[0] is None else [list(one or ()) for one in told],
            "text": [completion.text for completion in completions],
            "truncated": [completion.truncated for completion in completions],
        }

    @contextmanager
    def at_policy(self, trainer: SignalTrainer) -> Iterator[Engine]:
        """The engine, awake and with the weights in training; see `rest`."""
        same_model = nullcontext() if self._own_weights else trainer.accelerator.autocast()
        with same_model:
            self._follow(trainer)
            yield self._engine

    def remembered(self) -> dict[str, Any] | None:
        """What the canary remembers; None before it was there."""
        return self._canary.remembered() if self._canary else None

    def recall(self, state: dict[str, Any] | None, trainer: SignalTrainer) -> None:
        """Take on what `remembered` gave."""
        if state is not None:
            self._canary = self._new_canary(trainer)
            self._canary.recall(state)

    def _new_canary(self, trainer: SignalTrainer) -> Canary:
        return Canary(self._engine, lambda sequences: score(trainer, sequences))

    def rest(self) -> None:
        """The update's generations are over: the trainer may have the engine's memory."""
        self._engine.sleep()

    def _follow(self, trainer: SignalTrainer) -> None:
        """Bring the engine to the policy's weights, and look at whether it has them."""
        update = trainer.state.global_step
        self._engine.wake()
        if update == self._sent:
            return
        if self._own_weights:
            self._engine.update(policy_tensors(trainer.accelerator.unwrap_model(trainer.model)))
        self._sent, self._round = update, 0
        if self._canary is not None:
            self._canary.check(update)

    def _next_seed(self, trainer: SignalTrainer) -> int:
        """Every generation has a seed of its own: of the update and its refills."""
        self._round += 1
        return derived_seed(self._seed, "rollouts", str(trainer.state.global_step), str(self._round))


def score(trainer: SignalTrainer, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
    """Log-probabilities of completions by the weights in training, at temperature 1."""
    # Without the wrapper of DDP, whose forward pass the other processes would have to join.
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    # Compiled blocks would be compiled once more for evaluation, and for no_grad, so both only where they matter.
    drops = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    model.train(not drops)
    try:
        with trainer.accelerator.autocast():
            if trainer.end_to_end:
                return packed.score(model, packed.plain(model), sequences)
            return [scored_alone(model, *sequence) for sequence in sequences]
    finally:
        model.train()


def scored_alone(model: torch.nn.Module, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """Log-probabilities of a completion, at temperature 1, without any kernel for many of them."""
    ids = torch.tensor([[*prompt, *completion]], device=model.device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(completion) + 1).logits
    chosen = torch.log_softmax(logits[0, :-1].detach().float(), -1)
    return chosen.gather(-1, ids[0, len(prompt) :].unsqueeze(-1)).squeeze(-1).tolist()


class RolloutGrading:
    """Grades the rollouts of one generation after the other, each from the moment that it has ended; by `reward`, see
    `grading_item`."""

    def __init__(
        self,
        verifier: Verifier,
        problems: Sequence[Problem],
        tell: Callable[[str], None],
        phases: Phases | None = None,
        reward: str | None = None,
    ) -> None:
        self._verifier, self._problems, self._tell, self._reward = verifier, problems, tell, reward
        self._phases = phases or Phases("cpu")
        self._start()

    def _start(self) -> None:
        self._grading = self._verifier.submit([])
        self._places: dict[tuple[int, str], int] = {}

    def ended(self, number: int, completion: Completion) -> None:
        """A rollout of problem `number` is known, while others are still being sampled."""
        if not completion.truncated:
            self._place(number, completion.text)

    def _place(self, number: int, text: str) -> int:
        if (number, text) not in self._places:
            item = grading_item(self._problems[number], text, self._reward)
            self._places[number, text] = self._grading.add(item)
        return self._places[number, text]

    def __call__(self, texts: Sequence[str], numbers: Sequence[int]) -> list[bool | None]:
        """The verdicts on all rollouts of the generation."""
        with self._phases("grading"):
            self._tell(f"grading {len(texts)} rollouts")
            places = [self._place(number, text) for number, text in zip(numbers, texts, strict=True)]
            verdicts = self._grading.verdicts(lambda done, total: self._tell(f"{done} of {total} answers graded"))
            self._start()
        return [verdicts[place].counts for place in places]
