r"""What a training problem must be like: whole, neither too short nor too long, in a language that is kept, not
repeating itself, and silent about its own answer.

Every check prefers missing a bad problem to condemning a good one:

- Lengths are in folded words, as in `vibethinker.data.folding`; in scripts that put no spaces between words
  each letter is one.
- Language is judged by the prose, since formulas, drawings and code are in none. English is recognised by its
  commonest words. Only a text that lacks them, or any where English isn't kept, goes to py3langid, which is loaded
  then; the text is left out where that finds the kept languages all but impossible. Too little prose to tell is kept.
- Repetition is counted with and without formulas, and the smaller share decides: formulas repeat themselves, and
  prose without them does so too.
- A problem states its answer where the gold stands in a `\boxed{}`, or alone between `####`, "the answer is",
  "Answer:" or "Ans." and the end of the sentence. That it occurs elsewhere says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from vibethinker.data.folding import ngrams, words
from vibethinker.data.settings import Filters
from vibethinker.errors import ConfigurationError

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_UNDECODED = re.compile("[\ud800-\udfff\ufffd]")
_COMMAND = re.compile(r"\\[A-Za-z]{2}|[_^]\{")
# A brace or dollar in quotes, as problems about strings have it, belongs to no formula.
_NO_LATEX = re.compile(
    r"""\[asy\].*?(?:\[/asy\]|\Z)|```.*?(?:```|\Z)|`[^`\n]*`|(?<![\w'"])(['"])[^'"\w\s\\]{1,20}\1""", re.DOTALL
)
_MARK = re.compile(
    r"\\(?:(?P<edge>begin|end)\s*\{(?P<name>[^{}]*)\}|(?P<side>left|right)(?![A-Za-z])|.)|(?P<sign>[{}$])", re.DOTALL
)
_MONEY = re.compile(r"(?<!\\)\$\s?\.?\d|\b[A-Z]{1,3}\$")

# Words that no other European language has, or seldom; "a", "as", "by", "do", "in", "on" and "to" would let those pass,
# and so would "determine".
_ENGLISH = frozenset(
    words(
        """
        the of and is are what how many much that which with find if let each has had from this these those be it its
        they their there then than does did when where who will would can not any one two she his you your were been
        more given such compute evaluate simplify solve calculate expand express write function return returns both
        between into every some number numbers have him out other first while after only could make makes need needs
        take takes old half twice three four five six ten times hours minutes days week years miles dollars people
        """
    )
)
_ENGLISH_SHARE = 0.25

# What problem sets are written in. Among all 140 languages of py3langid, short English finds kin such as Pidgin.
_LANGUAGES = words(
    "ar bg bn ca cs da de el en es et fa fi fr he hi hr hu id it ja ka ko lt lv ms nl no pl pt ro ru sk sl sr sv sw ta "
    "te th tr uk ur vi zh"
)
_IMPOSSIBLE = 0.02  # probability of all kept languages together
_LEAST_PROSE = 10  # bytes of UTF-8

_REPEATED = 4  # words of an n-gram
_LEAST_WORDS = 40  # two questions of one wording are most of a shorter text

_NO_PROSE = re.compile(
    r"""
      \[asy\] .*? (?: \[/asy\] | \Z )
    | ``` .*? (?: ``` | \Z )
    | ` [^`\n]* `
    | \\[\\$]
    | \\\[ .*? (?: \\\] | \Z )
    | \\\( .*? (?: \\\) | \Z )
    | \\(?: begin | end ) \s* \{ [^{}]* \}
    | \\[a-zA-Z]+
    | \$\$ [^$]* \$\$
    | \$ (?! \s?\d[\d.,]*\s+[^\W\d_]{2,}\b ) [^$]* \$     # not from one sum of money to the next
    | ^ [ \t]* >>> .*? $
    | https?://\S+
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_WORD = re.compile(rf"[^\W\d_]{{2,}}|{_UNSPACED.pattern}")

_STATEMENT = re.compile(
    r"""
      (?P<box> \\(?:boxed|fbox) \s* \{ )
    | (?<!\#) \#{4} (?!\#)
    | (?P<condition> \b(?:if|when|whether|unless) \s+ (?:\w+\s+)? )?
      \b answer \b (?! \s+ (?:choice|option)) [^.:=\n]{0,40}? (?: \b(?:is|are|was|be|equals)\b:? | [:=] )
    | \b ans \b \W{0,2}? [.:=]
    """,
    re.VERBOSE,
)
_END = re.compile(r"(?P<line>[.!?;)\]*\s]*(?:\n|\Z))|[.!?;)\]](?=[\s.)\]])|,?\s(?:because|since|so|but)\b")
_UNWRITTEN = re.compile(r"\s|\\?\$|\\[()\[\],;:! ]|(?<=\d),(?=\d{3}(?!\d))")
_LONGEST_STATED = 200  # characters of a gold that is looked for
_SPACING = 100  # characters of layout around it, at most


def why_broken(text: str) -> str | None:
    r"""Why nobody can have meant the text to be as it is, or None.

    Braces, environments, `\left` and `$` are counted only in texts with LaTeX in them, outside of code and drawings,
    and dollars only where none is money.
    """
    if _CONTROL.search(text):
        return "a control character"
    if _UNDECODED.search(text):
        return "characters that were not decoded"
    return _broken_latex(_NO_LATEX.sub(" ", text)) if _COMMAND.search(text) else None


def _broken_latex(text: str) -> str | None:
    braces = sides = dollars = 0
    environments: list[str] = []
    for mark in _MARK.finditer(text):
        edge, side, sign = mark["edge"], mark["side"], mark["sign"]
        if edge == "begin":
            environments.append(mark["name"])
        elif edge and (not environments or environments.pop() != mark["name"]):
            return r"\end without \begin"
        elif side:
            sides += 1 if side == "left" else -1
        elif sign == "$":
            dollars += 1
        elif sign:
            braces += 1 if sign == "{" else -1
        if sides < 0:
            return r"\right without \left"
        if braces < 0:
            return "an unmatched brace"
    if environments:
        return r"\begin without \end"
    if sides:
        return r"\left without \right"
    if braces:
        return "an unmatched brace"
    return "an unmatched $" if dollars % 2 and not _MONEY.search(text) else None


def repetition(text: str, n: int = 4) -> float:
    """The share of a text's word n-grams that occur in it before; near 1 for a loop, 0 for at most n words."""
    return _repeated(_tokens(text), n)


def _repeated(tokens: Sequence[str], n: int) -> float:
    grams = ngrams(tokens, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _tokens(text: str) -> Sequence[str]:
    return words(text if text.isascii() else _UNSPACED.sub(r" \g<0> ", text))


class ProblemFilter:
    """The filters of `data.filters`, in the order in which they are tried.

    Raises:
        ConfigurationError: a language that is kept is none that py3langid knows.
    """

    def __init__(self, settings: Filters) -> None:
        self._settings = settings
        self._english = _ENGLISH if "en" in settings.languages else frozenset()
        if not set(settings.languages) <= set(_LANGUAGES):
            _identifier(settings.languages)  # only the model knows which others there are

    def reason(self, problem: str, answer: str | None) -> str | None:
        """The first filter that removes the problem: `too_short`, `too_long`, `language`, `repetition`, `leakage`."""
        tokens = _tokens(problem)
        if len(tokens) < self._settings.min_words:
            return "too_short"
        if len(tokens) > self._settings.max_words:
            return "too_long"
        prose = _NO_PROSE.sub(" ", problem)
        if self._settings.languages and self._is_foreign(prose):
            return "language"
        if self._repeats(tokens) and self._repeats(_tokens(prose)):
            return "repetition"
        return "leakage" if self._settings.leakage and answer is not None and _states(problem, answer) else None

    def _is_foreign(self, prose: str) -> bool:
        found = _WORD.findall(prose.lower())
        if sum(map(self._english.__contains__, found)) > _ENGLISH_SHARE * len(found):
            return False
        text = " ".join(found)
        if len(text.encode(errors="replace")) < _LEAST_PROSE:
            return False
        kept = self._settings.languages
        return sum(p for language, p in _identifier(kept).rank(text) if language in kept) < _IMPOSSIBLE

    def _repeats(self, tokens: Sequence[str]) -> bool:
        return len(tokens) > _LEAST_WORDS and _repeated(tokens, _REPEATED) > self._settings.max_repetition


@cache
def _identifier(kept: tuple[str, ...]) -> Any:
    """py3langid's model of the usual languages and those kept."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if unknown := sorted(set(kept) - set(identifier.labels)):
        raise ConfigurationError(
            f"data.filters.languages has {unknown[0]!r}, which py3langid doesn't know: use ISO 639-1 codes."
        )
    identifier.set_languages([*_LANGUAGES, *kept])
    return identifier


def _states(problem: str, answer: str) -> bool:
    gold = _written(answer)
    if not gold or len(gold) > _LONGEST_STATED:
        return False
    lower = problem.lower()
    if not any(sign in lower for sign in ("ans", "box", "####")):
        return False
    option = len(gold.strip("()")) == 1 and gold.strip("()").isalpha()
    for statement in _STATEMENT.finditer(lower):
        tail = lower[statement.end() : statement.end() + 4 * len(gold) + _SPACING]
        if statement["box"]:
            if _UNWRITTEN.sub("", tail).startswith((gold + "}", gold + ".}")):
                return True
        elif not statement["condition"]:
            tail = tail.lstrip()
            ends = (end.start() for end in _END.finditer(tail) if end["line"] is not None or not option)
            if any(_written(tail[:end]) == gold for end in ends):
                return True
    return False


def _written(text: str) -> str:
    """An answer without what is only typography."""
    return _UNWRITTEN.sub("", text.lower()).strip("*").rstrip(".")
