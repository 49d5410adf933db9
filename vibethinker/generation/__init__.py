"""Generation: token ids in, completions out, by any engine that keeps this interface.

`TransformersEngine` is the engine that always works; a vLLM engine keeps the same protocol. Importing this
module loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from vibethinker.errors import ConfigurationError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from vibethinker.generation.meter import Meter

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Completion:
    """One sampled continuation of a prompt.

    Attributes:
        text: the decoded completion without special tokens.
        tokens: number of generated tokens, the end-of-sequence token included.
        truncated: whether it ended at the length limit instead of an end-of-sequence token.
        ids: the generated token ids, the end-of-sequence token included.
        logprobs: the log-probability of each generated token in the distribution that it was drawn from, that is at
            the sampling temperature and within the nucleus; greedy ones at temperature 1. None where not asked for.
    """

    text: str
    tokens: int
    truncated: bool
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None


# Index of the prompt, index of the sample, the completion.
Ended = Callable[[int, int, Completion], None]


class Engine(Protocol):
    """Samples completions of prompts that are already token ids.

    Attributes:
        tokenizer: the model's.
        meter: how fast it has been.
    """

    tokenizer: PreTrainedTokenizerBase
    meter: Meter

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
        first: int = 0,
        logprobs: bool = False,
        progress: Progress | None = None,
        ended: Ended | None = None,
        known: Collection[tuple[int, int]] = (),
    ) -> list[list[Completion]]:
        """For each prompt, `samples` completions.

        Args:
            prompts: token ids of each prompt, chat template included.
            samples: completions a prompt.
            max_tokens: longest completion; the model's positions limit it too.
            temperature: divides the logits; 0 takes the most probable token.
            top_p: the nucleus, the smallest set of most probable tokens with at least this probability; 1 is
                off.
            seed: the same seed and arguments give the same completions on one machine.
            first: the index of the first prompt where these are a part of a longer list, so that each has the random
                numbers that it would have in the whole.
            logprobs: whether completions carry the log-probabilities of their tokens.
            progress: called with finished and all completions, at least every 64 decoding steps.
            ended: called once for each completion that is sampled, while others may still be, in any order.
            known: indices of prompt and sample of completions that the caller has. They may be left out, so what is
                returned in their places means nothing; the others are what they would be without it.
        """

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Log-probabilities, at temperature 1, of completions' tokens under the weights that the engine holds now.

        The same weights and arguments give the same values; so those of an engine whose weights are stale don't move.

        Args:
            sequences: token ids of a prompt, which isn't empty, and of its completion.

        Raises:
            ValueError: a prompt is empty, or a sequence exceeds the model's positions.
        """

    def update(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take these weights from now on.

        Args:
            weights: every tensor of the model by its name in a checkpoint (`model.layers.0.self_attn.q_proj.weight`);
                of tied embeddings the input's is enough. They are cast to the engine's type. Not consumed where the
                engine decodes with the very model that is being trained.

        Raises:
            ValueError: a weight is missing, unknown, or of another shape.
        """

    def load(self, folder: Path, base: Path | None = None) -> None:
        """Take the weights of another checkpoint of the same architecture; an adapter folder is merged into `base`.

        Raises:
            ConfigurationError: the folder is incomplete, or an adapter came without its base.
            ValueError: see `update`.
        """

    def sleep(self) -> None:
        """Give the device's memory back until `wake`, where the engine was opened to sleep."""

    def wake(self) -> None:
        """Take the memory again; the weights are what they were."""

    def close(self) -> None:
        """Free everything; the engine can't be used after that."""


def stop_tokens(tokenizer: PreTrainedTokenizerBase, configured: int | Sequence[int] | None) -> list[int]:
    """What ends a completion: the tokenizer's EOS and those of the generation config.

    Raises:
        ConfigurationError: there is none.
    """
    named = [tokenizer.eos_token_id, *(configured if isinstance(configured, (list, tuple)) else [configured])]
    found = sorted({int(token) for token in named if token is not None})
    if not found:
        raise ConfigurationError("The model has no end-of-sequence token: set the tokenizer's eos_token.")
    return found


def check(prompts: Sequence[Sequence[int]], samples: int, max_tokens: int, temperature: float, top_p: float) -> None:
    """Raise ValueError where no engine could generate."""
    if samples < 1 or max_tokens < 1 or temperature < 0 or not 0 < top_p <= 1 or not all(map(len, prompts)):
        raise ValueError(
            "generation needs prompts of at least one token, samples and max_tokens >= 1, temperature >= 0 and "
            "0 < top_p <= 1"
        )


def check_sequences(sequences: Sequence[tuple[Sequence[int], Sequence[int]]], positions: int | None) -> None:
    """Raise ValueError where no engine could score."""
    longest = max((len(prompt) + len(completion) for prompt, completion in sequences), default=0)
    if not all(len(prompt) for prompt, _ in sequences) or (positions is not None and longest > positions):
        raise ValueError(f"scoring needs prompts of at least one token and sequences of at most {positions} tokens")
