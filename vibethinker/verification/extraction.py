r"""The final answer or the program in a response; docs/verification.md states the rules.

Math: reasoning ends at the last `</think>`. The answer is the last closed `\boxed{}` after it, together with those
that nothing but "and", "or" and punctuation parts from it; else what follows the last "answer is"; else the last
closed box anywhere. Boxes that hold nothing or a placeholder, and those copied from the prompt, are passed over.

Code: the last closed fenced block marked as Python or not marked at all, after `</think>`, else anywhere; where no
such block is closed, the last open one, to the end. Text outside a fence is never run.
"""

from __future__ import annotations

import re
from typing import NamedTuple

COPIED = 40  # characters before a box that stand in the prompt as well, where it is copied

# "answer is" is looked for near the end only, which bounds the work on a long text.
_PHRASE_WINDOW = 2000
_BRACE = re.compile(r"\\(?:(?:boxed|fbox)\s*\{|.)|[{}]", re.DOTALL)
_BETWEEN = re.compile(r"(?:[\s$,;.*]|\\[()\[\],; ]|\\text\{\s*(?:and|or)\s*\}|\band\b|\bor\b)*")
_LONGEST_PLACEHOLDER = 60
_PLACEHOLDER = re.compile(
    r"(?:\\(?:text|mathrm)\{ ?)?(?:|\?+|\.{2,}|…|\\[lc]?dots|_+|"
    r"\\underline\{(?:[\s_~]|\\quad|\\hspace\{\w*\})*\}|<.*>|\[[^]]*answer[^]]*\]|"
    r"(?:your |the |final |my )*(?:answer|result|solution)(?: here)?) ?\}?",
    re.IGNORECASE,
)
_PHRASE = re.compile(r"\banswer\s*(?:is\b|[:=])[:\s]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\n|\.(?:\s|$)|,? (?:because|since|which|as (?:required|desired))\b")
_ESCAPED_END = re.compile(r"(?<!\\)\\$")
_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n`]*$", re.MULTILINE)
_PYTHON = frozenset({"", "python", "python3", "py"})


class _Box(NamedTuple):
    start: int  # of the command
    end: int  # behind the brace
    content: str


def after_thinking(text: str) -> str:
    """The part after the last `</think>`, or all of it."""
    return text[text.rfind("</think>") + len("</think>") :] if "</think>" in text else text


def extract_answer(response: str, prompt: str = "") -> str | None:
    """The final answer of a mathematical response, or None; `prompt` is what it answers, where that is known."""
    visible = after_thinking(response)
    found = boxed(visible, prompt) or _phrase(visible[-_PHRASE_WINDOW:], prompt)
    if not found and len(visible) < len(response):
        found = boxed(response, prompt)
    return found or None


def boxed(text: str, prompt: str = "") -> str | None:
    """The content of the last box, or of the last boxes side by side, joined by commas."""
    answer: list[_Box] = []  # from the last to the first
    for box in reversed(_boxes(text)):
        if answer and not _BETWEEN.fullmatch(text, box.end, answer[-1].start):
            break
        if not _is_placeholder(box.content) and not _copied(text, box, prompt):
            answer.append(box)
    return ", ".join(dict.fromkeys(box.content for box in reversed(answer))) or None


def _is_placeholder(content: str) -> bool:
    return len(content) <= _LONGEST_PLACEHOLDER and _PLACEHOLDER.fullmatch(content) is not None


def _boxes(text: str) -> list[_Box]:
    """The closed boxes that hold no other, in order; nested braces kept, escaped ones not counted; linear in the
    text."""
    start = min((at for at in (text.find("\\boxed"), text.find("\\fbox")) if at >= 0), default=-1)
    if start < 0:
        return []
    found: list[_Box] = []
    open_braces: list[tuple[int, int]] = []  # start of the command (-1 for a plain brace), start of the content
    for token in _BRACE.finditer(text, start):
        mark = token[0]
        if mark == "{":
            open_braces.append((-1, token.end()))
        elif mark.startswith(("\\boxed", "\\fbox")):
            open_braces.append((token.start(), token.end()))
        elif mark == "}" and open_braces:
            command, content = open_braces.pop()
            if command >= 0 and not (found and found[-1].start > command):
                # An escaped blank at the end loses its blank to `strip`.
                found.append(_Box(command, token.end(), _ESCAPED_END.sub("", text[content : token.start()].strip())))
    return found


def _copied(text: str, box: _Box, prompt: str) -> bool:
    """Whether a box stands in the prompt too, with what is before it."""
    return bool(prompt) and box.start >= COPIED and text[box.start - COPIED : box.end] in prompt


def _phrase(text: str, prompt: str) -> str | None:
    phrases = list(_PHRASE.finditer(text))
    if not phrases:
        return None
    start = phrases[-1].end()
    # The full stop in 3.5 ends no sentence.
    end = _SENTENCE_END.search(text, start)
    stop = end.start() if end else len(text)
    answer = text[start:stop].strip(" \t*")
    if not answer or "\\boxed" in answer or _is_placeholder(answer):  # a box that was cut off, passed over or empty
        return None
    before = max(0, phrases[-1].start() - COPIED)
    return None if prompt and phrases[-1].start() >= COPIED and text[before:stop] in prompt else answer


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
