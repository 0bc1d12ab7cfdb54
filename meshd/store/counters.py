"""Numbers that only grow, also over restarts: the boot number of ads, serials of certificates."""

from __future__ import annotations

import sqlite3

from meshd.store.db import Database


def next_boot(database: Database) -> int:
    """The number of this start of the daemon (from 1), on disk before it is used: a later start orders later."""
    return _take(database, "boot")


def next_serial(database: Database) -> int:
    """A certificate serial that this issuer never gave before."""
    return _take(database, "serial")


def take_in(connection: sqlite3.Connection, name: str) -> int:
    """The next value of counter ``name``, inside the caller's transaction."""
    ((value,),) = connection.execute(
        "INSERT INTO counters VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
        (name,),
    ).fetchall()
    return int(value)


def _take(database: Database, name: str) -> int:
    with database.transaction() as connection:
        return take_in(connection, name)
