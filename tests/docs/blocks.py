"""The blocks of code in README.md, CONTRIBUTING.md, deployments/README.md and docs/, and what is to become of each.

A fence says its language; an indented block is a shell's. `text` is no code: a diagram, or what a command prints. A
comment in front of a block of a shell's or of Python's says what executes it, or why nothing does:

    <!-- run -->                        test_blocks.py, in an empty folder that the page's blocks share, in their order
    <!-- run: long -->                  likewise, by `make test-long`
    <!-- run by: tests/a.py::test_b --> another test, that does the same
    <!-- not run: reason -->            nothing
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "deployments/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
_MARK = re.compile(r"<!--\s*(run: long|run by|not run|run)(?::\s*(.*?))?\s*-->", re.DOTALL)
_PLACEHOLDER = re.compile(r"<([a-z][a-z -]*)>")
_ASSIGNMENT = re.compile(r"\w+=")
_ENDS = {"&&", "||", ";", "|", "&"}


@dataclass(frozen=True)
class Block:
    """One block, where it begins, and the comment in front of it."""

    page: Path
    line: int
    language: str
    text: str
    mark: str
    said: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """All blocks of a page."""
    mark, said = "", ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            language = (token.info.split() or ["text"])[0] if token.type == "fence" else "sh"
            language = "sh" if language in ("bash", "console", "shell") else language
            yield Block(page, (token.map or [0])[0] + 1, language, token.content, mark, said)
        found = _MARK.fullmatch(token.content.strip()) if token.type == "html_block" else None
        mark, said = (found[1], found[2] or "") if found else ("", "")


def commands(text: str) -> Iterator[list[str]]:
    """The words of each simple command, without assignments in front, redirections and comments."""
    text = _without_documents(_PLACEHOLDER.sub(r"\1", text.replace("\\\n", " ")))
    for line in _whole_lines(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        skipped = False
        for word in [*lexer, ";"]:
            if word in _ENDS:
                if words:
                    yield words
                words = []
            elif skipped or set(word) <= set("<>&"):
                skipped = not skipped
            elif words or not _ASSIGNMENT.match(word):
                words.append(word)


def _without_documents(text: str) -> str:
    """Without here-documents, which are some command's input."""
    return re.sub(r"<<\s*'?(\w+)'?(.*?)\n.*?\n\1$", r"\2", text, flags=re.DOTALL | re.MULTILINE)


def _whole_lines(text: str) -> Iterator[str]:
    """Lines, joined where a quotation goes on."""
    line = ""
    for more in text.splitlines():
        line = f"{line}\n{more}" if line else more
        try:
            shlex.split(line, comments=True)
        except ValueError:
            continue
        yield line
        line = ""
    assert not line, f"a quotation is never closed: {line!r}"
