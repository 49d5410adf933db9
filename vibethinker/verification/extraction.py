r"""The final answer or the program in a response.

Reasoning ends at the last `</think>`. Math, in this order:
1. the last closed `\boxed{}` after it (of the whole text where there is no `</think>`, so an unclosed
   `<think>` hides nothing);
2. what follows the last "answer is" or "answer:" after it, to the end of the line or sentence;
3. the last closed box anywhere.
A box that is never closed was cut off and isn't an answer. Only one answer is ever taken, so boxing
several guesses gains nothing: the last counts.

Code: the last closed fenced block marked as Python or not marked at all, after `</think>`, else anywhere;
where no such block is closed, the last open one, to the end. Text outside a fence is never run.
"""

from __future__ import annotations

import re

# "answer is" is looked for near the end only, which bounds the work on a long text.
_PHRASE_WINDOW = 2000
_BRACE = re.compile(r"\\(?:boxed\s*\{|.)|[{}]", re.DOTALL)
_PHRASE = re.compile(r"\banswer\s*(?:is|[:=])[:\s]*", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
_PYTHON = frozenset({"", "python", "python3", "py"})


def after_thinking(text: str) -> str:
    """The part after the last `</think>`, or all of it."""
    return text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text


def last_box(text: str) -> str | None:
    r"""The content of the last closed `\boxed{}`, nested braces kept, escaped ones not counted; linear."""
    start = text.rfind("\\boxed")
    if start < 0:
        return None
    found = _boxes(text, start)
    if not found and text.find("\\boxed") < start:
        found = _boxes(text, text.find("\\boxed"))
    return found


def _boxes(text: str, start: int) -> str | None:
    """The box that opens last among those closed at or after `start`."""
    open_braces: list[int] = []  # the start of a box's content, or -1 for a plain brace
    best = (-1, -1)
    for token in _BRACE.finditer(text, start):
        mark = token.group()
        if mark == "{":
            open_braces.append(-1)
        elif mark.startswith("\\boxed"):
            open_braces.append(token.end())
        elif mark == "}" and open_braces:
            opened = open_braces.pop()
            if opened > best[0]:
                best = (opened, token.start())
    return text[best[0] : best[1]].strip() if best[0] >= 0 else None


def extract_answer(response: str) -> str | None:
    """The final answer of a mathematical response, or None."""
    visible = after_thinking(response)
    found = last_box(visible) or _phrase(visible[-_PHRASE_WINDOW:])
    if not found and len(visible) < len(response):
        found = last_box(response)
    return found or None


def _phrase(text: str) -> str | None:
    phrases = list(_PHRASE.finditer(text))
    if not phrases:
        return None
    # A sentence ends at a full stop before a space: the one in 3.5 isn't an end.
    answer = re.split(r"\n|\.(?:\s|$)", text[phrases[-1].end() :], maxsplit=1)[0].strip(" \t*")
    return answer if answer and "\\boxed" not in answer else None  # a box that was cut off, or an empty one


def extract_program(response: str) -> str | None:
    """The program of a response, or None."""
    visible = after_thinking(response)
    return _last_block(visible) or (_last_block(response) if len(visible) < len(response) else None)


def _last_block(text: str) -> str | None:
    closed: str | None = None
    opened: re.Match[str] | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[2] == "" and fence[1].startswith(opened[1]):
            if opened[2].lower() in _PYTHON:
                closed = text[opened.end() + 1 : fence.start()]
            opened = None
    if closed is None and opened is not None and opened[2].lower() in _PYTHON:
        closed = text[opened.end() + 1 :]
    return closed if closed and closed.strip() else None
