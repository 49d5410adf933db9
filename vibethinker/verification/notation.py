r"""One spelling for what can be written in many ways: LaTeX's and Unicode's variants, delimiters, spaces.

What follows works on the result alone. What TeX doesn't print goes, and `**` is a power. Spaces are kept only between
two alphanumeric characters (`1 1/2`, `5 m`) and behind a comma before one (`1, 234`, a list).
"""

from __future__ import annotations

import re
from functools import lru_cache

_UNICODE = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "×": "\\times ", "÷": "/", "·": "\\cdot ", "⋅": "\\cdot ", "∗": "*",
    "π": "\\pi ", "∞": "\\infty ", "≤": "\\le ", "⩽": "\\le ", "≥": "\\ge ", "⩾": "\\ge ", "≠": "\\ne ",
    "≈": "\\approx ", "°": "^\\circ ", "º": "^\\circ ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
    "∅": "\\emptyset ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "±": "\\pm ", "∓": "\\mp ", "²": "^{2}",
    "³": "^{3}", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}", "⟨": "\\langle ",
    "⟩": "\\rangle ", "θ": "\\theta ", "α": "\\alpha ", "β": "\\beta ", "γ": "\\gamma ", "λ": "\\lambda ",
    "μ": "\\mu ", "σ": "\\sigma ", "φ": "\\phi ", "ω": "\\omega ", "“": "", "”": "", "‘": "'", "’": "'",
    "′": "'", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u200b": "", "％": "%", "（": "(", "）": ")",
    "，": ", ", "：": ":", "\t": " ", "\n": " ",
}  # fmt: skip
_FULL_WIDTH = {0xFF10 + digit: ord("0") + digit for digit in range(10)}
_ROOT = re.compile(r"√(?:\(([^()]*)\)|(\d+|[a-zA-Z]))")
_SAME = {
    r"\leq": r"\le", r"\leqslant": r"\le", r"\geq": r"\ge", r"\geqslant": r"\ge", r"\neq": r"\ne", r"\lt": "<",
    r"\gt": ">", r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\varnothing": r"\emptyset",
    r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lbrack": "[", r"\rbrack": "]", r"\degree": r"^\circ",
    r"\R": r"\mathbb{R}", r"\dbinom": r"\binom", r"\tbinom": r"\binom", r"\simeq": r"\approx",
    r"\vee": r"\text{or}", r"\wedge": r"\text{and}", r"\land": r"\text{and}", r"\lor": r"\text{or}",
    r"\fbox": r"\boxed", r"\left": "", r"\right": "", r"\displaystyle": "", r"\textstyle": "", r"\limits": "",
    r"\big": "", r"\Big": "", r"\bigl": "", r"\bigr": "", r"\Bigl": "", r"\Bigr": "", r"\mleft": "",
    r"\mright": "", r"\quad": " ", r"\qquad": " ", r"\thinspace": " ", r"\ldots": "...", r"\dots": "...",
    r"\cdots": "...",
}  # fmt: skip
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_SPACING = re.compile(r"(?<!\\)\\[,;: ]|~")
_UNPRINTED = re.compile(
    r"\\[hv]?phantom\s*(?:\{[^{}]*\}|\S)|\\(?:hspace\*?|vspace|tag|label|color|textcolor)\{[^{}]*\}|"
    r"\\(?:bf|rm|it|sf|tt|large|Large|LARGE|huge|Huge|small|tiny|normalsize|checkmark|boldmath)(?![A-Za-z])"
)
_BARE_ARGUMENT = re.compile(r"(\\(?:mathbb|vec|hat|bar)) ([A-Za-z])")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|normal|sf|tt|up)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|bm|boldsymbol|operatorname\*?)\s*"
    r"\{([^{}]*)\}"
)
_ARGUMENT = r"(?:(\\[a-zA-Z]+|[0-9A-Za-z])|(\{(?:[^{}]|\{[^{}]*\})*\}))"
_FRACTION = re.compile(rf"\\frac\s*{_ARGUMENT}\s*{_ARGUMENT}")
_DEGREE = re.compile(r"\^\s*\{\s*\\circ\s*\}")
_SPACES = re.compile(r"(?<![0-9A-Za-z.,])\s+|\s+(?![0-9A-Za-z.])")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_MOST_BRACES = 12
_CONNECTIVES = frozenset({"and", "or", "&"})


@lru_cache(maxsize=8192)
def normalise(answer: str) -> str:
    r"""`answer` in the one spelling; texts in any font become `\text{…}`, their blanks single."""
    text = answer.strip()
    if not text.isascii():
        text = text.translate(_FULL_WIDTH)
        for character, replacement in _UNICODE.items():
            text = text.replace(character, replacement)
        text = _ROOT.sub(lambda m: f"\\sqrt{{{m[1] or m[2]}}}", text)
    if text.startswith("**") and text.endswith("**"):
        text = text[2:-2]  # bold type
    text = (
        text.replace("**", "^")
        .replace("`", "")
        .replace("\\!", "")
        .replace("{,}", ",")
        .replace("{:}", ":")
        .replace("\\%", "%")
    )
    if text.startswith(("\\(", "\\[")) and text.endswith(("\\)", "\\]")):
        text = text[2:-2]
    text = text.replace("\\$", "\\dollar ").replace("$", "").replace("\\dollar ", "\\$")
    text = _COMMAND.sub(lambda m: _SAME.get(m[0], m[0]), text)
    text = _BARE_ARGUMENT.sub(r"\1{\2}", _SPACING.sub(" ", _UNPRINTED.sub("", text)))
    text = _DEGREE.sub(r"^\\circ ", text)
    text = _TEXT.sub(_text, text)
    text = _FRACTION.sub(_braced_fraction, text)
    text = _SPACES.sub("", " ".join(text.split()))
    while text and text[-1] in ".,;:" and not text.endswith("..."):
        text = text[:-1].rstrip()
    for _ in range(_MOST_BRACES):
        if not _enclosed(text):
            break
        text = text[1:-1].strip()
    return text


def _text(match: re.Match[str]) -> str:
    content = " ".join(match[1].split())
    if content.lower() in _CONNECTIVES:
        return f" {content.lower()} " if content != "&" else " and "
    if not content:
        return ""
    if match[0].startswith("\\operatorname"):
        return f"\\operatorname{{{content}}}"
    if content[0].isdigit() or (len(content) == 1 and match[0].startswith(("\\math", "\\b"))):
        return content  # a number, or a letter in another font
    return f"\\text{{{content}}}"


def _braced_fraction(match: re.Match[str]) -> str:
    r"""`\frac12`, `\frac\pi 2` and the like with their braces."""
    parts = (f"{{{bare}}}" if bare else braced for bare, braced in (match.group(1, 2), match.group(3, 4)))
    return "\\frac" + "".join(parts)


def _enclosed(text: str) -> bool:
    """Whether one pair of plain braces holds everything."""
    if not (text.startswith("{") and text.endswith("}")):
        return False
    depth = 0
    for token in _BRACES.finditer(text):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return token.end() == len(text)
    return False
