"""The one place where problems and traces become tokens, for SFT, probing, RL and evaluation alike.

The tokens of a training example are the prompt's tokens, then the trace's, then EOS, each tokenised on its
own. So the prompt part is token for token what generation is started from, whatever a tokenizer would merge
across the border and whatever a chat template would do to the assistant's message (Qwen3's adds an empty
`<think>` block to some).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vibethinker.data.schema import Problem, Trace
from vibethinker.errors import ConfigurationError
from vibethinker.settings import CODE_DOMAIN, Prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def messages(problem: Problem | Trace, prompts: Prompts) -> list[dict[str, str]]:
    """The conversation that asks for a solution: the system message, if there is one, and the problem with
    the suffix of its kind."""
    suffix = prompts.code_suffix if problem.domain == CODE_DOMAIN else prompts.math_suffix
    conversation = [{"role": "user", "content": problem.problem + suffix}]
    if prompts.system is not None:
        conversation.insert(0, {"role": "system", "content": prompts.system})
    return conversation


def all_prompt_ids(
    tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem | Trace], prompts: Prompts
) -> list[list[int]]:
    """For each problem the tokens that a completion is sampled from: the chat template with its generation
    prompt."""
    if not problems:
        return []
    conversations = [messages(problem, prompts) for problem in problems]
    return tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, tokenize=True, return_dict=False, padding=False
    )


def all_training_ids(
    tokenizer: PreTrainedTokenizerBase, traces: Sequence[Trace], prompts: Prompts
) -> list[tuple[list[int], list[int]]]:
    """For each trace its tokens with prompt and EOS, and a mask of equal length: 1 where the loss counts, on
    the trace and EOS.

    Raises:
        ConfigurationError: the tokenizer has no EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigurationError("The tokenizer has no EOS token, so no model learns to stop: set its eos_token.")
    if not traces:
        return []
    completions = tokenizer([trace.text for trace in traces], add_special_tokens=False)["input_ids"]
    return [
        (prompt + completion + [tokenizer.eos_token_id], [0] * len(prompt) + [1] * (len(completion) + 1))
        for prompt, completion in zip(all_prompt_ids(tokenizer, traces, prompts), completions, strict=True)
    ]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, problem: Problem | Trace, prompts: Prompts) -> list[int]:
    """`all_prompt_ids` of one problem."""
    return all_prompt_ids(tokenizer, [problem], prompts)[0]
