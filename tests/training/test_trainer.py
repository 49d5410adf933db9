"""The signal stage's trainer beside TRL's own GRPO."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_soft_overlong_punishment

from vibethinker.data.prompts import all_prompt_ids
from vibethinker.data.schema import Problem, read_records
from vibethinker.errors import InfrastructureError
from vibethinker.evaluation.measuring import derived_seed
from vibethinker.generation.transformers_engine import TransformersEngine
from vibethinker.models import load_model, load_tokenizer, seed_everything
from vibethinker.settings import Objective, Prompts
from vibethinker.training import mgpo
from vibethinker.training.objectives import trl_arguments
from vibethinker.training.rollouts import Rollouts
from vibethinker.training.trainer import SignalTrainer

pytestmark = pytest.mark.slow

GROUP, BATCH, STEPS, TOKENS = 4, 16, 3, 24
GRPO = {"loss_type": "grpo"}


def by_letters(texts, numbers):
    """Verdicts that mix right and wrong within most groups."""
    return [sum(map(ord, text)) % 3 == 0 for text in texts]


def all_right(texts, numbers):
    return [True] * len(texts)


class RolloutsOfSplitSteps(Rollouts):
    """Those that this package samples, where each update is a step to TRL."""

    def _next_seed(self, trainer):
        step = trainer.state.global_step // trainer.args.steps_per_generation
        return derived_seed(self._seed, "rollouts", str(step), "1")


@pytest.fixture
def tokenizer(taught_folder):
    return load_tokenizer(taught_folder)


@pytest.fixture
def problems(data_folder):
    """Sums around 10, which the taught model answers with one digit or with two."""
    problems = read_records(data_folder / "rl" / "algebra.parquet", Problem)
    return sorted(problems, key=lambda problem: abs(int(problem.answer) - 9.5))


@pytest.fixture
def new_trainer(taught_folder, tokenizer, problems, tmp_path):
    """A function → trainer on the taught model: this package's, or TRL's own GRPOTrainer, `stock` in its words."""

    def make(
        grade=by_letters,
        *,
        stock=None,
        micro=10_000,
        end_to_end=False,
        engine=None,
        spare=(),
        steps=STEPS,
        **objective,
    ):
        objective = Objective(group_size=GROUP, batch_size=BATCH, **objective)
        split = objective.updates if stock else 1  # of a batch, each of which is a step to TRL
        seed_everything(1)
        model = load_model(taught_folder)
        more = all_prompt_ids(tokenizer, problems, Prompts())
        numbers = [number % len(more) for number in range(BATCH // GROUP * steps)]
        ids = [more[number] for number in numbers]
        common = {
            "model": model,
            "args": GRPOConfig(
                output_dir=str(tmp_path),
                max_steps=steps * split,
                per_device_train_batch_size=BATCH // split,
                gradient_accumulation_steps=1,
                steps_per_generation=split,
                num_generations=GROUP,
                max_completion_length=TOKENS,
                learning_rate=1e-3,
                lr_scheduler_type="constant",
                **(stock or trl_arguments(objective)),
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
                shuffle_dataset=False,
                remove_unused_columns=False,
                logging_steps=1,
            ),
            "train_dataset": Dataset.from_dict({"prompt": ids, "number": numbers}),
            "processing_class": tokenizer,
            "rollout_func": (RolloutsOfSplitSteps if split > 1 else Rollouts)(
                engine(model) if engine else TransformersEngine(model, tokenizer),
                objective,
                TOKENS,
                seed=1,
                own_weights=engine is not None,
            ),
        }
        if stock:
            punished = get_soft_overlong_punishment(TOKENS, objective.overlong)

            def reward(text, number, truncated, completion_ids, **_):
                verdicts = grade(text, number)
                right = [0.0 if cut else float(v) for v, cut in zip(verdicts, truncated, strict=True)]
                if not objective.overlong:
                    return right
                # Between 0 and 1, what a completion loses is half of what it is between DAPO's -1 and 1.
                return [v + loss / 2 for v, loss in zip(right, punished(completion_ids), strict=True)]

            trainer = GRPOTrainer(reward_funcs=[reward], **common)
            trainer.end_to_end = False  # which the canary asks for
            return trainer
        return SignalTrainer(
            objective=objective,
            grade=grade,
            micro_tokens=micro,
            end_to_end=end_to_end,
            spare=iter([{"prompt": more[n], "number": n} for n in spare]),
            **common,
        )

    return make


def trained(trainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return copy.deepcopy(trainer.model.state_dict())


def generation(trainer) -> dict:
    """What the trainer makes of its first batch, before the shuffle."""
    rows = [trainer.train_dataset[i] for i in range(BATCH // GROUP) for _ in range(GROUP)]
    trainer.model.train()
    return trainer._gather_rollouts(rows)


def verdicts_of(trainer) -> torch.Tensor:
    return trainer._verdicts


def test_lambda_0_is_trls_grpo_bit_for_bit_after_20_steps(new_trainer):
    ours, stock = trained(new_trainer(lambda_=0.0, steps=20)), trained(new_trainer(stock=GRPO, steps=20))
    assert all(torch.equal(ours[name], stock[name]) for name in stock)


def test_lambda_1_trains_otherwise_than_grpo(new_trainer):
    ours, stock = trained(new_trainer(lambda_=1.0)), trained(new_trainer(stock=GRPO))
    assert any(not torch.equal(ours[name], stock[name]) for name in stock)


def test_advantages_are_grpos_times_the_weight_of_their_group(new_trainer):
    plain, weighted = new_trainer(lambda_=0.0), new_trainer(lambda_=2.0)
    a, b = (generation(t)["advantages"].view(-1, GROUP) for t in (plain, weighted))
    w = mgpo.weight(mgpo.accuracy(verdicts_of(weighted)), 2.0)
    assert torch.equal(b, a * w.unsqueeze(1))
    assert len(set(w.tolist())) > 1
    torch.testing.assert_close(b.sum(dim=1), torch.zeros(len(b)), atol=1e-5, rtol=0)


def test_advantages_are_rewards_less_their_mean_over_their_deviation(new_trainer):
    trainer = new_trainer(lambda_=0.0)
    found = generation(trainer)["advantages"].view(-1, GROUP)
    v = verdicts_of(trainer)
    expected = (v - v.mean(dim=1, keepdim=True)) / (v.std(dim=1, keepdim=True) + 1e-4)
    torch.testing.assert_close(found, expected)


def test_groups_of_one_verdict_have_no_advantage_and_are_counted(new_trainer):
    trainer = new_trainer(lambda texts, numbers: [number % 2 == 0 for number in numbers])
    batch = generation(trainer)
    truncated = (verdicts_of(trainer) == 0).any(dim=1) & (verdicts_of(trainer) == 1).any(dim=1)
    assert (batch["advantages"].view(-1, GROUP)[~truncated] == 0).all()
    assert trainer.row["zero_variance"] == (~truncated).float().mean().item()
    assert trainer.totals["zero_variance"] == int((~truncated).sum())


def test_a_rollout_is_trained_on_the_tokens_that_it_was_sampled_from(new_trainer, tokenizer, problems):
    batch = generation(new_trainer())
    for i, (ids, mask) in enumerate(zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)):
        expected = all_prompt_ids(tokenizer, [problems[i // GROUP]], Prompts())[0]
        assert ids[mask.bool()].tolist() == expected


def test_rollouts_that_the_verifier_failed_on_are_left_out_of_p_baseline_and_loss(new_trainer):
    """The first rollout of each group has no verdict, the second is right, the others are wrong."""
    failing = [None, True, False, False] * (BATCH // GROUP)
    seen = {}

    def grade(texts, numbers):
        seen["texts"] = texts
        return failing

    trainer = new_trainer(grade, lambda_=1.0)
    trainer._grade = lambda texts, numbers: grade(texts, numbers)[: len(texts)]
    trainer.rollout_func._max_tokens = 60  # long enough that none is truncated
    batch = generation(trainer)
    assert len(seen["texts"]) == BATCH
    advantages = batch["advantages"].view(-1, GROUP)
    assert (advantages[:, 0] == 0).all()
    r = torch.tensor([1.0, 0.0, 0.0])
    expected = (r - r.mean()) / (r.std() + 1e-4) * mgpo.weight(torch.tensor(1 / 3), 1.0)
    torch.testing.assert_close(advantages[:, 1:], expected.expand(BATCH // GROUP, 3))
    assert (batch["tool_mask"].view(BATCH // GROUP, GROUP, -1)[:, 0] == 0).all()
    assert torch.equal(batch["tool_mask"].view(BATCH // GROUP, GROUP, -1)[:, 1:].reshape(12, -1),
                       batch["completion_mask"].view(BATCH // GROUP, GROUP, -1)[:, 1:].reshape(12, -1))  # fmt: skip
    assert trainer.row["infrastructure"] == BATCH // GROUP
    assert trainer.row["p"] == pytest.approx(1 / 3)


def test_a_verifier_that_fails_on_a_whole_update_ends_the_step(new_trainer):
    trainer = new_trainer(lambda texts, numbers: [None] * len(texts))
    trainer.rollout_func._max_tokens = 60  # long enough that none is truncated
    with pytest.raises(InfrastructureError, match=f"failed on all {BATCH} rollouts"):
        generation(trainer)


def test_an_update_whose_rollouts_are_all_left_out_has_no_p(new_trainer):
    trainer = new_trainer(truncated="mask")
    trainer.rollout_func._max_tokens = 1
    generation(trainer)
    assert "p" not in trainer.row
    assert "weight" not in trainer.row
    assert trainer.row["zero_variance"] == 1.0


@pytest.mark.parametrize(("truncated", "expected"), [("zero", 0.0), ("mask", float("nan"))])
def test_a_truncated_rollout_counts_0_or_is_left_out(new_trainer, truncated, expected):
    trainer = new_trainer(all_right, truncated=truncated)
    trainer.rollout_func._max_tokens = 12
    batch = generation(trainer)
    last = batch["completion_ids"].gather(1, batch["completion_mask"].sum(dim=1, keepdim=True).long() - 1)
    cut = (last != trainer.eos_token_ids[0]).view(-1, GROUP)
    assert cut.any() and not cut.all()
    torch.testing.assert_close(verdicts_of(trainer)[cut], torch.full((int(cut.sum()),), expected), equal_nan=True)
    assert (verdicts_of(trainer)[~cut] == 1).all()
    assert trainer.row["truncated"] == cut.float().mean().item()


@pytest.mark.parametrize("shaping", [{"long2short": 0.2}, {"overlong": 16}])
def test_shaped_rewards_leave_p_unchanged(new_trainer, shaping):
    plain, shaped = new_trainer(all_right), new_trainer(all_right, **shaping)
    a, b = generation(plain), generation(shaped)
    assert not torch.equal(a["advantages"], b["advantages"])
    for measure in ("p", "p_histogram", "weight"):
        assert plain.row[measure] == shaped.row[measure]
    assert torch.equal(verdicts_of(plain), verdicts_of(shaped))


@pytest.mark.parametrize("beta", [0.0, 1.0])
@pytest.mark.parametrize("options", [{"micro": 64}, {"micro": 64, "end_to_end": True}, {"end_to_end": True}])
def test_micro_batches_and_packing_change_nothing_but_rounding(new_trainer, options, beta):
    """Two updates, since the KL term begins at 0."""
    whole, parts = (trained(new_trainer(steps=2, beta=beta, **more)) for more in ({}, options))
    start = new_trainer().model.state_dict()
    moved = max((whole[name] - start[name]).abs().max() for name in whole)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=float(moved) / 50, rtol=0)


def test_rollouts_of_advantage_0_are_not_computed_and_the_mean_stays(new_trainer):
    trainer = new_trainer(micro=200)
    batch = generation(trainer)
    parts = trainer._parts(batch)
    assert sorted(torch.cat(parts).tolist()) == batch["advantages"].nonzero().squeeze(-1).tolist()
    assert len(parts) > 1


def test_refills_take_the_place_of_groups_of_one_verdict(new_trainer):
    def first_problem_always_right(texts, numbers):
        return [
            True if number == 0 else mixed for number, mixed in zip(numbers, by_letters(texts, numbers), strict=True)
        ]

    trainer = new_trainer(first_problem_always_right, refill=2, spare=[5, 6, 7, 8, 9, 10, 11, 12])
    batch = generation(trainer)
    assert trainer.totals["refilled"] >= 1
    assert trainer.totals["groups"] == BATCH // GROUP + trainer.totals["refilled"]
    assert (batch["advantages"].view(-1, GROUP) != 0).any(1).all()
    assert trainer.row["zero_variance"] > 0  # measured before they were replaced
    lengths = batch["completion_mask"].sum(1)
    tokens = [ids[:length] for ids, length in zip(batch["completion_ids"].tolist(), lengths.tolist(), strict=True)]
    assert all(trainer.processing_class.pad_token_id not in ids for ids in tokens)


def test_rollouts_that_end_in_a_loop_are_counted_and_shown_first(new_trainer):
    trainer = new_trainer(all_right)
    loop, plain = [5, 6] * 20, list(range(40))
    trainer._gather_rollouts([trainer.train_dataset[0]] * GROUP + [trainer.train_dataset[1]] * GROUP)
    assert trainer.row["repeating"] == 0
    trainer._sampled = []
    trainer._counts.zero_()
    trainer.verdicts(
        prompts=[[1]] * 3,
        text=["whole", "x" * 10_000, "stopped"],
        truncated=[False, True, False],
        number=[0, 1, 2],
        completion_ids=[plain, loop, [*loop, 0]],  # the last stopped by itself, after its loop
    )
    assert trainer._counts.tolist() == [3, 1, 0, 2]
    shown = trainer.sample()
    assert [one["problem"] for one in shown] == [1, 2, 0]
    assert [one["verdict"] for one in shown] == [0.0, 1.0, 1.0]
    assert len(shown[0]["text"]) < 5000
    assert "6000 characters left out" in shown[0]["text"]
    assert shown[0]["tokens"] == 40
