"""The policy canary, with engines that do and don't follow the policy."""

from __future__ import annotations

import pytest
import torch

from tests.training.test_trainer import by_letters, new_trainer, problems, tokenizer, trained  # noqa: F401
from vibethinker.errors import DivergedError
from vibethinker.generation.transformers_engine import TransformersEngine
from vibethinker.models import load_model, load_tokenizer

pytestmark = pytest.mark.slow


class Stale(TransformersEngine):
    """Has weights of its own and keeps them."""

    def update(self, weights):
        list(weights)


class Wrong(TransformersEngine):
    """Takes weights, but not the policy's."""

    def update(self, weights):
        super().update((name, tensor + 0.3 * torch.randn(tensor.shape)) for name, tensor in weights)


def an_engine(kind, folder):
    return lambda model: kind(load_model(folder), load_tokenizer(folder), owned=True)


def test_an_engine_that_takes_the_weights_trains_as_the_model_itself_does(new_trainer, taught_folder):  # noqa: F811
    ours = trained(new_trainer(engine=an_engine(TransformersEngine, taught_folder)))
    same = trained(new_trainer())
    for name, tensor in same.items():
        torch.testing.assert_close(ours[name], tensor, atol=2e-4, rtol=0)


def test_a_stale_engine_halts_the_stage_after_the_first_update(new_trainer, taught_folder):  # noqa: F811
    trainer = new_trainer(engine=an_engine(Stale, taught_folder))
    with pytest.raises(DivergedError, match="has not taken the policy's weights after 1 updates"):
        trained(trainer)


def test_an_engine_with_other_weights_halts_the_stage(new_trainer, taught_folder):  # noqa: F811
    trainer = new_trainer(engine=an_engine(Wrong, taught_folder))
    with pytest.raises(DivergedError, match="disagree by"):
        trained(trainer)


def test_the_gap_is_logged(new_trainer, taught_folder):  # noqa: F811
    trainer = new_trainer(engine=an_engine(TransformersEngine, taught_folder))
    trained(trainer)
    assert trainer.row["engine_gap"] < 1e-4


def importance(trainer, apart: float) -> tuple[dict, dict]:
    """The rollouts of an update before and after their log-probabilities by the trainer, `apart` from the engine's."""
    trainer.model.train()
    batch = trainer._gather_rollouts([trainer.train_dataset[i] for i in range(4) for _ in range(4)])
    batch["sampling_per_token_logps"] -= apart
    trainer._part = part = dict(batch)
    ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
    mask = torch.cat([part["prompt_mask"], part["completion_mask"]], 1)
    trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, part["completion_ids"].shape[1])
    return batch, part


@pytest.mark.parametrize(("apart", "counted"), [(0.0, 1.0), (0.1, 1.10517), (1.0, 1.5), (-1.0, 0.36788)])
def test_a_token_counts_by_how_much_likelier_it_is_in_training_up_to_the_cap(
    new_trainer,  # noqa: F811
    taught_folder,
    apart,
    counted,
):
    batch, part = importance(
        new_trainer(engine=an_engine(TransformersEngine, taught_folder), importance_cap=1.5), apart
    )
    counts = part["completion_mask"].bool()
    expected = counted * batch["advantages"].unsqueeze(1).expand_as(counts)
    torch.testing.assert_close(part["advantages"][counts], expected[counts], atol=1e-4, rtol=1e-4)


def test_within_a_nucleus_tokens_count_in_full(new_trainer, taught_folder):  # noqa: F811
    batch, part = importance(new_trainer(engine=an_engine(TransformersEngine, taught_folder), top_p=0.9), 1.0)
    assert torch.equal(part["advantages"], batch["advantages"])
