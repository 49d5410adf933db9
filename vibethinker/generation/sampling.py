"""Drawing the next token by inverse transform sampling, one uniform number a token.

Each sequence owns a counter-based stream (Philox) keyed by seed, prompt and sample, so which sequences share
a batch does not change the numbers that it draws. Probabilities become integers of 2^-40 before they are
summed: integer sums are exact, so kernels that sum in another order draw the same token, and deterministic
mode accepts them on a GPU. One uniform a token is some ten times cheaper on a CPU than the one a vocabulary
entry that `torch.multinomial` needs.

Left out: top-k, min-p, repetition penalties; the recipe uses none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_UNIT = 2.0**40
_BLOCK = 64
_FIRST_WIDTH = 64


class UniformStreams:
    """Uniform numbers in [0, 1) for each sequence of a batch, drawn in blocks of 64 steps.

    Args:
        seed: the run's seed.
        sequences: (prompt index, sample index) of each row.
    """

    def __init__(self, seed: int, sequences: Sequence[tuple[int, int]]) -> None:
        keys = (np.array([seed % 2**64, (prompt << 32) + sample], dtype=np.uint64) for prompt, sample in sequences)
        self._generators = [np.random.Generator(np.random.Philox(key=key)) for key in keys]
        self._block = np.empty((len(sequences), 0))
        self._used = 0

    def next(self) -> torch.Tensor:
        """The next number of each row, shape (rows,), float64 on the CPU."""
        if self._used == self._block.shape[1]:
            self._block = np.stack([generator.random(_BLOCK) for generator in self._generators])
            self._used = 0
        self._used += 1
        return torch.from_numpy(self._block[:, self._used - 1])

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these."""
        self._generators = [self._generators[row] for row in rows]
        self._block = self._block[list(rows)]


def draw(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token id a row, and how likely it was.

    Args:
        logits: shape (rows, vocabulary).
        uniforms: shape (rows,), float64 in [0, 1), on the logits' device.
        temperature: > 0, divides the logits.
        top_p: nucleus; 1 samples from the whole distribution.

    Returns:
        Token ids, shape (rows,), int64, and the logarithms of their probabilities at this temperature, within the
        nucleus, shape (rows,), float32.
    """
    probabilities = torch.softmax(logits.float() / temperature, dim=-1)
    weights = (probabilities * _UNIT).to(torch.int64)
    if top_p >= 1:
        tokens = _invert(weights.cumsum(-1), uniforms).unsqueeze(-1)
        return tokens.squeeze(-1), probabilities.gather(-1, tokens).log().squeeze(-1)
    # A nucleus is mostly small: sort a few candidates, and all of them only if some row needs it.
    goal = (weights.sum(-1) * top_p).unsqueeze(-1)
    vocabulary = weights.shape[-1]
    width = min(_FIRST_WIDTH, vocabulary)
    while True:
        candidates, ids = torch.topk(weights, width)
        sums = candidates.cumsum(-1)
        if width == vocabulary or bool((sums[:, -1:] >= goal).all()):
            break
        width = min(8 * width, vocabulary)
    outside = sums - candidates >= goal
    inside = candidates.masked_fill(outside, 0).cumsum(-1)
    tokens = ids.gather(-1, _invert(inside, uniforms).unsqueeze(-1))
    share = inside[:, -1:] / weights.sum(-1, keepdim=True)
    return tokens.squeeze(-1), (probabilities.gather(-1, tokens) / share).log().squeeze(-1)


def _invert(sums: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """The first index whose running sum exceeds uniform × total; entries of weight 0 are never first."""
    total = sums[:, -1]
    target = torch.minimum((uniforms * total).to(torch.int64), total - 1)
    return torch.searchsorted(sums, target.unsqueeze(-1), right=True).squeeze(-1)
