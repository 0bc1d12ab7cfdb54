"""The library's swarm with the parts replaced that a stranger can abuse or that wait for no reason.

Deviations, each with its reason; each may go when the named test passes without it:
- `accept`: the library parks a task and one of 250 slots for every inbound connection until shutdown, so a node
  accepts 250 connections in its life (``test_many_inbound_connections``). Half-open handshakes are bounded, and the
  oldest makes room for the newest, so that a flood delays nobody (``test_half_open_flood``).
- `dial_peer`: the library waits 250 ms in every dial, hides loopback addresses behind public ones, tries at most two,
  and shuns a peer for 60 s after one failure (``test_dial_is_quick_and_keeps_a_live_connection``,
  ``test_restart_on_the_same_port``).
- `NoAutoConnector`: nobody is dialled unasked (``test_nobody_is_dialled_unasked``).
- `set_stream_handler`: the library ends the whole host on an exception of any stream handler, and on bad UTF-8 in a
  protocol header (``test_garbage``).
- `_open_stream_on_connection`: a cancelled opening leaks one of the slots (``test_the_connection_survives``).
- `Bounded`: before Noise the library reads whatever length a stranger announces
  (``test_a_stranger_announcing_a_huge_message_is_hung_up_on_at_once``).
- the upgrader: the muxer goes without saying, as our Noise protocol implies it; the library's negotiation would cost
  a round trip and instantiate its own yamux whatever it is given.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import trio
from libp2p.abc import IMuxedConn, INetConn, INetStream, IRawConnection, ISecureConn
from libp2p.custom_types import StreamHandlerFn
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.transport.upgrader import TransportUpgrader

from meshd.core.errors import MeshError
from meshd.core.ids import NodeId
from meshd.net.addresses import Endpoint, parse_all
from meshd.net.book import AddressBook
from meshd.net.config import Gate, NetConfig
from meshd.net.mux import Mux
from meshd.net.noise import PROTOCOL, MemberNoise

log = logging.getLogger("meshd.net")

SHUN_S = 10.0
"""How long the directory leaves a peer alone that it could not reach; a dial by the node itself is never refused."""

MAX_CONNECTIONS_PER_PEER = 4
"""Two, when both dial at once; the rest are dead ones that nobody has noticed yet."""

_DIRECTORY_DIALS = 16


class Upgrader(TransportUpgrader):
    """Socket to session by `MemberNoise`, session to `Mux` without negotiation."""

    def __init__(self, noise: MemberNoise, write_deadline_s: float) -> None:
        super().__init__({PROTOCOL: noise}, {})
        self._write_deadline_s = write_deadline_s

    async def upgrade_security(
        self, raw_conn: IRawConnection, is_initiator: bool, peer_id: ID | None = None
    ) -> ISecureConn:
        """A session with a member. ``peer_id`` None: with whichever member is there."""
        if is_initiator and peer_id is None:
            return await self.security_multistream.secure_outbound(raw_conn, None)  # type: ignore[arg-type]
        return await super().upgrade_security(raw_conn, is_initiator, peer_id)

    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """The muxer of that session."""
        return Mux(conn, peer_id, self._write_deadline_s)  # type: ignore[arg-type]


MAX_RAW_READ_BYTES = 65535
"""A Noise message; all that is said before is shorter."""


class Bounded(RawConnection):
    """The bytes under the handshake. Nobody there is a member yet, so no read is larger than a Noise message."""

    async def read(self, n: int | None = None) -> bytes:
        """Up to ``n`` bytes. Raises RawConnError, having read nothing, when that is more than any message there."""
        if n is not None and n > MAX_RAW_READ_BYTES:
            raise RawConnError(f"a message of {n} bytes in a handshake")
        return await super().read(n)


class NoAutoConnector(AutoConnector):
    """Dials nobody: the library's dials whomever it knows, even with every watermark at zero."""

    async def start(self) -> None:
        """Nothing to start."""

    async def run_background_task(self, nursery: trio.Nursery) -> None:
        """Nothing to run."""

    async def maybe_connect(self) -> None:
        """Connect nobody."""


class MeshSwarm(Swarm):
    """Connections between members. ``on_up`` and ``on_down`` are called, without awaiting, as they come and go."""

    def __init__(self, peer_id: ID, book: AddressBook, upgrader: Upgrader, config: NetConfig) -> None:
        limits = ConnectionConfig(
            max_connections=config.max_connections,
            min_connections=0,
            low_watermark=0,
            high_watermark=config.max_connections,
            max_connections_per_peer=8,
            outbound_stream_protocol_negotiation_timeout=5.0,
            inbound_stream_protocol_negotiation_timeout=5.0,
        )
        super().__init__(peer_id, book, upgrader, [], connection_config=limits)
        self.auto_connector = NoAutoConnector(self)
        self._config = config
        self._half_open: dict[trio.CancelScope, None] = {}
        self._shunned_until: dict[ID, float] = {}
        self._directory_dials = trio.Semaphore(_DIRECTORY_DIALS)
        self.on_up: Callable[[Mux, bool], None] = lambda mux, outbound: None
        self.on_down: Callable[[ID], None] = lambda peer: None

    # Inbound

    async def accept(self, socket: trio.SocketStream) -> None:
        """Take one inbound connection through handshake and admission, and stay until it ends. Never raises on its
        account. The caller closes the socket."""
        conn: SwarmConn | None = None
        async with self._slot():
            if self.get_total_connections() >= self._config.max_connections:
                return
            try:
                conn = await self._upgrade(socket, None, outbound=False)
            except Exception as error:  # noqa: BLE001 - the door: nothing a stranger sends may reach the swarm
                log.debug("inbound connection failed: %r", error)
        if conn is not None:
            await conn.muxed_conn.event_closed.wait()  # type: ignore[attr-defined]

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """One of the bounded half-open handshakes; the oldest is dropped when all are taken."""
        if len(self._half_open) >= self._config.max_handshakes:
            next(iter(self._half_open)).cancel()
        with trio.CancelScope() as scope:
            self._half_open[scope] = None
            try:
                yield
            finally:
                self._half_open.pop(scope, None)

    # Outbound

    async def connect(self, peer: ID | None, endpoint: Endpoint) -> SwarmConn:
        """Connect to ``endpoint``. Raises OSError, MeshError, BaseLibp2pError."""
        socket = await trio.open_tcp_stream(endpoint.host, endpoint.port)
        kept = False
        try:
            conn = await self._upgrade(socket, peer, outbound=True)
            kept = True
            return conn
        except (OSError, MeshError, BaseLibp2pError):
            raise
        except Exception as error:
            raise SwarmException(f"the other side sends garbage ({type(error).__name__})") from error
        finally:
            if not kept:
                socket.socket.close()

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        """The library's own wish to reach a peer (its DHT): bounded, by our address book, shunning the dead."""
        if live := [c for c in self.get_connections(peer_id) if not c.is_closed]:
            return live
        if self._shunned_until.get(peer_id, 0.0) > trio.current_time():
            raise SwarmException("not reachable a moment ago")
        async with self._directory_dials:
            for endpoint in parse_all(self.peerstore.endpoints(peer_id)):  # type: ignore[attr-defined]
                with trio.move_on_after(self._config.directory_timeout_s):
                    try:
                        return [await self.connect(peer_id, endpoint)]
                    except (OSError, MeshError, BaseLibp2pError) as error:
                        log.debug("directory dial to %s failed: %r", peer_id, error)
        self.shun(peer_id)
        raise SwarmException("no address of the peer answers")

    def shun(self, peer: ID) -> None:
        """Let the directory leave ``peer`` alone for a while."""
        now = trio.current_time()
        self._shunned_until = {p: t for p, t in self._shunned_until.items() if t > now}
        self._shunned_until[peer] = now + SHUN_S

    def unshun(self, peer: ID) -> None:
        """The peer may be dialled again."""
        self._shunned_until.pop(peer, None)

    async def keep_members(self, gate: Gate) -> None:
        """End connections whose peer's proof has run out, until cancelled. A peer that was renewed in the meantime
        proves it with the next handshake, a moment later."""
        while True:
            await trio.sleep(self._config.recheck_interval_s)
            for connection in self.get_connections():
                mux = connection.muxed_conn
                if isinstance(mux, Mux) and not mux.is_closed and not self._is_member(mux, gate):
                    mux.abort()

    def _is_member(self, mux: Mux, gate: Gate) -> bool:
        try:
            gate.check(mux.secured_conn.proof, NodeId(mux.peer_id.to_base58()))
        except MeshError as error:  # whatever is wrong with it: fail closed
            log.warning("connection with %s ends: %s", mux.peer_id, error)
            return False
        return True

    async def prune_idle(self, keep: int) -> None:
        """Close connections that carry no stream but the directory's until ``keep`` of them are left, the quietest
        first."""
        muxes = [c.muxed_conn for c in self.get_connections() if isinstance(c.muxed_conn, Mux)]
        idle = sorted((m for m in muxes if m.is_idle), key=lambda m: m.last_received_at)
        for mux in idle[: max(0, len(idle) - keep)]:
            await mux.close()

    async def _upgrade(self, socket: trio.SocketStream, peer: ID | None, *, outbound: bool) -> SwarmConn:
        raw = Bounded(TrioTCPStream(socket), outbound)
        with trio.move_on_after(self._config.handshake_timeout_s):
            session = await self.upgrader.upgrade_security(raw, outbound, peer)
            mux = await self.upgrader.upgrade_connection(session, session.get_remote_peer())
            return await self.add_conn(mux, "outbound" if outbound else "inbound")
        raise SwarmException("the handshake took too long")

    # What the library calls

    async def add_conn(self, muxed_conn: IMuxedConn, direction: str = "unknown") -> SwarmConn:
        """Register a connection whose peer proved membership. Its end is reported at once: the library's notifee
        comes 200 ms later (``test_a_killed_peer_is_a_truncation_and_down_at_once``)."""
        self._make_room(muxed_conn.peer_id)
        conn = await super().add_conn(muxed_conn, direction)
        self.unshun(muxed_conn.peer_id)
        if isinstance(muxed_conn, Mux) and not muxed_conn.is_closed:
            muxed_conn.on_over = partial(self._over, muxed_conn.peer_id)
            self.on_up(muxed_conn, direction == "outbound")
        return conn

    def _make_room(self, peer: ID) -> None:
        """End the oldest connections of ``peer`` beyond the bound: what it can make us hold is counted by connection.
        (The library spares young ones, however many.)"""
        live = [c.muxed_conn for c in self.get_connections(peer) if not c.is_closed]
        for mux in live[: max(0, len(live) + 1 - MAX_CONNECTIONS_PER_PEER)]:
            if isinstance(mux, Mux):
                mux.abort()

    def _over(self, peer: ID) -> None:
        if all(conn.muxed_conn.is_closed for conn in self.get_connections(peer)):
            self.on_down(peer)

    async def _open_stream_on_connection(
        self, connection: INetConn, connections: list[INetConn], peer_id: ID
    ) -> INetStream:
        """Open and register a stream in one piece: in the library a cancellation between the two leaks the slot."""
        del connections
        mux = connection.muxed_conn
        await mux.slots.acquire()  # type: ignore[attr-defined]
        try:
            with trio.CancelScope(shield=True):
                return await connection._add_stream(mux.open_in_slot())  # type: ignore[attr-defined, no-any-return]
        except MuxedStreamError as error:
            raise SwarmException(f"no stream to {peer_id}") from error

    def set_stream_handler(self, stream_handler: StreamHandlerFn) -> None:
        """Install the handler of inbound streams, fenced: what it raises ends that stream only."""

        async def fenced(stream: INetStream) -> None:
            try:
                await stream_handler(stream)
            except Exception as error:  # noqa: BLE001 - the door: a stream's handler may not end the host
                log.debug("stream handler failed: %r", error)
                await stream.reset()

        super().set_stream_handler(fenced)
