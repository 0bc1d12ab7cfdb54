"""Registered upstreams with their keys. The database is private to its owner, as everything in the home is."""

from __future__ import annotations

import sqlite3

from meshd.core.classes import DataClass
from meshd.core.errors import AlreadyDone, BadInput, HomeUnusable, NotFound
from meshd.core.upstream import Upstream
from meshd.store.db import Database

_COLUMNS = "name, url, model, class_max, slots, context_tokens, key"


def add_upstream(database: Database, upstream: Upstream) -> None:
    """Register ``upstream``. Raises AlreadyDone when the name is taken, or the same model of the same server is."""
    u = upstream
    row = (u.name, u.url, u.model, int(u.class_max), u.slots, u.context_tokens, u.key, u.digest)
    with database.transaction() as connection:
        try:
            connection.execute(f"INSERT INTO upstreams ({_COLUMNS}, digest) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            raise AlreadyDone(f"{u.name}, or the same model of that server, is registered already") from None


def list_upstreams(database: Database) -> tuple[Upstream, ...]:
    """All of them by name. Raises HomeUnusable: somebody else wrote what stands there."""
    return tuple(_upstream(row) for row in database.rows(f"SELECT {_COLUMNS} FROM upstreams ORDER BY name"))


def remove_upstream(database: Database, name: str) -> Upstream:
    """Forget it and its key. Returns what it was. Raises NotFound."""
    with database.transaction() as connection:
        row = connection.execute(f"DELETE FROM upstreams WHERE name = ? RETURNING {_COLUMNS}", (name,)).fetchone()
    if row is None:
        raise NotFound(f"no upstream {name[:200]!r} here", hint="mesh upstream list shows them")
    return _upstream(row)


def _upstream(row: tuple[object, ...]) -> Upstream:
    name, url, model, class_max, slots, context_tokens, key = (str(value) for value in row)
    try:
        return Upstream(name, url, model, DataClass(int(class_max)), int(slots), int(context_tokens), key)
    except (BadInput, ValueError):
        raise HomeUnusable(f"the upstream {name[:200]!r} in the database is damaged") from None
