"""What an exported model says, compared with what the model it was made from says: greedy tokens on a few prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vibethinker.errors import VibeThinkerError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTIONS = ("What is 12 + 30?", "Solve 3x + 4 = 19 for x.", "Write a Python function that reverses a string.")
TOKENS = 16  # an answer, at most


def prompts(tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The questions as the model's chat template puts them, in tokens."""
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
        for q in QUESTIONS
    ]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The model's greedy tokens after each prompt, each prompt alone."""
    from vibethinker.generation.transformers_engine import TransformersEngine

    engine = TransformersEngine(model, tokenizer, batch=1)
    found = engine.generate(prompts(tokenizer), samples=1, max_tokens=TOKENS, temperature=0.0, top_p=1.0, seed=0)
    return [list(completion.ids) for [completion] in found]


def agree(wanted: Sequence[Sequence[int]], found: Sequence[Sequence[int]], what: str) -> None:
    """Raises VibeThinkerError where an answer differs."""
    for question, mine, other in zip(QUESTIONS, wanted, found, strict=True):
        if list(mine) != list(other):
            at = next((i for i, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), 0)
            raise VibeThinkerError(
                f"The {what} that was written doesn't answer {question!r} as the model does (token {at} differs), so "
                "it was not kept: this is a fault of the export; please report it with the model's config.json."
            )
