"""The messages that docs/troubleshooting.md explains are those that the code says."""

from __future__ import annotations

import ast
import re
from functools import cache

from tests.docs.blocks import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "…"  # what differs, on the page as in a message


@cache
def said() -> str:
    """Each text of the code a line, with a gap in place of each value."""
    lines = []
    for room in ("vibethinker", "flows", "tasks"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    lines.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    parts = (p.value if isinstance(p, ast.Constant) else GAP for p in node.values)
                    lines.append("".join(map(str, parts)))
    return "\n".join(" ".join(line.split()) for line in lines)


def test_every_message_is_one_that_the_code_says() -> None:
    messages = re.findall(r"^\| `(.+?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(messages) > 50
    patterns = {message: ".*?".join(re.escape(part) for part in message.split(GAP)) for message in messages}
    gone = [message for message, pattern in patterns.items() if not re.search(pattern, said())]
    assert not gone, f"said nowhere, correct docs/troubleshooting.md: {gone}"
