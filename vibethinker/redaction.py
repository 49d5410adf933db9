"""Secrets taken out of a text before it leaves for where others read it: a log, a summary, a chat, a mail.

What counts as one: the value of an environment variable that is named like a key, also as it is sent in an address or
as Basic authorisation; a value that this process has learned (`learn`); a password in an address, an argument or
setting named like one, and what has the form of a well-known kind of token. The rest of an address stays, so that a
reader still knows which server is meant.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "[hidden]"
SHORTEST = 6  # characters of a value: shorter ones are words that occur anywhere
WORD = 12  # characters below which a value of letters alone is hidden only where it stands for itself
# What stands in the place of a key for servers that want none, and names that hardly anybody keeps secret.
COMMON = frozenset({"changeme", "mlflow", "nokey", "notneeded", "password", "postgres", "prefect", "vibethinker"})
PART = 1 << 20  # characters of a file that are looked at together

_NAMED = r"api_?key|access_?key|secret_?key|private_?key|secret|token|passw(?:or)?d|credentials?|webhook|auth"
_VARIABLE = re.compile(rf"(?:^|_)(?:{_NAMED}|key|pass|pwd|pat|dsn|apprise)(?:_|\d|$)", re.IGNORECASE)
_NO_SECRET = re.compile(r"_(?:NAME|TYPE)$|^MLFLOW_TRACKING_AUTH$", re.IGNORECASE)
_ADDRESSES = re.compile(r"_(?:URLS?|URI)$", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"\b((?:api|access|secret|private|account|auth)[_-]?(?:key|token)|client[_-]?secret|secret|passw(?:or)?d)"
    r"(['\"]?\s*[=:]\s*['\"]?)([^\s'\",;&]{4,})",
    re.IGNORECASE,
)
# Bounded, so that text in which hardly anything else stands takes no time that grows with its square.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]{1,20}://)([^\s/@'\"<>]{0,1000})@", re.IGNORECASE)
_QUERY = re.compile(rf"([?&](?:{_NAMED}|sig(?:nature)?|x-amz-[a-z-]+|key)=)[^&\s'\"<>]+", re.IGNORECASE)
_TOKENS = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        hf_[A-Za-z0-9]{10,}                            # Hugging Face
      | sk-[A-Za-z0-9_-]{10,}                          # OpenAI, Anthropic and those that took their form
      | (?:xox[a-z]|xapp)-[A-Za-z0-9-]{10,}            # Slack
      | gh[a-z]_[A-Za-z0-9]{20,} | github_pat_\w{20,} | glpat-[\w-]{20,}
      | pn[ub]_[A-Za-z0-9]{20,}                        # Prefect Cloud
      | (?:AKIA|ASIA)[A-Z0-9]{16} | AIza[\w-]{30,} | dapi[0-9a-f]{32}
      | eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*              # a JSON web token
    )""",
    re.VERBOSE,
)
_WEBHOOK = re.compile(r"(https?://(?:hooks\.slack(?:-gov)?\.com|discord(?:app)?\.com/api/webhooks)/)[^\s'\"<>|]+")
_BEARER = re.compile(r"\b(Bearer|(?<=uthorization: )Basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_PRIVATE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


_learned: set[str] = set()


def learn(secrets: Iterable[str]) -> None:
    """Hide these values too, wherever this process redacts from now on: keys that are in no variable."""
    _learned.update(secrets)


def redact(text: str, secrets: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> str:
    """The text with HIDDEN in the place of every secret.

    Args:
        text: what is to be shown.
        secrets: further values that mustn't be shown, such as the webhook that is posted to.
        environ: in which to look for values; the process's own environment if None.
    """
    known = {*secrets, *_learned, *values(os.environ if environ is None else environ)}
    forms = {form for value in known for form in _forms(value)}
    for form in sorted(forms, key=len, reverse=True):  # the longer first: one may be a part of another
        if form.isalpha() and len(form) < WORD:
            text = re.sub(rf"(?<![\w/-])(?<!\w\.){form}(?![\w/-]|\.\w)", HIDDEN, text)
        else:
            text = text.replace(form, HIDDEN)
    text = _PRIVATE.sub(HIDDEN, text)
    text = _WEBHOOK.sub(rf"\1{HIDDEN}", text)
    text = _ADDRESS.sub(rf"\1{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    text = _TOKENS.sub(HIDDEN, text)
    return _ASSIGNED.sub(lambda m: m[0] if HIDDEN in m[3] else f"{m[1]}{m[2]}{HIDDEN}", text)


def clean(path: Path) -> None:
    """Take secrets out of a text file that nobody writes to any more, if it has any.

    Raises:
        OSError: it couldn't be read, or written anew; it is as it was then.
    """
    aside = path.with_name(f"{path.name}.cleaning")
    how: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    changed = False
    try:
        with path.open(**how) as file, aside.open("w", **how) as shown:
            for part in _parts(file):
                hidden = redact(part)
                changed |= hidden != part
                shown.write(hidden)
        if changed:
            aside.replace(path)
    except FileNotFoundError:
        return
    finally:
        aside.unlink(missing_ok=True)


def _parts(file: TextIO) -> Iterator[str]:
    """The file in parts of whole lines and whole private keys."""
    lines: list[str] = []
    size, private = 0, False
    for line in file:
        lines.append(line)
        size += len(line)
        if "PRIVATE KEY-----" in line:
            private = "-----END" not in line
        if size >= PART and not private:
            yield "".join(lines)
            lines, size = [], 0
    yield "".join(lines)


def values(environ: Mapping[str, str]) -> set[str]:
    """The values of variables that are named like secrets; a list of addresses counts one by one, each with its
    password. Paths are none, nor is a password that is its user's name."""
    found: set[str] = set()
    for name, value in environ.items():
        if _ADDRESSES.search(name):
            addresses = value.split()
            found |= {one for one in addresses if _VARIABLE.search(name) or _ADDRESS.match(one)}
            for one in addresses:
                found |= passwords(one)
        elif _VARIABLE.search(name) and not _NO_SECRET.search(name):
            found.add(value.strip())  # one that was made from a file ends in a newline
            if user := environ.get(f"{name.removesuffix('PASSWORD')}USERNAME"):
                found.add(f"{user}:{value}")
    return {value for value in found if not _is_path(value)}


def passwords(address: str) -> set[str]:
    """What is secret in an address: its password, plain and as it is written there, and as Basic authorisation sends
    it, with the user."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return set()
    written, user = parts.password or "", unquote(parts.username or "")
    if not written or unquote(written) == user:
        return set()
    return {written, unquote(written), f"{user}:{unquote(written)}"}


@lru_cache(maxsize=1024)
def _is_path(value: str) -> bool:
    """Whether a value names a place rather than being a key, which may begin with a slash too."""
    if value.startswith("/"):
        folder = os.path.dirname(value)
        return os.path.exists(value if folder == "/" else folder)
    return value.startswith(("~", "./", "../"))


@lru_cache(maxsize=1024)
def _forms(value: str) -> frozenset[str]:
    """A secret as it may stand in a text: plain, and as addresses, JSON and Basic authorisation have it."""
    value = value.strip()
    if len(value) < SHORTEST or value.lower() in COMMON:
        return frozenset()
    quoted = json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]
    return frozenset({value, quote(value, safe="", errors="surrogateescape"), _encoded(value), *quoted})


def _encoded(value: str) -> str:
    return b64encode(value.encode(errors="surrogateescape")).decode()
