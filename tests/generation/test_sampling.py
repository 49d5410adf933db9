"""The sampler's probabilities, and its streams of random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vibethinker.generation.sampling import UniformStreams, draw


def frequencies(logits: torch.Tensor, temperature: float, top_p: float, n: int = 200_000) -> np.ndarray:
    uniforms = (torch.arange(n, dtype=torch.float64) + 0.5) / n  # an even grid: frequencies are exact up to 1 / n
    tokens, _ = draw(logits.expand(n, -1), uniforms, temperature, top_p)
    return np.bincount(tokens.numpy(), minlength=logits.shape[-1]) / n


def test_tokens_are_drawn_with_the_softmax_probabilities():
    logits = torch.tensor([0.0, 1.0, -2.0, 3.0, float("-inf")])
    for temperature in (0.5, 1.0, 2.0):
        wanted = torch.softmax(logits / temperature, -1).numpy()
        assert np.abs(frequencies(logits, temperature, 1.0) - wanted).max() < 1e-4


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    logits = torch.log(torch.tensor([0.05, 0.5, 0.15, 0.3]))
    assert np.abs(frequencies(logits, 1.0, 0.7) - [0, 0.625, 0, 0.375]).max() < 1e-4
    assert np.abs(frequencies(logits, 1.0, 0.9) - [0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95]).max() < 1e-4
    assert np.abs(frequencies(logits, 1.0, 0.01) - [0, 1, 0, 0]).max() == 0


def test_a_nucleus_wider_than_the_first_candidates_is_whole():
    logits = torch.zeros(1000)
    found = frequencies(logits, 1.0, 0.5, n=10_000)
    assert (found > 0).sum() == 500


def test_extreme_uniforms_never_leave_the_support():
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]] * 2)
    uniforms = torch.tensor([0.0, float(np.nextafter(1.0, 0.0))], dtype=torch.float64)
    for top_p in (1.0, 0.95):
        assert set(draw(logits, uniforms, 1.0, top_p)[0].tolist()) == {1, 2}


@pytest.mark.slow
def test_a_token_comes_with_the_probability_that_it_was_drawn_with():
    torch.manual_seed(0)
    logits = torch.randn(40) * 2
    for temperature, top_p in ((0.7, 1.0), (1.0, 0.8), (1.5, 0.3)):
        uniforms = torch.rand(500, dtype=torch.float64)
        tokens, logprobs = draw(logits.expand(500, -1), uniforms, temperature, top_p)
        seen = frequencies(logits, temperature, top_p)
        assert np.abs(logprobs.exp().numpy() - seen[tokens.numpy()]).max() < 2e-5


def test_a_stream_depends_on_seed_prompt_and_sample_alone():
    alone = UniformStreams(7, [(3, 1)])
    together = UniformStreams(7, [(0, 0), (3, 1), (3, 2)])
    other_seed = UniformStreams(8, [(3, 1)])
    for step in range(150):
        if step == 70:
            together.keep([1, 2])
        row = 1 if step < 70 else 0
        drawn = together.next()
        value = float(alone.next()[0])
        assert float(drawn[row]) == value
        assert float(drawn[row + 1]) != value
        assert float(other_seed.next()[0]) != value
