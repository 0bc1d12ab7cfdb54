"""Invites on the issuer's side: what each grants, how often it may still be used, and whom it admitted."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field

from meshd.core.errors import HomeUnusable, InviteExpired, InviteInvalid, InviteUsed, ProtocolViolation
from meshd.core.trust import InviteTerms
from meshd.store.counters import take_in
from meshd.store.db import Database
from meshd.wire.codec import decode, encode
from meshd.wire.enrol import EnrolRequest
from meshd.wire.typed import from_wire, to_wire

MakeProof = Callable[[InviteTerms, int], bytes]
"""Makes the membership proof of the machine that is admitted, from the invite's terms and a fresh serial."""


@dataclass(frozen=True, slots=True)
class KeptInvite:
    """One invite as the issuer keeps it."""

    id: bytes
    terms: InviteTerms
    uses_left: int
    secret: bytes = field(repr=False)


def add_invite(database: Database, invite: bytes, secret: bytes, terms: InviteTerms) -> None:
    """Keep a new invite; it is on disk before its text leaves this machine."""
    row = (invite, secret, encode(to_wire(terms)), terms.uses, terms.expires_at)
    with database.transaction() as connection:
        connection.execute("INSERT INTO invites VALUES (?, ?, ?, ?, ?)", row)


def list_invites(database: Database, now_s: float) -> tuple[KeptInvite, ...]:
    """Invites that can still admit somebody."""
    query = "SELECT id, terms, uses_left, secret FROM invites WHERE uses_left > 0 AND expires_at > ? LIMIT 1000"
    return tuple(_kept(row) for row in database.rows(query, (now_s,)))


def admit(database: Database, request: EnrolRequest, now_s: float, make_proof: MakeProof) -> bytes:
    """The membership proof for the machine behind ``request``: one use of its invite, all or nothing.

    A machine that asks again within the invite's time (its answer got lost) gets the same proof and uses nothing
    up. Raises InviteInvalid (unknown, or the secret is not known), InviteExpired, InviteUsed; no use is lost.
    """
    with database.transaction() as connection:
        invite = _find(connection, request)
        if now_s >= invite.terms.expires_at:
            raise InviteExpired("the invite expired", hint="ask for a new one")
        earlier = connection.execute(
            "SELECT name, proof FROM admissions WHERE invite = ? AND node = ?", (invite.id, request.node)
        ).fetchone()
        if earlier is not None and earlier[0] == request.name:
            return bytes(earlier[1])
        if earlier is None:
            _use(connection, invite)
        proof = make_proof(invite.terms, take_in(connection, "serial"))
        row = (invite.id, request.node, request.name, proof, now_s)
        connection.execute("INSERT OR REPLACE INTO admissions VALUES (?, ?, ?, ?, ?)", row)
        return proof


def _find(connection: sqlite3.Connection, request: EnrolRequest) -> KeptInvite:
    query = "SELECT id, terms, uses_left, secret FROM invites WHERE id = ?"
    row = connection.execute(query, (request.invite,)).fetchone()
    invite = None if row is None else _kept(row)
    if invite is None or not request.knows(invite.secret):
        # one answer for both: a stranger must not learn which invites exist
        raise InviteInvalid("this issuer knows no such invite", hint="ask for a new one")
    return invite


def _use(connection: sqlite3.Connection, invite: KeptInvite) -> None:
    if invite.uses_left < 1:
        raise InviteUsed("the invite was used up", hint="ask for a new one")
    connection.execute("UPDATE invites SET uses_left = uses_left - 1 WHERE id = ?", (invite.id,))


def _kept(row: tuple[object, ...]) -> KeptInvite:
    match row:
        case (bytes() as invite, bytes() as terms, int() as uses_left, bytes() as secret):
            try:
                return KeptInvite(invite, from_wire(InviteTerms, decode(terms, 65_536)), uses_left, secret)
            except ProtocolViolation:
                pass
    raise HomeUnusable("a kept invite is damaged", hint="move the home's node.db away and make new invites")
