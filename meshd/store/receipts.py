"""The ledger: signed receipts, each row chained to the one before, so that a change or a gap shows."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from meshd.core.errors import ProtocolViolation
from meshd.core.ids import JobId
from meshd.core.receipt import Receipt
from meshd.store.db import Database
from meshd.wire.receipt import open_receipt, receipt_id

MAX_LISTED: Final = 1000
_START: Final = bytes(32)
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Kept:
    """One row of the ledger: its number (from 1), the receipt's id, the receipt and its signed bytes."""

    number: int
    id: str
    receipt: Receipt
    signed: bytes


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify_ledger` found: how many rows are good from the start, and the first fault ("" for none)."""

    good: int
    fault: str


def append_receipts(database: Database, receipts: Sequence[tuple[Receipt, bytes]]) -> None:
    """Add receipts in order, in one transaction. One kept already is not added again.

    When this returns they survive a crash of the process. A power cut may cost the last few: an attempt must not
    wait for the disk to spin, and the other end of the attempt keeps the same receipt.
    """
    with database.transaction(durable=False) as connection:
        last = connection.execute("SELECT number, chain FROM receipts ORDER BY number DESC LIMIT 1").fetchone()
        number, chain = last or (0, _START)
        for receipt, signed in receipts:
            if not _known(connection, signed):
                number, chain = number + 1, _chained(chain, signed)
                row = (number, receipt_id(signed), signed, receipt.attempt.job, receipt.ended_at, chain)
                connection.execute("INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?)", row)


def list_receipts(database: Database, limit: int = 100, job: JobId | None = None) -> tuple[Kept, ...]:
    """The latest receipts (of ``job``, when given), newest first. Raises ProtocolViolation for a damaged row."""
    limit = max(0, min(limit, MAX_LISTED))
    where, parameters = ("WHERE job = ?", (job, limit)) if job is not None else ("", (limit,))
    rows = database.rows(f"SELECT number, signed FROM receipts {where} ORDER BY number DESC LIMIT ?", parameters)
    return tuple(_kept(number, signed) for number, signed in rows)


def verify_ledger(database: Database) -> Verdict:
    """Check every signature, the numbering and the chain, from the first row on."""
    chain, good = _START, 0
    for number, identifier, signed, stored in _all(database):
        fault = _fault(good + 1, number, identifier, signed)
        chain = _chained(chain, signed)
        if fault or stored != chain:
            return Verdict(good, fault or f"row {number}: the chain is broken")
        good += 1
    return Verdict(good, "")


def _all(database: Database) -> Iterator[tuple[int, str, bytes, bytes]]:
    last = 0
    while True:
        query = "SELECT number, id, signed, chain FROM receipts WHERE number > ? ORDER BY number LIMIT ?"
        page = database.rows(query, (last, _PAGE))
        for number, identifier, signed, chain in page:
            last = int(str(number))
            yield last, str(identifier), _bytes(signed), _bytes(chain)
        if len(page) < _PAGE:
            return


def _fault(expected: int, number: int, identifier: str, signed: bytes) -> str:
    if number != expected:
        return f"row {expected} is missing"
    if identifier != receipt_id(signed):
        return f"row {number}: the id is not the receipt's"
    try:
        open_receipt(signed)
    except ProtocolViolation as e:
        return f"row {number}: {e.message}"
    return ""


def _known(connection: sqlite3.Connection, signed: bytes) -> bool:
    return connection.execute("SELECT 1 FROM receipts WHERE id = ?", (receipt_id(signed),)).fetchone() is not None


def _kept(number: object, signed: object) -> Kept:
    data = _bytes(signed)
    return Kept(int(str(number)), receipt_id(data), open_receipt(data), data)


def _chained(chain: bytes, signed: bytes) -> bytes:
    return hashlib.blake2b(chain + signed, digest_size=32, person=b"meshd-ledger-1").digest()


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""
