"""The owner's share, as `mesh share` left it."""

from __future__ import annotations

from meshd.core.errors import HomeUnusable, ProtocolViolation
from meshd.core.share import Share
from meshd.store.db import Database
from meshd.wire.codec import decode, encode
from meshd.wire.typed import from_wire, to_wire

_MAX_BYTES = 4096


def load_share(database: Database) -> Share:
    """What the owner shares: nothing, until it was saved once. HomeUnusable when the saved value is damaged."""
    rows = database.rows("SELECT value FROM settings WHERE name = 'share'")
    if not rows:
        return Share()
    value = rows[0][0]
    try:
        return from_wire(Share, decode(value if isinstance(value, bytes) else b"", _MAX_BYTES))
    except ProtocolViolation:
        raise HomeUnusable("the saved share is damaged", hint="mesh share sets it anew") from None


def save_share(database: Database, share: Share) -> None:
    """Keep ``share`` for the next start."""
    with database.transaction() as connection:
        connection.execute("INSERT OR REPLACE INTO settings VALUES ('share', ?)", (encode(to_wire(share)),))
