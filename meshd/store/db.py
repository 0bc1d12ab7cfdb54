"""The node's database: SQLite in WAL mode, one connection shared under a lock.

Rule for callers: every method of a store blocks for at most a few milliseconds of disk, so on an event loop it is
called in a thread. Any thread may call; the lock lets one transaction run at a time, and other processes (an offline
`mesh` verb beside the daemon) wait for the database's own lock up to BUSY_TIMEOUT_S.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

from meshd.core.errors import HomeUnusable

BUSY_TIMEOUT_S: Final = 5.0
_FIRST: Final = """
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE settings (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE peers (node TEXT PRIMARY KEY, addresses BLOB NOT NULL, reached_at REAL NOT NULL) STRICT;
CREATE INDEX peers_by_time ON peers (reached_at);
CREATE TABLE models (name TEXT PRIMARY KEY, digest TEXT NOT NULL, path TEXT NOT NULL, size_bytes INTEGER NOT NULL)
    STRICT;
CREATE TABLE invites (id BLOB PRIMARY KEY, secret BLOB NOT NULL, terms BLOB NOT NULL, uses_left INTEGER NOT NULL,
    expires_at REAL NOT NULL) STRICT;
CREATE TABLE admissions (invite BLOB NOT NULL, node TEXT NOT NULL, name TEXT NOT NULL, proof BLOB NOT NULL,
    admitted_at REAL NOT NULL, PRIMARY KEY (invite, node)) STRICT;
CREATE TABLE receipts (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, signed BLOB NOT NULL, job TEXT NOT NULL,
    ended_at REAL NOT NULL, chain BLOB NOT NULL) STRICT;
CREATE INDEX receipts_by_job ON receipts (job);
"""
_UPSTREAMS: Final = """
CREATE TABLE upstreams (name TEXT PRIMARY KEY, digest TEXT NOT NULL UNIQUE, url TEXT NOT NULL, model TEXT NOT NULL,
    class_max INTEGER NOT NULL, slots INTEGER NOT NULL, context_tokens INTEGER NOT NULL, key TEXT NOT NULL) STRICT;
"""
_STEPS: Final = (_FIRST, _UPSTREAMS)
"""What each version added to the one before. A step that was ever released is never changed."""

SCHEMA_VERSION: Final = len(_STEPS)


class Database:
    """The open database of one home. A context manager; `close` is idempotent."""

    def __init__(self, path: Path) -> None:
        """Open or create the database. Raises HomeUnusable when it is damaged, locked or of a later version."""
        self._path = path
        self._lock = threading.Lock()
        self._durable = True
        with self._translated():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._connection = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("BEGIN IMMEDIATE")  # two processes may find the database empty at once
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version < SCHEMA_VERSION:
            for statement in ";".join(_STEPS[version:]).split(";"):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self._connection.execute("COMMIT")
        if version > SCHEMA_VERSION:
            raise HomeUnusable(f"{self._path} was written by a later version", hint="update this program")

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """One write transaction, all or nothing. ``durable``: it survives a power cut once this returns; otherwise
        only a crash of this process. Raises HomeUnusable."""
        with self._lock, self._translated():
            if durable != self._durable:
                self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                self._durable = durable
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def rows(self, query: str, parameters: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        """All rows of a bounded ``query``. Raises HomeUnusable."""
        with self._lock, self._translated():
            return self._connection.execute(query, parameters).fetchall()

    def close(self) -> None:
        """Close the connection; what was committed stays."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as e:
            raise HomeUnusable(
                f"cannot use {self._path}: {e}",
                hint="is the disk full, or the file damaged? moving it away loses receipts and invites, no identity",
            ) from None
