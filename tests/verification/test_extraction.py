"""Which part of a response is its final answer, or its program."""

from __future__ import annotations

import pytest

from vibethinker.verification import extract_answer, extract_program


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{x \} y}", r"x \} y"),
        (r"\boxed{ 7 }", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"<think>\boxed{1}</think>\boxed{2}", "2"),
        (r"<think>a</think>\boxed{1}<think>b</think>\boxed{2}", "2"),
        (r"\boxed{1}</think>\boxed{2}</think> nothing else", "2"),
        # unclosed thinking hides nothing
        (r"<think> then \boxed{3}", "3"),
        # thinking that closed, and no box after it
        (r"<think>\boxed{3}</think> Done.", "3"),
        (r"<think>\boxed{3}</think> The answer is 4.", "4"),
        # a box that was cut off is none
        (r"\boxed{5} and so \boxed{6", "5"),
        (r"the answer is \boxed{6", None),
        (r"\boxed{5} {{{", "5"),
        (r"\boxed{}", None),
        (r"\boxed{5}, or rather \boxed{}", "5"),
        (r"\boxed{5} as in \boxed{answer}", "5"),
        (r"put it into \boxed{\text{your answer}}", None),
        (r"$\boxed{2}$ or $\boxed{3}$", "2, 3"),
        (r"\boxed{2}, \boxed{3} and \boxed{2}.", "2, 3"),
        (r"\boxed{2}. No, it is \boxed{3}.", "3"),
        (r"\fbox{7}", "7"),
        ("**Answer:** 42", "42"),
        ("The answer is 3.5.", "3.5"),
        ("The final answer is: **12**", "12"),
        ("Answer: x + 1\nbye", "x + 1"),
        ("the answer is 3. Then the answer is 4. Really", "4"),
        ("no idea", None),
        ("", None),
    ],
)
def test_the_last_answer_after_thinking_is_taken(response, answer):
    assert extract_answer(response) == answer


EXAMPLE = (
    "Question: what is 3 + 4?\nAnswer: adding them gives the sum that was asked for, \\boxed{7}\n\nQuestion: 5 + 8?"
)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (EXAMPLE, None),
        (f"The sum is \\boxed{{13}}\n\n{EXAMPLE}", "13"),
        (r"Adding them gives \boxed{7}", "7"),  # its own words, whatever the number
        (r"\boxed{7}", "7"),
    ],
)
def test_an_example_copied_from_the_prompt_is_no_answer(response, answer):
    assert extract_answer(response, EXAMPLE) == answer


def test_a_megabyte_of_unclosed_boxes_is_read_once():
    assert extract_answer(r"\boxed{8}" + r"\boxed{" * 150_000) == "8"


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na = 1\n```", "a = 1\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("~~~py\na = 1\n~~~", "a = 1\n"),
        ("```python\na = 1\n```\nthen\n```python\nb = 2\n```", "b = 2\n"),
        ("```python\na = 1\n```\nprints\n```text\n1\n```\n", "a = 1\n"),
        ("```python\na = 1\n```\n```bash\nls\n```\n", "a = 1\n"),
        ("````python\na = '''\n```\n'''\n````", "a = '''\n```\n'''\n"),
        ("<think>\n```python\na = 1\n```\n</think>\n```python\nb = 2\n```", "b = 2\n"),
        ("<think>\n```python\na = 1\n```\n</think>\nSee above.", "a = 1\n"),
        ("```python\na = 1\nb =", "a = 1\nb ="),
        ("```python\na = 1\n```\n```python\nb =", "a = 1\n"),
        ("a = 1", None),
        ("```python\n\n```", None),
        ("```text\nhello\n```", None),
    ],
)
def test_the_last_python_block_is_taken(response, program):
    assert extract_program(response) == program
