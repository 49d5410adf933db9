"""A text by its brackets: how deep they are nested, and its parts outside all of them."""

from __future__ import annotations

import re

DEEPEST = 12  # nested brackets: LaTeX's parser takes exponential time in them

_TOKEN = re.compile(r"\\begin\{[a-zA-Z]+\*?\}|\\end\{[a-zA-Z]+\*?\}|\\[a-zA-Z]+|\\.|.", re.DOTALL)
_OPENING, _CLOSING = frozenset("{([") | {"\\{", "\\langle"}, frozenset("})]") | {"\\}", "\\rangle"}


def depth(text: str) -> int:
    """How deep its brackets are nested."""
    current = deepest = 0
    for token in _TOKEN.findall(text):
        current = max(0, current + (token in _OPENING) - (token in _CLOSING))
        deepest = max(deepest, current)
    return deepest


def split(text: str, separators: frozenset[str]) -> list[tuple[str, str]]:
    """The parts between separators outside all brackets, each with the separator in front of it."""
    parts, separator, start, level = [], "", 0, 0
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in _OPENING or mark.startswith("\\begin"):
            level += 1
        elif mark in _CLOSING or mark.startswith("\\end{"):
            level -= 1
        elif mark in separators and level == 0:
            parts.append((separator, text[start : token.start()].strip()))
            separator, start = mark, token.end()
    return [*parts, (separator, text[start:].strip())]


def spans(text: str) -> bool:
    """Whether the bracket that opens it closes at its end."""
    level = 0
    for token in _TOKEN.finditer(text):
        level += (token[0] in _OPENING) - (token[0] in _CLOSING)
        if level == 0:
            return token.end() == len(text)
    return False
