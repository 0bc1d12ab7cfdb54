"""The peer book: where members were last reached, so that a restart needs no bootstrap node."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from meshd.core.ids import NodeId
from meshd.store.db import Database

MAX_PEERS: Final = 256
"""Enough to find a mesh again after any outage; the oldest go first."""

MAX_ADDRESSES: Final = 16


def remember_peer(database: Database, node: NodeId, addresses: Sequence[str], now_s: float) -> None:
    """``node`` was reached at ``addresses`` (at most MAX_ADDRESSES are kept) at wall time ``now_s``."""
    kept = json.dumps(list(addresses)[:MAX_ADDRESSES]).encode()
    with database.transaction(durable=False) as connection:
        connection.execute("INSERT OR REPLACE INTO peers VALUES (?, ?, ?)", (node, kept, now_s))
        connection.execute(
            "DELETE FROM peers WHERE node NOT IN (SELECT node FROM peers ORDER BY reached_at DESC LIMIT ?)",
            (MAX_PEERS,),
        )


def recall_peers(database: Database) -> tuple[tuple[NodeId, tuple[str, ...]], ...]:
    """Members with the addresses they were last reached at, the latest first."""
    rows = database.rows("SELECT node, addresses FROM peers ORDER BY reached_at DESC LIMIT ?", (MAX_PEERS,))
    return tuple((NodeId(str(node)), _addresses(stored)) for node, stored in rows)


def _addresses(stored: object) -> tuple[str, ...]:
    try:
        parsed = json.loads(stored if isinstance(stored, bytes) else b"[]")
    except ValueError:
        return ()
    return tuple(str(a) for a in parsed) if isinstance(parsed, list) else ()
