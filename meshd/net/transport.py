"""The transport port: connections between members and streams of frames on them.

The library's errors end here: callers see only errors of `meshd.core.errors`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import lru_cache

import trio
from libp2p.abc import INetStream
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID

from meshd.core.errors import ClockWrong, MeshError, NotMember, Truncated, Unreachable
from meshd.core.ids import NodeId
from meshd.core.peers import PeerDown, PeerUp
from meshd.core.trust import Certificate
from meshd.net.addresses import Endpoint, parse_all
from meshd.net.frames import Frames
from meshd.net.host import MeshHost
from meshd.net.mux import Mux
from meshd.net.swarm import MeshSwarm

log = logging.getLogger("meshd.net")

MAX_EVENTS = 4096
STAGGER_S = 0.2
"""How long an address may stay silent before the next is tried beside it."""


@lru_cache(maxsize=4096)
def peer_of(node: NodeId) -> ID:
    """The library's word for ``node``; decoding base58 in Python takes as long as sealing a small frame."""
    return ID.from_base58(node)


class Libp2pTransport:
    """A `Transport` of the ports over `MeshSwarm` and `MeshHost`."""

    def __init__(self, host: MeshHost, swarm: MeshSwarm, addresses: Callable[[], tuple[str, ...]]) -> None:
        self._host = host
        self._swarm = swarm
        self._addresses = addresses
        self._up: dict[ID, Certificate] = {}
        self._events, self._to_read = trio.open_memory_channel[PeerUp | PeerDown](MAX_EVENTS)
        swarm.on_up = self._on_up
        swarm.on_down = self._on_down

    @property
    def node(self) -> NodeId:
        """Who we are."""
        return NodeId(self._swarm.get_peer_id().to_base58())

    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs this node listens on; see `Transport`."""
        return self._addresses()

    def certificate_of(self, node: NodeId) -> Certificate | None:
        """The certificate that the connected peer proved; None when not connected."""
        return self._up.get(peer_of(node))

    def connected(self) -> tuple[NodeId, ...]:
        """Members with a live connection."""
        return tuple(NodeId(peer.to_base58()) for peer in self._up)

    # Dialling

    async def dial(self, node: NodeId | None, addresses: Sequence[str], timeout_s: float) -> NodeId:
        """Connect, or keep the live connection; see `Transport`. Each explicit dial is a fresh try."""
        if node is not None and node in self.connected():
            return node
        if node == self.node:
            raise Unreachable("that is this node itself")
        endpoints = [e for e in parse_all(addresses) if node is None or e.node in (None, node)]
        if not endpoints:
            raise Unreachable(f"no usable address of {node or 'the peer'}")
        failures: list[Exception] = []
        with trio.move_on_after(timeout_s):
            if found := await self._race(node, endpoints, failures):
                return found
        raise _worst(failures, f"{node or endpoints[0].multiaddr()} does not answer")

    async def _race(self, node: NodeId | None, endpoints: list[Endpoint], failures: list[Exception]) -> NodeId | None:
        """Try the endpoints one beside the other, a little apart; the first member wins."""
        found: list[NodeId] = []
        async with trio.open_nursery() as nursery:

            async def attempt(endpoint: Endpoint, over: trio.Event) -> None:
                try:
                    found.append(await self._connect(node or endpoint.node, endpoint))
                    nursery.cancel_scope.cancel()
                except (OSError, BaseLibp2pError, MeshError) as error:
                    failures.append(error)
                finally:
                    over.set()

            for endpoint in endpoints:
                over = trio.Event()
                nursery.start_soon(attempt, endpoint, over)
                with trio.move_on_after(STAGGER_S):
                    await over.wait()
        return found[0] if found else None

    async def _connect(self, node: NodeId | None, endpoint: Endpoint) -> NodeId:
        if node == self.node:
            raise Unreachable("that is this node itself")
        conn = await self._swarm.connect(None if node is None else peer_of(node), endpoint)
        peer = conn.muxed_conn.peer_id
        self._swarm.peerstore.learn(peer, [endpoint.multiaddr()])  # type: ignore[attr-defined]
        return NodeId(peer.to_base58())

    # Streams

    async def open_stream(self, node: NodeId, protocol: str, timeout_s: float) -> Frames:
        """A new stream to a connected peer. Raises Unreachable."""
        peer = peer_of(node)
        if peer not in self._up:
            raise Unreachable(f"not connected to {node}")
        with trio.move_on_after(timeout_s):
            try:
                return Frames(await self._host.application_stream(peer, protocol), node)  # type: ignore[arg-type]
            except Exception as error:
                raise Unreachable(f"{node} opened no stream for {protocol}") from error
        raise Unreachable(f"{node} opened no stream for {protocol} within {timeout_s:g} s")

    def serve(self, protocol: str, handler: Callable[[Frames], Awaitable[None]]) -> None:
        """Run ``handler`` for each inbound stream of ``protocol``; see `Transport`."""

        async def run(stream: INetStream) -> None:
            frames = Frames(stream, NodeId(stream.muxed_conn.peer_id.to_base58()))  # type: ignore[arg-type]
            try:
                await handler(frames)
            except Truncated:
                await frames.abort()
            except Exception as error:  # noqa: BLE001 - the door: one stream's fault ends that stream only
                log.warning("handler of %s for %s failed: %r", protocol, frames.peer, error)
                await frames.abort()
            else:
                await frames.close()

        self._host.set_stream_handler(TProtocol(protocol), run)

    # Ending

    async def drop(self, node: NodeId) -> None:
        """Abort every connection to ``node`` now, frozen peers included. Never raises."""
        for conn in self._swarm.get_connections(peer_of(node)):
            if isinstance(conn.muxed_conn, Mux):
                conn.muxed_conn.abort()
        self._on_down(peer_of(node))

    def events(self) -> AsyncIterator[PeerUp | PeerDown]:
        """Peers coming and going; see `Transport`."""
        return self._to_read

    def _on_up(self, mux: Mux, outbound: bool) -> None:
        certificate = mux.secured_conn.certificate
        if certificate is None:
            return
        known = mux.peer_id in self._up
        self._up[mux.peer_id] = certificate
        if not known:
            self._report(PeerUp(NodeId(mux.peer_id.to_base58()), certificate, outbound))

    def _on_down(self, peer: ID) -> None:
        if self._up.pop(peer, None) is not None:
            self._report(PeerDown(NodeId(peer.to_base58())))

    def _report(self, event: PeerUp | PeerDown) -> None:
        try:
            self._events.send_nowait(event)
        except trio.WouldBlock:
            log.error("nobody reads the peers' coming and going: %s is lost", event)


def _worst(failures: list[Exception], otherwise: str) -> MeshError:
    """The failure that says most: a refusal over a silence."""
    for kind in (ClockWrong, NotMember):
        for failure in failures:
            if isinstance(failure, kind):
                return failure
    reasons = "; ".join(sorted({_words(f) for f in failures}))
    return Unreachable(f"{otherwise}: {reasons}" if reasons else otherwise)


def _words(failure: Exception) -> str:
    if isinstance(failure, OSError):
        return failure.strerror or (_words(inner) if (inner := _first_cause(failure)) else "connection failed")
    return str(failure) or type(failure).__name__


def _first_cause(failure: BaseException) -> OSError | None:
    """What the system said, below what trio made of it."""
    cause = failure.__cause__
    if isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause if isinstance(cause, OSError) else None
