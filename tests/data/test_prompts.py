from __future__ import annotations

import pytest

from vibethinker.data.prompts import all_prompt_ids, all_training_ids, messages, prompt_ids
from vibethinker.data.schema import Problem, Trace
from vibethinker.errors import ConfigurationError
from vibethinker.settings import Prompts

PROBLEM = Problem("a-1", "algebra", "Solve 2x+4=10.", "procedural", "MIT", answer="3")
TRACE = Trace("a-1", "algebra", "Solve 2x+4=10.", "<think>10-4=6 6/2=3</think>\\boxed{3}", "procedural")
CODE = Trace("c-1", "code", "Write f(x): plus 1.", "<think>+1</think>\n```python\nx\n```", "procedural")
PROMPTS = (Prompts(), Prompts(system="Be brief.", math_suffix=" Box it.", code_suffix=" Fence it."))


@pytest.mark.parametrize("prompts", PROMPTS)
@pytest.mark.parametrize("trace", [TRACE, CODE])
def test_the_prompt_part_of_a_training_example_is_what_generation_starts_from(tiny_tokenizer, trace, prompts):
    ids, mask = all_training_ids(tiny_tokenizer, [trace], prompts)[0]
    prompt = prompt_ids(tiny_tokenizer, trace, prompts)
    assert ids[: len(prompt)] == prompt
    assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))


def test_a_problem_and_its_trace_have_the_same_prompt(tiny_tokenizer):
    assert prompt_ids(tiny_tokenizer, PROBLEM, Prompts()) == prompt_ids(tiny_tokenizer, TRACE, Prompts())


def test_the_loss_counts_on_the_whole_trace_and_on_eos(tiny_tokenizer):
    ids, mask = all_training_ids(tiny_tokenizer, [TRACE], Prompts())[0]
    counted = [token for token, counts in zip(ids, mask, strict=True) if counts]
    assert counted[-1] == tiny_tokenizer.eos_token_id
    assert tiny_tokenizer.decode(counted[:-1]) == TRACE.text


def test_a_template_that_rewrites_the_assistants_message_changes_neither_prompt_nor_trace(tiny_tokenizer):
    """Qwen3's template puts an empty <think> block before an assistant's message that has none."""
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content'] -}}",
        "('<think></think>' if message['role'] == 'assistant' else '') + message['content'] -}}",
    )
    ids, mask = all_training_ids(tokenizer, [TRACE], Prompts())[0]
    assert (ids, mask) == all_training_ids(tiny_tokenizer, [TRACE], Prompts())[0]


def test_the_suffix_follows_the_kind_of_problem():
    prompts = Prompts(system="Be brief.", math_suffix=" Box it.", code_suffix=" Fence it.")
    assert messages(TRACE, prompts) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Solve 2x+4=10. Box it."},
    ]
    assert messages(CODE, prompts)[-1]["content"] == "Write f(x): plus 1. Fence it."


def test_many_at_once_are_the_same_as_one_by_one(tiny_tokenizer):
    traces = [TRACE, CODE, TRACE]
    assert all_prompt_ids(tiny_tokenizer, traces, Prompts()) == [
        prompt_ids(tiny_tokenizer, trace, Prompts()) for trace in traces
    ]
    assert all_training_ids(tiny_tokenizer, traces, Prompts()) == [
        all_training_ids(tiny_tokenizer, [trace], Prompts())[0] for trace in traces
    ]


def test_a_tokenizer_without_eos_is_refused(tiny_tokenizer):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ConfigurationError, match="EOS"):
        all_training_ids(tokenizer, [TRACE], Prompts())[0]
