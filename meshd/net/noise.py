"""Membership inside the security upgrade: Noise XX, then certificates, before the muxer and before any stream.

Why a Noise transport of our own, offered as the only security protocol: the library's default accepts plaintext (any
peer id can be claimed) and plain Noise (any key is welcome). Admission anywhere later is too late: stream handlers
already run. It may go when the library offers a hook between handshake and muxer that can refuse a peer.
"""

from __future__ import annotations

import logging
import struct

import trio
from libp2p.abc import IRawConnection, ISecureConn
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as new_x25519_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.security.exceptions import HandshakeFailure
from libp2p.security.noise.transport import Transport as NoiseTransport

from meshd.core import limits
from meshd.core.errors import ClockWrong, MeshError, NotMember
from meshd.core.ids import NodeId
from meshd.core.trust import Certificate
from meshd.net.config import Gate
from meshd.net.session import Session
from meshd.wire import protocols

PROTOCOL = TProtocol(protocols.NOISE)

_LENGTH = struct.Struct("!H")
_ACCEPTED, _NOT_MEMBER, _CLOCK_WRONG = b"\x01", b"\x02", b"\x03"
_REFUSALS = {_NOT_MEMBER: NotMember, _CLOCK_WRONG: ClockWrong}

log = logging.getLogger("meshd.net")


class MemberNoise(NoiseTransport):
    """Noise XX whose result is a `Session` with a proven member at the other end, or an error."""

    def __init__(self, keys: KeyPair, gate: Gate, timeout_s: float) -> None:
        super().__init__(keys, noise_privkey=new_x25519_pair().private_key)
        self._gate = gate
        self._timeout_s = timeout_s

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Secure a connection that a peer opened. Raises NotMember (either side refused), HandshakeFailure."""
        with self._deadline():
            session = await self._encrypt(conn, None, inbound=True)
            return await self._admit(session)
        raise HandshakeFailure("the handshake took too long")

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID | None) -> ISecureConn:
        """Secure a connection that we opened. ``peer_id`` None: take whoever proves membership."""
        with self._deadline():
            session = await self._encrypt(conn, peer_id, inbound=False)
            return await self._admit(session)
        raise HandshakeFailure("the handshake took too long")

    def _deadline(self) -> trio.CancelScope:
        return trio.move_on_after(self._timeout_s)

    async def _encrypt(self, conn: IRawConnection, peer: ID | None, *, inbound: bool) -> Session:
        pattern = self.get_pattern()
        try:
            noise = await (pattern.handshake_inbound(conn) if inbound else pattern.handshake_outbound(conn, peer))
        except Exception as error:
            raise HandshakeFailure(f"no Noise handshake: {type(error).__name__}") from error
        return Session(noise, conn.stream.stream)  # type: ignore[arg-type, attr-defined]

    async def _admit(self, session: Session) -> Session:
        proof = self._gate.own_proof()
        await session.write(_LENGTH.pack(len(proof)) + proof)
        peer = NodeId(session.get_remote_peer().to_base58())
        try:
            session.certificate = await self._check(session, peer)
        except NotMember as refusal:
            log.warning("refused %s at %s: %s", peer, _where(session), refusal)
            await session.write(_CLOCK_WRONG if isinstance(refusal, ClockWrong) else _NOT_MEMBER)
            await self._linger(session)
            raise
        await session.write(_ACCEPTED)
        await self._verdict(session, peer)
        return session

    async def _check(self, session: Session, peer: NodeId) -> Certificate:
        (size,) = _LENGTH.unpack(await session.read_exactly(2))
        if not 0 < size <= limits.MAX_CERTIFICATE_BYTES:
            raise NotMember(f"a membership proof of {size} bytes")
        proof = await session.read_exactly(size)
        session.proof = proof
        try:
            return self._gate.check(proof, peer)
        except NotMember:
            raise
        except MeshError as error:  # whatever else is wrong with a proof: fail closed
            raise NotMember(str(error)) from error

    async def _verdict(self, session: Session, peer: NodeId) -> None:
        """Learn whether the peer took us; tell a person once, in words, when it did not."""
        verdict = await session.read_exactly(1)
        if verdict == _ACCEPTED:
            return
        refusal = _REFUSALS.get(verdict, NotMember)
        reason = "its clock and ours disagree" if refusal is ClockWrong else "it does not take us for a member"
        log.warning("%s at %s refused us: %s", peer, _where(session), reason)
        raise refusal(f"{peer} refused us: {reason}")

    async def _linger(self, session: Session) -> None:
        """Closing with unread bytes would reset the connection and lose our verdict on its way: read a little on."""
        with trio.move_on_after(0.5):
            try:
                await session.read_exactly(1)
            except BaseLibp2pError:
                return


def _where(session: Session) -> str:
    endpoint = session.get_remote_address()
    return f"{endpoint[0]}:{endpoint[1]}" if endpoint else "an unknown address"
