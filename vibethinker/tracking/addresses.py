"""A store's address as it may be shown: some have a password."""

from __future__ import annotations

from urllib.parse import urlsplit


def without_password(uri: str) -> str:
    """The address without user, password and query."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl() if parts.netloc else uri
