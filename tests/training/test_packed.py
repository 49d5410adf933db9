"""Sequences end to end give what each of them gives alone; on a CPU, where attention goes by positions."""

from __future__ import annotations

import pytest
import torch

from vibethinker.training import logprobs, packed

LENGTHS = [7, 3, 12]


@pytest.fixture
def model(new_tiny_model):
    return new_tiny_model(3).train()


@pytest.fixture
def rows():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(5, 300, (length,), generator=generator) for length in LENGTHS]


def alone(model, ids, temperature=1.0):
    """Log-probabilities of a sequence's tokens but the first, and the entropies."""
    found = torch.log_softmax(model(ids.unsqueeze(0)).logits[0, :-1] / temperature, -1)
    return found.gather(-1, ids[1:].unsqueeze(-1)).squeeze(-1), -(found.exp() * found).sum(-1)


def gradients(model, loss):
    return torch.autograd.grad(loss, list(model.parameters()))


def test_the_loss_and_its_gradients_are_those_of_the_single_sequences(model, rows, monkeypatch):
    monkeypatch.setattr(logprobs, "ROWS", 4)  # several chunks
    labels = [row.clone() for row in rows]
    labels[0][:4] = -100
    labels[2][5] = -100
    expected = -sum((alone(model, row)[0] * (label[1:] != -100)).sum() for row, label in zip(rows, labels, strict=True))
    masked = [torch.cat([torch.tensor([logprobs.IGNORED]), label[1:]]) for label in labels]
    loss, right = packed.nll(model, model, torch.cat(rows), torch.cat(masked), LENGTHS, 0.5)
    torch.testing.assert_close(loss, 0.5 * expected)
    hits = [
        (model(row.unsqueeze(0)).logits[0, :-1].argmax(-1) == label[1:]).sum()
        for row, label in zip(rows, labels, strict=True)
    ]
    assert int(right) == sum(map(int, hits))
    for ours, theirs in zip(gradients(model, loss), gradients(model, 0.5 * expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_log_probabilities_of_a_padded_rectangle_are_those_of_the_single_sequences(model, rows, monkeypatch):
    monkeypatch.setattr(logprobs, "ROWS", 4)
    prompts, completions = [row[:2] for row in rows], [row[2:] for row in rows]
    longest = max(map(len, completions))
    ids, mask = torch.zeros(3, 3 + longest, dtype=torch.long), torch.zeros(3, 3 + longest, dtype=torch.long)
    for number, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        ids[number, 1 : 3 + len(completion)] = torch.cat([prompt, completion])
        mask[number, 1 : 3 + len(completion)] = 1
    found, entropies = packed.logprobs(model, model, ids, mask, longest, 0.7)
    expected, spread = zip(*(alone(model, row, 0.7) for row in rows), strict=True)
    for number, completion in enumerate(completions):
        torch.testing.assert_close(found[number, : len(completion)], expected[number][1:])
        torch.testing.assert_close(entropies[number, : len(completion)], spread[number][1:])
        assert not found[number, len(completion) :].any()
    weights = torch.rand(found.shape, generator=torch.Generator().manual_seed(2))
    theirs = sum((expected[n][1:] * weights[n, : len(c)]).sum() for n, c in enumerate(completions))
    for a, b in zip(gradients(model, (found * weights).sum()), gradients(model, theirs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_scores_are_those_of_the_single_sequences(model, rows):
    found = packed.score(model, model, [(row[:2].tolist(), row[2:].tolist()) for row in rows])
    for row, scored in zip(rows, found, strict=True):
        torch.testing.assert_close(torch.tensor(scored), alone(model, row)[0][1:].detach())


def test_the_head_is_itself_again_afterwards(model, rows):
    packed.nll(model, model, rows[0], rows[0].roll(0).index_fill(0, torch.tensor([0]), -100), LENGTHS[:1], 1.0)
    assert model(rows[0].unsqueeze(0)).logits.shape == (1, len(rows[0]), 320)


def test_a_head_with_a_bias_is_not_packed(model):
    assert packed.can_pack(model)
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(320))
    assert not packed.can_pack(model)
