"""Replies that were paid for, kept in an SQLite file under their requests' keys, and what each scope has spent.

A reply and what it cost are written in one durable transaction, so nothing is asked for twice, not after a crash and
not in another run. What a request may cost at worst is reserved before it is sent: the reservations that a crash
leaves behind are charged to their scope, since the server may have charged them too, and a budget holds nevertheless.

Several processes may use one file at once; only one at a time may ask for a scope.
"""

from __future__ import annotations

import fcntl
import hashlib
import operator
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from vibethinker.errors import ConfigurationError, DataError, InfrastructureError
from vibethinker.generation.chat import Reply

_VERSION = 1
_BUSY_SECONDS = 60.0  # how long another process may hold the file


@dataclass(frozen=True)
class Spending:
    """What asking cost.

    Attributes:
        prompt_tokens: tokens of prompts, those of lost answers by their worst case.
        completion_tokens: tokens of replies, those of lost answers by their worst case.
        usd: money for both.
        requests: requests sent, retries included.
        retries: those of them that repeat a failed one.
        lost: those of them whose answer never arrived although it may have been charged.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    requests: int = 0
    retries: int = 0
    lost: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of prompts and replies."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Spending) -> Spending:
        return Spending(*map(operator.add, self.values(), other.values()))

    def values(self) -> tuple[float, ...]:
        """All of it, in this order."""
        return tuple(vars(self).values())


_COLUMNS = [field.name for field in fields(Spending)]
_NAMES, _MARKS = ", ".join(_COLUMNS), ", ".join("?" for _ in _COLUMNS)
_TYPED = ", ".join(f"{name} {'REAL' if name == 'usd' else 'INTEGER'} NOT NULL" for name in _COLUMNS)
_TOTALS = ", ".join(f"SUM({name})" for name in _COLUMNS)
_ADDED = ", ".join(f"{name} = {name} + excluded.{name}" for name in _COLUMNS)
_SCHEMA = f"""
CREATE TABLE replies (
    key TEXT PRIMARY KEY, text BLOB NOT NULL, truncated INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL
);
CREATE TABLE spent (scope TEXT PRIMARY KEY, {_TYPED});
CREATE TABLE reserved (id INTEGER PRIMARY KEY AUTOINCREMENT, scope TEXT NOT NULL, {_TYPED});
"""


class ReplyStore:
    """The file; any thread may call.

    Every method raises InfrastructureError where the file can't be read or written, and DataError where it is damaged.
    """

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            ConfigurationError: its folder can't be used.
            DataError: it is no store of replies, or one of another version.
        """
        self.path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite's own waiting doesn't cover the change to a write-ahead log.
            with open(self._lock_file("open"), "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._connection = sqlite3.connect(
                    path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
                )
                try:
                    with self._explained():
                        self._prepare()
                except BaseException:
                    self._connection.close()
                    raise
        except (OSError, sqlite3.OperationalError) as error:
            raise ConfigurationError(
                f"The store of replies {path} can't be opened ({error}): name a file in a folder that you may write to"
            ) from error

    def _prepare(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        empty = self._connection.execute("SELECT 1 FROM sqlite_master").fetchone() is None
        if version != _VERSION and not (version == 0 and empty):
            raise DataError(f"{self.path} is no store of replies of version {_VERSION}: move it away or name another")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        if empty:
            self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")

    def get(self, key: str) -> Reply | None:
        """The reply to the request of this key, if there is one."""
        query = "SELECT text, truncated, prompt_tokens, completion_tokens FROM replies WHERE key = ?"
        with self._lock, self._explained():
            row = self._connection.execute(query, (key,)).fetchone()
        if row is None:
            return None
        return Reply(key, row[0].decode("utf-8", "surrogatepass"), bool(row[1]), row[2], row[3])

    def put(self, scope: str, reply: Reply, spending: Spending, reservation: int | None = None) -> None:
        """Keep a reply and charge what it cost, once: the first reply of a key stays.

        Args:
            scope: who asked.
            spending: what the answer did cost.
            reservation: what was reserved for it, which ends; one that has ended charges nothing.
        """
        text = reply.text.encode("utf-8", "surrogatepass")
        values = (reply.key, text, reply.truncated, reply.prompt_tokens, reply.completion_tokens)
        with self._transaction():
            new = self._connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", values).rowcount
            if self._ended(reservation) if reservation is not None else new:
                self._charge(scope, spending)

    def put_all(self, scope: str, replies: Iterable[Reply]) -> None:
        """Keep replies that cost nothing but their tokens, in one transaction; the first reply of a key stays."""
        with self._transaction():
            for reply in replies:
                text = reply.text.encode("utf-8", "surrogatepass")
                values = (reply.key, text, reply.truncated, reply.prompt_tokens, reply.completion_tokens)
                if self._connection.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?)", values).rowcount:
                    self._charge(scope, Spending(reply.prompt_tokens, reply.completion_tokens, 0.0, 1))

    def scopes(self) -> list[str]:
        """Who has asked so far."""
        with self._lock, self._explained():
            return [scope for (scope,) in self._connection.execute("SELECT scope FROM spent ORDER BY scope")]

    def charge(self, scope: str, spending: Spending, reservation: int) -> None:
        """Charge what a request without a reply did cost, and end its reservation; again, it changes nothing."""
        with self._transaction():
            if self._ended(reservation):
                self._charge(scope, spending)

    def reserve(self, scope: str, worst: Spending) -> int:
        """Note what a request that is about to be sent may cost at worst; `put` or `charge` end it."""
        with self._transaction():
            row = self._connection.execute(
                f"INSERT INTO reserved (scope, {_NAMES}) VALUES (?, {_MARKS})", (scope, *worst.values())
            )
        assert row.lastrowid is not None
        return row.lastrowid

    def spent(self, scope: str) -> Spending:
        """What was charged to the scope."""
        return self._spending(f"SELECT {_NAMES} FROM spent WHERE scope = ?", scope)

    def reserved(self, scope: str) -> Spending:
        """What the scope's requests under way may cost."""
        return self._spending(f"SELECT {_TOTALS} FROM reserved WHERE scope = ?", scope)

    @contextmanager
    def claimed(self, scope: str) -> Iterator[None]:
        """Hold the right to ask for the scope; what is reserved before or after is charged as lost.

        Raises:
            InfrastructureError: another process or thread holds it.
        """
        with open(self._lock_file(hashlib.sha256(scope.encode()).hexdigest()[:16]), "wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InfrastructureError(
                    f"Another process is asking the teacher for the same step, into {self.path}: let it finish, then "
                    "run again and its replies are used"
                ) from None
            self._charge_reserved(scope)
            try:
                yield
            finally:
                self._charge_reserved(scope)

    def close(self) -> None:
        """Close the file; nothing can be asked of it afterwards."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _charge_reserved(self, scope: str) -> None:
        with self._transaction():
            self._charge(scope, self.reserved(scope))
            self._connection.execute("DELETE FROM reserved WHERE scope = ?", (scope,))

    def _charge(self, scope: str, spending: Spending) -> None:
        self._connection.execute(
            f"INSERT INTO spent (scope, {_NAMES}) VALUES (?, {_MARKS}) ON CONFLICT (scope) DO UPDATE SET {_ADDED}",
            (scope, *spending.values()),
        )

    def _ended(self, reservation: int) -> bool:
        return self._connection.execute("DELETE FROM reserved WHERE id = ?", (reservation,)).rowcount == 1

    def _spending(self, query: str, scope: str) -> Spending:
        with self._lock, self._explained():
            row = self._connection.execute(query, (scope,)).fetchone()
        return Spending() if row is None or row[0] is None else Spending(*row)

    def _lock_file(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{name}.lock")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._explained():
            try:  # a signal's exception can come after any statement, the first included, or before the body begins
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise InfrastructureError(
                f"The store of replies {self.path} can't be used ({error}): see that its disk has room and lets you "
                "write, then run again"
            ) from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise  # a mistake of ours
            raise DataError(
                f"{self.path} is no whole store of replies ({error}): move it away, and what it held is asked anew"
            ) from error
