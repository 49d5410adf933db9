"""The messages that docs/troubleshooting.md explains are those that the code says."""

from __future__ import annotations

import ast
import re

import pytest

from tests.docs.blocks import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "…"  # what differs, on the page as in a message


def said() -> set[str]:
    """Each text of the code, with a gap in place of each value."""
    lines = []
    for room in ("vibethinker", "flows", "tasks"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    lines.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else GAP for p in node.values)
                    lines.append("".join(map(str, parts)))
    return {" ".join(line.split()) for line in lines}


def holds(text: str, parts: list[str]) -> bool:
    """Whether it has these parts one after the other."""
    at = 0
    for part in parts:
        if (found := text.find(part, at)) < 0:
            return False
        at = found + len(part)
    return True


@pytest.mark.slow
def test_every_message_is_one_that_the_code_says() -> None:
    messages = re.findall(r"^\| `(.+?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(messages) > 50
    texts = said()
    gone = [message for message in messages if not any(holds(text, message.split(GAP)) for text in texts)]
    assert not gone, f"said nowhere, correct docs/troubleshooting.md: {gone}"
