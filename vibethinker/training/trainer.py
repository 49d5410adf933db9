"""The trainer of a signal stage: TRL's GRPOTrainer with MGPO's weights on its advantages.

What differs from TRL's own GRPO, and through which of its hooks:

- rollouts: `rollout_func` asks a `vibethinker.generation` engine that has the weights in training (`rollouts`), so the
  policy is never stale; prompts are token ids from the data to the loss, so a rollout is trained on exactly the prompt
  that it was sampled from;
- rewards: one reward function returns the raw verdicts, graded as one batch a generation, None for those left
  out; `_calculate_rewards` returns them gathered, where Long2Short may shape them;
- advantages: `_generate_and_score_completions` returns them before the shuffle, groups contiguous, as
  (r − mean)/(std + 1e-4) with Bessel's correction; here they are multiplied by w(p). At λ = 0 every w is 1,
  and with one micro-batch on a CPU the whole is TRL's GRPO bit for bit, and so are its other objectives (`objectives`);
- refills: groups of one verdict teach nothing; with `refill` other problems take their place, before the update. That
  overlong completions are punished makes no group worth keeping;
- a budget: training ends once so many rollouts are sampled, refills included. No refill takes more than is left, and
  the last update has fewer prompts where no whole batch is;
- several updates: with `updates` each takes its share of the shuffled rollouts, whose log-probabilities by the policy
  that sampled them are known before the first. To the library it is one step: one of the schedule, of the log and of
  checkpoints, so that no rollouts need to be saved;
- micro-batches: `training_step` takes the update's rollouts whole and splits them by tokens (`batches`), those of
  similar length together; rollouts with advantage 0 are not computed at all, unless a KL term acts on them. So the
  entropy that TRL logs is that of the rollouts trained on;
- log-probabilities: on a GPU of sequences laid end to end (`packed`), else TRL's own;
- truncated importance sampling [3B]: an engine of its own rounds otherwise than the trainer, so each token counts by
  min(π_trainer/π_engine, cap), through the advantages, of which TRL takes one a token.

A rollout is left out (no verdict, or truncated with `truncated: mask`) from p, from the baseline and from the
loss; the mean over rollouts still divides by all of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import shuffle_sequence_dict

from vibethinker.errors import InfrastructureError
from vibethinker.settings import Objective
from vibethinker.training import mgpo, packed, processes, rectangles
from vibethinker.training.batches import accumulate, agreed, split_alike
from vibethinker.training.divergence import repeats
from vibethinker.training.objectives import overlong
from vibethinker.training.processes import Shardable
from vibethinker.training.resuming import Resuming
from vibethinker.training.rollouts import Batch, Rollouts
from vibethinker.training.validating import Validating

# Rollout texts and, for each, the number of its problem in the data → verdicts: True, False, or None for failed.
Grade = Callable[[Sequence[str], Sequence[int]], Sequence[bool | None]]
SHOWN, END = 16, 2000  # rollouts kept as evidence, and characters of each end of a text


class SignalTrainer(Resuming, Shardable, GRPOTrainer):
    """GRPO with MGPO's weights; see the module.

    Args:
        objective: the stage's settings.
        grade: the verifier of a batch of rollouts.
        micro_tokens: most tokens of a forward and backward pass.
        end_to_end: whether `packed.prepare` has made the model ready for sequences laid end to end.
        spare: rows like the dataset's, for refills.
        budget: rollouts of all processes, with which training ends even before `max_steps`; whole batches.
        validating: measures the weights that an update begins with, where it is time to.
        **trl: what GRPOTrainer takes; its rollout_func is a `Rollouts`. The dataset's rows have `prompt`, token ids,
            and `number`, the problem's, in the order of training.

    Attributes:
        end_to_end: see above.
        numbers: of the problems of the generation, one a rollout.
        row: what `log` adds to TRL's metrics for the current update; a histogram among them.
        totals: counts over the whole training, for signal.json.
    """

    def __init__(
        self,
        *,
        objective: Objective,
        grade: Grade,
        micro_tokens: int,
        end_to_end: bool = False,
        spare: Iterator[Batch] | None = None,
        budget: int | None = None,
        validating: Validating | None = None,
        **trl: Any,
    ) -> None:
        self._objective = objective
        self._grade = grade
        self._micro_tokens, self.end_to_end, self._spare = micro_tokens, end_to_end, spare or iter(())
        self._rollouts: Rollouts = trl["rollout_func"]
        self._validating, self._budget = validating, budget
        self.numbers: list[int] = []
        self._trained = 0  # tokens that went through the model
        self._spared = 0  # spare rows that were taken
        self.row: dict[str, Any] = {}
        # Rollouts, truncated ones, those that the verifier failed on, those that end in a loop.
        self._counts = torch.zeros(4, dtype=torch.long)
        self._sampled: list[dict[str, Any]] = []  # the update's own rollouts, prompts as token ids
        self._groups: list[tuple[Tensor, Tensor]] = []  # of each generation: verdicts, and which groups teach nothing
        self.totals = dict.fromkeys(
            ("rollouts", "truncated", "infrastructure", "groups", "zero_variance", "refilled"), 0
        )
        super().__init__(reward_funcs=[self.verdicts], **trl)
        if end_to_end and self.ref_model is not None:
            packed.prepare(self.ref_model, torch.bfloat16 if self.args.bf16 else torch.float32, compiled=False)

    def verdicts(
        self,
        prompts: list[list[int]],
        text: list[str],
        truncated: list[bool],
        number: list[int],
        completion_ids: list[list[int]],
        **_: Any,
    ) -> list[float | None]:
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
        # The token that ends a rollout is no part of a loop before it.
        loops = [repeats(ids if cut else ids[:-1]) for ids, cut in zip(completion_ids, truncated, strict=True)]
        failed = sum(verdict is None for verdict in found)
        self._counts += torch.tensor([len(text), sum(truncated), failed, sum(loops)])
        for i, ids in enumerate(completion_ids):
            shown = {"text": text[i], "verdict": values[i], "truncated": truncated[i], "repeating": loops[i]}
            self._sampled.append({"problem": number[i], "prompt": prompts[i], "tokens": len(ids), **shown})
        return values

    def groups(self) -> list[list[dict[str, Any]]]:
        """The rollouts of the last update in this process, those of refills included, by their groups."""
        size = self.num_generations
        return [self._sampled[start : start + size] for start in range(0, len(self._sampled), size)]

    def sample(self) -> list[dict[str, Any]]:
        """Rollouts of the last update in this process, those first that end in a loop or were truncated; long texts
        without their middle."""
        worst = sorted(self._sampled, key=lambda one: (not one["repeating"], not one["truncated"]))[:SHOWN]
        prompts = self._tokenizer.batch_decode([one["prompt"] for one in worst])
        return [
            one | {"prompt": _shortened(prompt), "text": _shortened(one["text"])}
            for one, prompt in zip(worst, prompts, strict=True)
        ]

    def training_step(
        self, model: torch.nn.Module, inputs: list[Batch], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """The updates of one batch: rollouts of the prompts, then the forward and backward passes over them."""
        if self._validating is not None:
            self._validating(self)
        model.train()
        with self.interruptible():
            shares = self._shares(model, inputs)
            total = self._gradients(model, shares[0])
        for share in shares[1:]:  # an interruption would now find moved weights, and waits for the step's end
            self._move(model)
            total = total + self._gradients(model, share)
        self._step += 1
        if self._groups_left == 0:
            self.control.should_training_stop = True
        return total / len(shares)

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        if self._groups_left:  # else a training goes on that was stopped after its last update
            super()._run_epoch(*args, **options)

    @property
    def _groups_left(self) -> int:
        """Groups that each process may still sample."""
        if self._budget is None:
            return sys.maxsize
        return (self._budget - self.totals["rollouts"]) // (self.num_generations * processes.count())

    def _shares(self, model: torch.nn.Module, inputs: list[Batch]) -> list[Batch]:
        """The rollouts of each update."""
        batch = shuffle_sequence_dict(self._gather_rollouts(inputs))
        self._rollouts.rest()
        updates = self._objective.updates
        if updates == 1:
            return [batch]
        rows = torch.arange(len(batch["advantages"]), device=batch["advantages"].device).chunk(updates)
        batch["num_items_in_batch"] = batch["num_items_in_batch"] / len(rows)
        shares = [rectangles.rows_of(batch, share) for share in rows]
        for share in shares:
            self._note_policy(model, share)
        return shares

    def _note_policy(self, model: torch.nn.Module, batch: Batch) -> None:
        """Add the log-probabilities by the policy that sampled."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        with torch.no_grad(), self.compute_loss_context_manager():
            found = self._get_per_token_logps_and_entropies(model, ids, mask, batch["completion_ids"].shape[1])
        batch["old_per_token_logps"] = found[0]

    def _move(self, model: torch.nn.Module) -> None:
        """Move the weights by the gradients, as the library does at the step's end."""
        self._clip_grad_norm(model)
        self.optimizer.step()
        model.zero_grad()

    def _gradients(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        """The loss of an update, whose gradients are then there."""
        parts, count = self._parts(batch), len(batch["advantages"])
        over_rollouts = self._objective.mean_over != "tokens"

        def loss(rows: Tensor) -> Tensor:
            # TRL's loss is the mean over a part's rollouts, or its sum by all tokens: together they are the update's.
            part = rectangles.cut(batch, rows if len(rows) else torch.zeros(1, dtype=torch.long, device=rows.device))
            share = len(rows) / count if over_rollouts else float(len(rows) > 0)
            return self.compute_loss(model, part) * share

        return accumulate(self, model, parts, loss)

    def _parts(self, batch: Batch) -> list[Tensor]:
        """The rows of each micro-batch."""
        device = batch["advantages"].device
        rows = torch.arange(len(batch["advantages"]), device=device)
        rectangle = (batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]) * len(rows)
        whole = not self.end_to_end and agreed(rectangle) <= self._micro_tokens
        if not whole and self.beta == 0:
            rows = rows[batch["advantages"] != 0]
        if not len(rows):  # the optimizer's moments still move the weights
            rows = torch.zeros(1, dtype=torch.long, device=device)
        prompts, completions = batch["prompt_mask"].sum(1)[rows], batch["completion_mask"].sum(1)[rows]
        self._trained += sum(processes.gathered([int((prompts + completions).sum())]))
        self.row["num_tokens"] = self._trained
        if whole:
            return [rows]
        padded = not self.end_to_end
        # A rectangle is as wide as its longest prompt and its longest completion together.
        lengths = ((prompts.max() if padded else prompts) + completions).tolist()
        parts = split_alike(lengths, self._micro_tokens, padded=padded)
        return [rows[torch.tensor(part, dtype=torch.long, device=device)] for part in parts]

    def _gather_rollouts(self, inputs: list[Batch]) -> Batch:
        """The scored rollouts of an update, with other problems in the place of groups of one verdict."""
        size = self.num_generations
        self.row, self._groups, self._sampled = {}, [], []
        self._counts.zero_()
        left = self._groups_left
        inputs = inputs[: left * size]
        batch = self._generate_and_score_completions(inputs)
        left -= len(inputs) // size
        teaching = self._teaching
        for _ in range(self._objective.refill):
            flat = (~teaching).nonzero().squeeze(-1).tolist()[:left]
            wanted = agreed(len(flat))
            fresh = [row for _, row in zip(range(wanted), self._spare, strict=False)]
            self._spared += len(fresh)
            if not wanted or len(fresh) < wanted:
                break
            more = self._generate_and_score_completions([dict(row) for row in fresh for _ in range(size)])
            left -= wanted
            self.totals["refilled"] += sum(processes.gathered([len(flat)]))
            batch = rectangles.replaced(batch, flat, more, size, self._tokenizer.pad_token_id)
            teaching[flat] = self._teaching[: len(flat)]
        counted = batch["completion_mask"] * batch.get("tool_mask", 1)  # which TRL counts before both change
        batch["num_items_in_batch"] = self.accelerator.gather(counted.sum()).sum()
        self._measure()
        return batch

    def _calculate_rewards(
        self, inputs: list[Batch], prompts: list[Any], completions: list[Any], completion_ids_list: list[list[int]]
    ) -> Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        verdicts = self._verdicts = rewards[:, 0].view(-1, self.num_generations).clone()
        objective, shaped = self._objective, verdicts
        own = torch.tensor([len(ids) for ids in completion_ids_list], device=rewards.device)
        lengths = self.accelerator.gather(own).view_as(verdicts)
        if objective.long2short:
            shaped = mgpo.long2short(verdicts, lengths, verdicts, objective.long2short)
        self._flat = (shaped - shaped.nanmean(dim=1, keepdim=True)).nan_to_num(nan=0.0).eq(0).all(dim=1)
        if objective.overlong:
            limit = self.max_completion_length
            shaped = shaped - overlong(lengths, limit, objective.overlong, objective.overlong_penalty)
        return shaped.view(-1, 1)

    def _generate_and_score_completions(self, inputs: list[Batch]) -> Batch:
        self.numbers = [row["number"] for row in inputs]
        batch = super()._generate_and_score_completions(inputs)
        groups = len(inputs) // self.num_generations
        own = slice(self.accelerator.process_index * groups, (self.accelerator.process_index + 1) * groups)
        verdicts = self._verdicts[own]  # of this process's groups; those of all count in what is measured
        advantages = batch["advantages"].view_as(verdicts)
        batch["advantages"] = mgpo.modulate(advantages, verdicts, self._objective.lambda_).flatten()
        left_out = torch.isnan(verdicts).flatten()
        if left_out.any():
            batch["tool_mask"] = batch["completion_mask"] * ~left_out.unsqueeze(1)
        self._teaching = ~self._flat[own]
        self._groups.append((self._verdicts, self._flat))
        return batch

    def _measure(self) -> None:
        """What is known of all groups of the update, those that were replaced included."""
        verdicts = torch.cat([found for found, _ in self._groups])
        flat = torch.cat([one for _, one in self._groups])
        device = self.accelerator.device
        counts = self.accelerator.reduce(self._counts.to(device), reduction="sum")
        rollouts, truncated, failed, repeating = counts.tolist()
        p = mgpo.accuracy(verdicts)
        known = p[~torch.isnan(p)]
        self.row |= {
            "truncated": truncated / rollouts,
            "repeating": repeating / rollouts,
            "infrastructure": failed,
            "p_histogram": mgpo.histogram(p, self.num_generations),
            "zero_variance": flat.float().mean().item(),
        }
        if len(known):  # else every rollout was left out
            self.row["p"] = known.mean().item()
            self.row["weight"] = mgpo.weight(known, self._objective.lambda_).mean().item()
        if self._rollouts.gap is not None:
            self.row["engine_gap"] = max(processes.gathered([self._rollouts.gap]))
        self.totals["rollouts"] += rollouts
        self.totals["truncated"] += truncated
        self.totals["infrastructure"] += failed
        self.totals["groups"] += len(p)
        self.totals["zero_variance"] += int(flat.sum())

    def _compute_loss(self, model: torch.nn.Module, inputs: Batch) -> Tensor:
        # TRL reads the advantages after it has asked for the log-probabilities, on which the importance depends.
        self._part = inputs = dict(inputs)
        with processes.uneven(self.accelerator):  # it gathers a number of each rollout of the part
            return super()._compute_loss(model, inputs)

    def _get_per_token_logps_and_entropies(
        self, model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **options: Any
    ) -> tuple[Tensor, Tensor | None, None]:
        if not torch.is_grad_enabled():  # a reference's, of the whole update
            return self._in_parts(model, input_ids, attention_mask, logits_to_keep, options), None, None
        if self.end_to_end:
            found, entropies = self._packed(model, input_ids, attention_mask, logits_to_keep)
        else:
            found, entropies, _ = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **options
            )
        sampled = self._part.pop("sampling_per_token_logps", None)
        # Within a nucleus the engine's probabilities are another distribution's, which rounding doesn't explain.
        if sampled is not None and self._objective.importance_cap and self._objective.top_p == 1:
            policy = self._part.get("old_per_token_logps", found.detach())  # the one that sampled
            ratio = torch.exp(policy - sampled).nan_to_num(nan=1.0)
            counts = self._part["completion_mask"].bool()
            self._metrics["train"]["importance"].append(self.accelerator.gather(ratio[counts].mean()).mean().item())
            capped = ratio.clamp(max=self._objective.importance_cap)
            self._part["advantages"] = self._part["advantages"].unsqueeze(1) * capped
        return found, entropies, None

    def _packed(self, model: torch.nn.Module, ids: Tensor, mask: Tensor, completion: int) -> tuple[Tensor, Tensor]:
        inner = packed.plain(self.accelerator.unwrap_model(model))
        return packed.logprobs(model, inner, ids, mask, completion, self._objective.temperature)

    def _in_parts(
        self, model: torch.nn.Module, ids: Tensor, mask: Tensor, completion: int, options: dict[str, Any]
    ) -> Tensor:
        """Log-probabilities alone, of as many rows at a time as `micro_tokens` allows."""
        if not self.end_to_end:
            options |= {"batch_size": max(1, self._micro_tokens // ids.shape[1])}
            return super()._get_per_token_logps_and_entropies(model, ids, mask, completion, **options)[0]
        found = torch.zeros(len(ids), completion, device=ids.device)
        for part in split_alike(mask.sum(1).tolist(), self._micro_tokens, padded=False):
            rows = torch.tensor(part or [0], device=ids.device)
            found[rows] = self._packed(model, ids[rows], mask[rows], completion)[0]
        return found

    def remembered(self) -> dict[str, Any]:
        """See `resumable.Remembers`."""
        canary = self._rollouts.remembered()
        return {"trained": self._trained, "spared": self._spared, "totals": dict(self.totals), "canary": canary}

    def recall(self, state: dict[str, Any]) -> None:
        """See `resumable.Remembers`."""
        self._trained, self.totals = state["trained"], state["totals"]
        self._spared = sum(1 for _ in zip(range(state["spared"]), self._spare, strict=False))
        self._rollouts.recall(state["canary"], self)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the row of this update to TRL's log."""
        logs.update(self.row)
        super().log(logs, start_time)


def _shortened(text: str) -> str:
    if len(text) <= 2 * END:
        return text
    return f"{text[:END]}\n[{len(text) - 2 * END} characters left out]\n{text[-END:]}"
