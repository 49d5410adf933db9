"""The trainer of a signal stage: TRL's GRPOTrainer with MGPO's weights on its advantages.

What differs from TRL's own GRPO, and through which of its hooks:

- rollouts: `rollout_func` asks a `vibethinker.generation` engine that decodes with the very weights in
  training, so the policy is never stale; prompts are token ids from the data to the loss, so a rollout is
  trained on exactly the prompt that it was sampled from;
- rewards: one reward function returns the raw verdicts, graded as one batch a generation, None for those left
  out; `_calculate_rewards` returns them gathered, where Long2Short may shape them;
- advantages: `_generate_and_score_completions` returns them before the shuffle, groups contiguous, as
  (r − mean)/(std + 1e-4) with Bessel's correction; here they are multiplied by w(p). At λ = 0 every w is 1,
  and with one micro-batch the whole is TRL's GRPO bit for bit;
- micro-batches: where there are several, rollouts of similar length go together and each is cut to its own
  longest, since most of a generation's rectangle is padding; rollouts with advantage 0 are not computed at all,
  unless a KL term acts on them. So the entropy that TRL logs is that of the rollouts trained on.

A rollout is left out (no verdict, or truncated with `truncated: mask`) from p, from the baseline and from the
loss; the mean over rollouts still divides by all of them. Left out of this module: several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import shuffle_sequence_dict

from vibethinker.errors import InfrastructureError
from vibethinker.generation import Completion, Engine
from vibethinker.settings import Objective
from vibethinker.training import mgpo

Batch = dict[str, Any]
# Rollout texts and, for each, the number of its problem in the data → verdicts: True, False, or None for failed.
Grade = Callable[[Sequence[str], Sequence[int]], Sequence[bool | None]]
# Of TRL's batch: padded on the left, and padded on the right.
_PROMPT, _COMPLETION = ("prompt_ids", "prompt_mask"), (
    "completion_ids", "completion_mask", "ref_per_token_logps", "tool_mask",
)  # fmt: skip


class Rollouts:
    """TRL's rollout function: `group_size` completions of each prompt, from an engine.

    Args:
        engine: decodes with the weights in training.
        objective: group size, temperature and nucleus.
        max_tokens: longest completion.
        seed: of the run; each generation derives its own.
        progress: called with finished and all rollouts of the generation.
        ended: called with the problem's number and each rollout as soon as it is known.
    """

    def __init__(
        self,
        engine: Engine,
        objective: Objective,
        max_tokens: int,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
        ended: Callable[[int, Completion], None] | None = None,
    ) -> None:
        self._engine, self._objective, self._max_tokens = engine, objective, max_tokens
        self._seed, self._progress, self._ended = seed, progress, ended

    def __call__(self, prompts: list[list[int]], trainer: GRPOTrainer) -> Batch:
        """The completions of `prompts`, token ids, in which each prompt stands `group_size` times in a
        row."""
        size, tell = self._objective.group_size, self._ended

        def ended(index: int, sample: int, completion: Completion) -> None:
            if tell:
                tell(trainer.numbers[index * size], completion)

        with trainer.accelerator.autocast():
            groups = self._engine.generate(
                prompts[::size],
                samples=size,
                max_tokens=self._max_tokens,
                temperature=self._objective.temperature,
                top_p=self._objective.top_p,
                seed=(self._seed << 32) + trainer.state.global_step,
                progress=self._progress,
                ended=ended,
            )
        completions: list[Completion] = [completion for group in groups for completion in group]
        return {
            "prompt_ids": prompts,
            "completion_ids": [list(completion.ids) for completion in completions],
            "logprobs": None,
            "text": [completion.text for completion in completions],
            "truncated": [completion.truncated for completion in completions],
        }


class SignalTrainer(GRPOTrainer):
    """GRPO with MGPO's weights; see the module.

    Args:
        objective: the stage's settings.
        grade: the verifier of a batch of rollouts.
        **trl: what GRPOTrainer takes. The dataset's rows have `prompt`, token ids, and `number`, the
            problem's, in the order of training.

    Attributes:
        numbers: of the problems of the generation, one a rollout.
        row: what `log` adds to TRL's metrics for the current update; a histogram among them.
        totals: counts over the whole training, for signal.json.
    """

    def __init__(self, *, objective: Objective, grade: Grade, **trl: Any) -> None:
        self._objective = objective
        self._grade = grade
        self.numbers: list[int] = []
        self.row: dict[str, Any] = {}
        self.totals = dict.fromkeys(("rollouts", "truncated", "infrastructure", "groups", "zero_variance"), 0)
        super().__init__(reward_funcs=[self.verdicts], **trl)

    def verdicts(self, text: list[str], truncated: list[bool], number: list[int], **_: Any) -> list[float | None]:
        """The raw verdicts, 1, 0 or None; a truncated rollout isn't graded: it is wrong, or left out."""
        graded = [i for i, cut in enumerate(truncated) if not cut]
        values: list[float | None] = [0.0 if self._objective.truncated == "zero" else None] * len(text)
        found = self._grade([text[i] for i in graded], [number[i] for i in graded])
        if len(graded) >= self._objective.group_size and all(verdict is None for verdict in found):
            raise InfrastructureError(
                f"The verifier failed on all {len(found)} rollouts of an update: mend the cause, which the step's log "
                "may name, and run the step again."
            )
        for i, verdict in zip(graded, found, strict=True):
            values[i] = None if verdict is None else float(verdict)
        self.row = {
            "truncated": sum(truncated) / len(truncated),
            "infrastructure": sum(verdict is None for verdict in found),
        }
        self.totals["truncated"] += sum(truncated)
        self.totals["infrastructure"] += self.row["infrastructure"]
        return values

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._verdicts = rewards[:, 0].view(-1, self.num_generations).clone()
        if self._objective.long2short:
            lengths = torch.tensor([len(ids) for ids in completion_ids_list], device=rewards.device)
            shaped = mgpo.long2short(
                self._verdicts, lengths.view_as(self._verdicts), self._verdicts, self._objective.long2short
            )
            rewards = shaped.view(-1, 1)
        return rewards

    def _generate_and_score_completions(self, inputs: list[Batch]) -> Batch:
        self.numbers = [row["number"] for row in inputs]
        batch = super()._generate_and_score_completions(inputs)
        verdicts = self._verdicts
        advantages = batch["advantages"].view_as(verdicts)
        batch["advantages"] = mgpo.modulate(advantages, verdicts, self._objective.lambda_).flatten()
        left_out = torch.isnan(verdicts).flatten()
        if left_out.any():
            batch["tool_mask"] = batch["completion_mask"] * ~left_out.unsqueeze(1)
        self._measure(verdicts, advantages)
        return batch

    def _measure(self, verdicts: Tensor, advantages: Tensor) -> None:
        p = mgpo.accuracy(verdicts)
        known = p[~torch.isnan(p)]
        flat = (advantages == 0).all(dim=1)
        self.row |= {"p_histogram": mgpo.histogram(p), "zero_variance": flat.float().mean().item()}
        if len(known):  # else every rollout was left out
            self.row["p"] = known.mean().item()
            self.row["weight"] = mgpo.weight(known, self._objective.lambda_).mean().item()
        self.totals["rollouts"] += verdicts.numel()
        self.totals["groups"] += len(p)
        self.totals["zero_variance"] += int(flat.sum())

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        """The micro-batch of this forward pass; a new generation with the first of each update."""
        count = self.args.steps_per_generation
        if self._step % count == 0 or self._buffered_inputs is None:
            batch = shuffle_sequence_dict(self._generate_and_score_completions(generation_batch))
            self._buffered_inputs = micro_batches(batch, count, all_rows=self.beta != 0)
        return self._buffered_inputs[self._step % count]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs.update(self.row)
        super().log(logs, start_time)


def micro_batches(batch: Batch, count: int, all_rows: bool = True) -> list[Batch]:
    """Split a generation into `count` micro-batches, rollouts of similar length together.

    A single one is the batch itself. Otherwise each is cut to its longest prompt and completion, and without
    `all_rows` rollouts of advantage 0 are dropped. TRL's loss is the mean of the micro-batches' means, so
    advantages are scaled to make that the sum over the kept rollouts, divided by all.
    """
    if count == 1:
        return [batch]
    lengths = batch["prompt_mask"].sum(dim=1) + batch["completion_mask"].sum(dim=1)
    order = torch.argsort(lengths, descending=True, stable=True)
    kept = order if all_rows else order[batch["advantages"][order] != 0]
    if len(kept) < count:
        kept = order
    parts = [_cut(batch, rows) for rows in kept.tensor_split(count)]
    for part in parts:
        part["advantages"] = part["advantages"] * (len(part["advantages"]) * count / len(order))
    return parts


def _cut(batch: Batch, rows: Tensor) -> Batch:
    part = {name: value[rows] if isinstance(value, Tensor) and value.dim() else value for name, value in batch.items()}
    prompt = int(part["prompt_mask"].sum(dim=1).max())
    completion = int(part["completion_mask"].sum(dim=1).max())
    for name in _PROMPT:
        part[name] = part[name][:, part[name].shape[1] - prompt :]
    for name in _COMPLETION:
        if name in part:
            part[name] = part[name][:, :completion]
    return part
