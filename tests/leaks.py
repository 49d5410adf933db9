"""What must not get out: secrets planted in a run's environment, and addresses that others can reach."""

from __future__ import annotations

import sqlite3
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psutil

# Nothing listens on port 9, and no mail is sent without a failure.
PLANTED = {
    "HF_TOKEN": "hf_planted0Token1Of2The3Hub4",
    "OPENAI_API_KEY": "sk-planted-key-of-a-teacher-56789",
    "SLACK_WEBHOOK_URL": "http://127.0.0.1:9/services/T0PLANTED0/B0PLANTED0/plantedWebhookOfSlack0",
    "VIBETHINKER_APPRISE_URLS": "json://someone:planted%20Word@127.0.0.1:9/",
}
WORDS = ("hf_planted", "sk-planted", "plantedWebhook", "planted%20Word", "planted Word")


def leaks(folder: Path, words: tuple[str, ...] = WORDS) -> Iterator[str]:
    """Each file under a folder that has one of the words, plain, quoted for an address, or as of Basic authorisation;
    rows of databases are looked at as their texts too, since a page may cut a long one."""
    forms = {form.encode() for word in words for form in (word, quote(word), *_encoded(word))}
    for path in (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        content = path.read_bytes()
        if content.startswith(b"SQLite format 3"):
            with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
                content += "\n".join(database.iterdump()).encode(errors="surrogateescape")
        yield from (f"{path}: {form.decode()}" for form in forms if form in content)


def _encoded(word: str) -> Iterator[str]:
    """The middle of its base64, wherever it begins in what is encoded."""
    for shift in range(3):
        encoded = b64encode(b" " * shift + word.encode()).decode()
        yield encoded[4 : len(encoded) - 4]


class Listening:
    """The addresses on which this process's children listen while the `with` block runs, and whose command lines have a
    planted secret."""

    def __init__(self, planted: Mapping[str, str] = PLANTED) -> None:
        self.addresses: set[str] = set()
        self.telling: set[str] = set()
        self._words, self._over = tuple(planted.values()), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Listening:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    self._look(process)

    def _look(self, process: psutil.Process) -> None:
        line = " ".join(process.cmdline())
        self.telling |= {line for word in self._words if word in line}
        for one in process.net_connections("inet"):
            if one.laddr and not one.raddr:  # a listening socket of TCP's, or one of UDP's that anyone may send to
                self.addresses.add(one.laddr.ip)


def beyond_loopback(addresses: set[str] | frozenset[str]) -> set[str]:
    """Those that other machines can reach."""
    return {address for address in addresses if not ip_address(address).is_loopback}
