"""An encrypted, authenticated byte pipe over one TCP connection.

Deviation from the library's secure session, for two reasons. It reads the socket in large pieces and decrypts every
whole message in them (the library makes two system calls a message). And sealing is split from sending: the Noise
nonce advances only in `seal`, which does not await, so no cancellation can leave a sealed message half sent. It may
go when the library's own session has both properties (``test_cancellation.py``).
"""

from __future__ import annotations

import struct
from typing import Protocol

import trio
from libp2p.abc import ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError, IncompleteReadError
from libp2p.security.base_session import BaseSession
from libp2p.security.secure_session import SecureSession
from multiaddr import Multiaddr

from meshd.core.trust import Certificate

MAX_PLAIN_BYTES = 65535 - 16
"""Noise's bound on a message, less its tag."""

_READ_BYTES = 256 * 1024
_LENGTH = struct.Struct("!H")


class Cipher(Protocol):
    """The two directions of Noise after the handshake; each call advances that direction's nonce."""

    def encrypt(self, data: bytes) -> bytes:
        """One message."""

    def decrypt(self, data: bytes) -> bytes:
        """Its content. Raises when it was tampered with."""


class Session(BaseSession, ISecureConn):
    """The connection after Noise. ``certificate`` and ``proof`` are set once the peer has proven membership."""

    certificate: Certificate | None = None
    proof: bytes = b""

    def __init__(self, noise: SecureSession, socket: trio.SocketStream) -> None:
        super().__init__(
            local_peer=noise.local_peer,
            local_private_key=noise.local_private_key,
            remote_peer=noise.remote_peer,
            remote_permanent_pubkey=noise.remote_permanent_pubkey,
            is_initiator=noise.is_initiator,
        )
        self._state: Cipher = noise.conn.noise_state  # type: ignore[attr-defined]
        self._socket = socket
        self._sealed = bytearray()
        self._plain = bytearray()
        self._remote = _endpoint(socket)

    def seal(self, plain: bytes | bytearray | memoryview) -> bytes:
        """``plain`` as Noise messages, ready to be sent in exactly this order. Not awaiting: never half done."""
        out = bytearray()
        view = memoryview(plain)
        for start in range(0, len(view), MAX_PLAIN_BYTES):
            message = self._state.encrypt(bytes(view[start : start + MAX_PLAIN_BYTES]))
            out += _LENGTH.pack(len(message)) + message
        return bytes(out)

    async def send_sealed(self, sealed: bytes) -> None:
        """Write what `seal` returned. One caller at a time; cancelling it ends the use of this connection."""
        try:
            await self._socket.send_all(sealed)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ConnectionClosedError("connection lost", transport="tcp") from error

    async def receive(self) -> bytes:
        """Decrypted bytes, at least one; empty when the peer closed. Cancellable at no cost."""
        if self._plain:
            return self._take(len(self._plain))
        while not (plain := self._open_messages()):
            try:
                data = await self._socket.receive_some(_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return b""
            if not data:
                return b""
            self._sealed += data
        return plain

    def _open_messages(self) -> bytes:
        sealed, at, plain = self._sealed, 0, []
        while len(sealed) - at >= 2:
            end = at + 2 + _LENGTH.unpack_from(sealed, at)[0]
            if len(sealed) < end:
                break
            plain.append(self._state.decrypt(bytes(sealed[at + 2 : end])))
            at = end
        del sealed[:at]
        return plain[0] if len(plain) == 1 else b"".join(plain)

    def _take(self, n: int) -> bytes:
        taken = bytes(self._plain[:n])
        del self._plain[:n]
        return taken

    async def read_exactly(self, n: int) -> bytes:
        """Exactly ``n`` bytes; raises IncompleteReadError when the connection ends before."""
        while len(self._plain) < n:
            held = bytes(self._plain)
            self._plain.clear()
            more = await self.receive()
            self._plain += held + more
            if not more:
                raise IncompleteReadError("connection ended", expected_bytes=n, received_bytes=len(held))
        return self._take(n)

    async def read(self, n: int | None = None) -> bytes:
        """The library's reader: up to ``n`` bytes."""
        if not self._plain:
            self._plain += await self.receive()
        return self._take(len(self._plain) if n is None else n)

    async def write(self, data: bytes) -> None:
        """The library's writer: used only during the handshake, before the muxer owns the connection."""
        await self.send_sealed(self.seal(data))

    async def close(self) -> None:
        """Close at once."""
        self.abort()

    def abort(self) -> None:
        """Close the socket now, waking whoever waits on it. Idempotent, never raises, never waits."""
        self._socket.socket.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Host and port of the other end."""
        return self._remote

    def get_transport_addresses(self) -> list[Multiaddr]:
        """The other end as a multiaddr."""
        if self._remote is None:
            return []
        host, port = self._remote
        return [Multiaddr(f"/{'ip6' if ':' in host else 'ip4'}/{host}/tcp/{port}")]

    def get_connection_type(self) -> ConnectionType:
        """Always direct: there are no relays here."""
        return ConnectionType.DIRECT


def _endpoint(socket: trio.SocketStream) -> tuple[str, int] | None:
    try:
        name = socket.socket.getpeername()
    except OSError:
        return None
    return (str(name[0]), int(name[1]))
