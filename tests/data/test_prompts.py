"""Prompts and what is learned from a trace, for chat templates that treat thinking in different ways."""

from __future__ import annotations

import copy

import pytest

from tests.chat_templates import QWEN3, R1, with_template
from vibethinker.data.prompts import all_prompt_ids, all_training_ids, messages, prompt_ids
from vibethinker.data.schema import Problem, Trace
from vibethinker.errors import ConfigurationError
from vibethinker.settings import Prompts
from vibethinker.verification import extract_answer, extract_program

PROBLEM = Problem("a-1", "algebra", "Solve 2x+4=10.", "procedural", "MIT", answer="3")
CODE = Trace("c-1", "code", "Write f(x): plus 1.", "<think>+1</think>\n```python\nx\n```", "procedural")


def a_trace(text: str) -> Trace:
    return Trace("a-1", "algebra", "Solve 2x+4=10.", text, "procedural")


TRACE = a_trace("<think>10-4=6 6/2=3</think>\\boxed{3}")
WORDY = Prompts(system="Be brief.", math_suffix=" Box it.", code_suffix=" Fence it.")
OPENED, SWITCHED_ON, SWITCHED_OFF = Prompts(open_think=True), Prompts(thinking=True), Prompts(thinking=False)
ASKED, ASKED_QWEN3 = "Solve 2x+4=10.", "<|im_start|>user\nSolve 2x+4=10.<|im_end|>\n<|im_start|>assistant\n"
# Chat template (None: the tiny model's own), prompt settings, the prompt that they make.
FORMATS = (
    (None, Prompts(), f"<|user|>{ASKED}<|assistant|>"),
    (None, WORDY, f"<|system|>Be brief.<|user|>{ASKED} Box it.<|assistant|>"),
    (None, OPENED, f"<|user|>{ASKED}<|assistant|><think>\n"),
    (QWEN3, Prompts(), ASKED_QWEN3),
    (QWEN3, WORDY, "<|im_start|>system\nBe brief.<|im_end|>\n" + ASKED_QWEN3.replace("10.", "10. Box it.")),
    (QWEN3, SWITCHED_ON, ASKED_QWEN3),
    (QWEN3, SWITCHED_OFF, f"{ASKED_QWEN3}<think>\n\n</think>\n\n"),
    (QWEN3, Prompts(thinking=True, open_think=True), f"{ASKED_QWEN3}<think>\n"),
    (R1, Prompts(), f"<｜User｜>{ASKED}<｜Assistant｜><think>\n"),
    (R1, WORDY, f"Be brief.<｜User｜>{ASKED} Box it.<｜Assistant｜><think>\n"),
    (R1, OPENED, f"<｜User｜>{ASKED}<｜Assistant｜><think>\n"),
)


def learned(tokenizer, trace: Trace, prompts: Prompts) -> str:
    """The text that the loss counts on, without EOS."""
    ids, mask = all_training_ids(tokenizer, [trace], prompts)[0]
    return tokenizer.decode([token for token, counts in zip(ids, mask, strict=True) if counts][:-1])


@pytest.mark.parametrize(("template", "prompts", "text"), FORMATS)
def test_each_format_makes_the_prompt_that_its_model_was_trained_on(tiny_tokenizer, template, prompts, text):
    tokenizer = with_template(tiny_tokenizer, template)
    ids = prompt_ids(tokenizer, PROBLEM, prompts)
    assert tokenizer.decode(ids) == text
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("template", "prompts", "text"), FORMATS)
@pytest.mark.parametrize("trace", [TRACE, CODE])
def test_the_prompt_part_of_a_training_example_is_what_generation_starts_from(
    tiny_tokenizer, trace, template, prompts, text
):
    tokenizer = with_template(tiny_tokenizer, template)
    if text.endswith("</think>\n\n"):
        trace = Trace(trace.problem_id, trace.domain, trace.problem, "\\boxed{3}", "procedural")
    ids, mask = all_training_ids(tokenizer, [trace], prompts)[0]
    prompt = prompt_ids(tokenizer, trace, prompts)
    assert ids[: len(prompt)] == prompt
    assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
    assert ids[-1] == tokenizer.eos_token_id


def test_a_problem_and_its_trace_have_the_same_prompt(tiny_tokenizer):
    assert prompt_ids(tiny_tokenizer, PROBLEM, Prompts()) == prompt_ids(tiny_tokenizer, TRACE, Prompts())


def test_the_loss_counts_on_the_whole_trace_and_on_eos(tiny_tokenizer):
    ids, mask = all_training_ids(tiny_tokenizer, [TRACE], Prompts())[0]
    counted = [token for token, counts in zip(ids, mask, strict=True) if counts]
    assert counted[-1] == tiny_tokenizer.eos_token_id
    assert tiny_tokenizer.decode(counted[:-1]) == TRACE.text


@pytest.mark.parametrize("trace", [TRACE, a_trace("\\boxed{3}")])
def test_a_template_that_rewrites_the_assistants_message_changes_no_trace(tiny_tokenizer, trace):
    """Qwen3's puts an empty block before a message that has none, R1's drops the thoughts."""
    assert learned(with_template(tiny_tokenizer, QWEN3), trace, Prompts()) == trace.text
    assert learned(with_template(tiny_tokenizer, R1), trace, Prompts()).endswith(trace.text.removeprefix("<think>"))


THOUGHTS = ("6/2=3</think>\\boxed{3}", "6/2=3\n</think>\n\nSo \\boxed{3}.", "\n</think>\n\n\\boxed{3}")


@pytest.mark.parametrize(("template", "prompts"), [(R1, Prompts()), (None, OPENED)])
@pytest.mark.parametrize("thoughts", THOUGHTS)
@pytest.mark.parametrize("opening", ["<think>\n", "\n<think>\n", ""])
def test_a_block_that_the_prompt_opens_is_not_opened_again(tiny_tokenizer, template, prompts, thoughts, opening):
    tokenizer = with_template(tiny_tokenizer, template)
    assert learned(tokenizer, a_trace(opening + thoughts), prompts) == thoughts


def test_only_the_blank_that_the_prompt_has_written_is_left_out_with_the_opening(tiny_tokenizer):
    tokenizer = with_template(tiny_tokenizer, R1.replace("<think>\\n", "<think>"))
    assert learned(tokenizer, a_trace("<think>\n3</think>3"), Prompts()) == "\n3</think>3"
    assert learned(with_template(tiny_tokenizer, R1), a_trace("<think>3</think>3"), Prompts()) == "3</think>3"


def test_in_an_opened_block_an_answer_without_thoughts_closes_it_and_open_thoughts_stay_open(tiny_tokenizer):
    tokenizer = with_template(tiny_tokenizer, R1)
    assert learned(tokenizer, a_trace("So \\boxed{3}."), Prompts()) == "\n</think>\n\nSo \\boxed{3}."
    assert learned(tokenizer, a_trace("<think>So \\boxed{3}."), Prompts()) == "So \\boxed{3}."


def test_a_trace_of_a_model_whose_prompt_opened_the_block_gets_the_opening_back(tiny_tokenizer):
    for tokenizer in (tiny_tokenizer, with_template(tiny_tokenizer, QWEN3)):
        for thoughts in THOUGHTS:
            assert learned(tokenizer, a_trace(thoughts), Prompts()) == f"<think>\n{thoughts}"


@pytest.mark.parametrize("text", [TRACE.text, "6/2=3</think>\\boxed{3}", "<think>So \\boxed{3}"])
def test_a_trace_that_thinks_is_refused_where_the_prompt_forbids_it(tiny_tokenizer, text):
    tokenizer = with_template(tiny_tokenizer, QWEN3)
    with pytest.raises(ConfigurationError, match=r"problem a-1 thinks: set prompts\.thinking to true"):
        all_training_ids(tokenizer, [a_trace(text)], SWITCHED_OFF)
    assert learned(tokenizer, a_trace("So \\boxed{3}."), SWITCHED_OFF) == "So \\boxed{3}."


@pytest.mark.parametrize("template", [None, R1])
@pytest.mark.parametrize("prompts", [SWITCHED_ON, SWITCHED_OFF])
def test_a_switch_that_the_template_lacks_is_refused(tiny_tokenizer, template, prompts):
    with pytest.raises(ConfigurationError, match="no switch `enable_thinking`: leave it unset"):
        prompt_ids(with_template(tiny_tokenizer, template), PROBLEM, prompts)


def test_a_block_that_is_closed_is_not_opened(tiny_tokenizer):
    with pytest.raises(ConfigurationError, match=r"prompts\.open_think asks for"):
        prompt_ids(with_template(tiny_tokenizer, QWEN3), PROBLEM, Prompts(thinking=False, open_think=True))


def test_what_is_written_inside_an_opened_block_is_graded_by_what_follows_it(tiny_tokenizer):
    tokenizer = with_template(tiny_tokenizer, R1)
    thinking = a_trace("<think>\nIs it \\boxed{9}?\n</think>\n\n\\boxed{3}")
    assert extract_answer(learned(tokenizer, thinking, Prompts())) == "3"
    assert extract_answer(learned(tokenizer, a_trace("\\boxed{3}"), Prompts())) == "3"
    assert extract_answer("Is it \\boxed{9}? No, \\boxed{3}.") == "3"  # never closed
    program = a_trace("<think>\n```python\nwrong\n```\n</think>\n\n```python\nright\n```")
    assert extract_program(learned(tokenizer, program, Prompts())) == "right\n"


def test_the_suffix_follows_the_kind_of_problem():
    assert messages(TRACE, WORDY) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Solve 2x+4=10. Box it."},
    ]
    assert messages(CODE, WORDY)[-1]["content"] == "Write f(x): plus 1. Fence it."


def test_many_at_once_are_the_same_as_one_by_one(tiny_tokenizer):
    traces = [TRACE, CODE, TRACE]
    assert all_prompt_ids(tiny_tokenizer, traces, OPENED) == [
        prompt_ids(tiny_tokenizer, trace, OPENED) for trace in traces
    ]
    assert all_training_ids(tiny_tokenizer, traces, OPENED) == [
        all_training_ids(tiny_tokenizer, [trace], OPENED)[0] for trace in traces
    ]


def test_no_problems_make_no_tokens(tiny_tokenizer):
    assert all_prompt_ids(tiny_tokenizer, [], OPENED) == all_training_ids(tiny_tokenizer, [], OPENED) == []


def test_a_tokenizer_without_eos_is_refused(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ConfigurationError, match="EOS"):
        all_training_ids(tokenizer, [TRACE], Prompts())
