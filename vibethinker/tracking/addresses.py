"""A store's address as it may be shown: some have a password, and some stores repeat in an error what was sent."""

from __future__ import annotations

import os
from base64 import b64encode
from urllib.parse import quote, unquote, urlsplit

HIDDEN = "[hidden]"


def without_password(uri: str) -> str:
    """The address without user, password and query."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl() if parts.netloc else uri


def hidden(text: str, uri: str) -> str:
    """A text about the store with HIDDEN in the place of the password or token that it is written with, which are in
    its address or in MLflow's own variables; in whatever form they are sent."""
    parts = urlsplit(uri)
    pairs = [(unquote(parts.username or ""), unquote(parts.password or ""))]
    pairs.append((os.environ.get("MLFLOW_TRACKING_USERNAME", ""), os.environ.get("MLFLOW_TRACKING_PASSWORD", "")))
    words = {b64encode(f"{user}:{password}".encode()).decode() for user, password in pairs if password}
    words |= {password for _, password in pairs} | {os.environ.get("MLFLOW_TRACKING_TOKEN", "")}
    words |= {quote(word, safe="") for word in words} | {parts.password or ""}
    for word in sorted(words - {""}, key=len, reverse=True):  # the longer first: one may be a part of another
        text = text.replace(word, HIDDEN)
    return text
