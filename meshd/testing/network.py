"""An in-memory network of members: transports, frame streams and a directory, with faults on demand.

Everything runs inside one trio run, in virtual time if there is a MockClock. `FakeNetwork` can kill a node (its
connections break at once, as after SIGKILL), freeze it (its connections stay, nothing moves, as after SIGSTOP), cut
two nodes apart (silence, as with a pulled cable), and undo the last two. What a node's own tasks do while it is
killed or frozen is the test's business: only its network stops.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

import trio

from meshd.core import limits
from meshd.core.errors import FrameTooLarge, MeshError, NotMember, Truncated, Unreachable
from meshd.core.ids import NodeId
from meshd.core.trust import Certificate
from meshd.node.ports import PeerDown, PeerUp, StreamHandler

FRAMES_IN_FLIGHT: Final = 256
EVENTS_WAITING: Final = 10_000
_Frame = tuple[float, int, bytes]


class FakeStream:
    """One end of a stream; frames arrive ``latency_s`` after they were sent, while the network lets them."""

    def __init__(
        self,
        network: FakeNetwork,
        me: NodeId,
        peer: NodeId,
        out: trio.MemorySendChannel[_Frame],
        into: trio.MemoryReceiveChannel[_Frame],
    ) -> None:
        self.peer = peer
        self.sent = 0
        self._network = network
        self._me = me
        self._out = out
        self._into = into
        self._waiting: _Frame | None = None
        self._aborted = False

    async def send(self, kind: int, payload: bytes) -> None:
        """Send one frame whole, or raise Truncated when the peer is gone."""
        frame = (trio.current_time() + self._network.latency_s, int(kind), bytes(payload))
        try:
            await self._out.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Truncated("the peer is gone") from None
        self.sent += 1

    async def receive(self, max_bytes: int) -> tuple[int, bytes]:
        """The next frame. Raises Truncated when there will be none, FrameTooLarge beyond ``max_bytes``."""
        try:
            if self._waiting is None:
                self._waiting = await self._into.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise Truncated("the peer is gone") from None
        await self._until_it_may_arrive(self._waiting[0])
        (_, kind, payload), self._waiting = self._waiting, None
        if len(payload) > max_bytes:
            raise FrameTooLarge(f"a frame of {len(payload)} bytes where {max_bytes} are the limit")
        return kind, payload

    async def _until_it_may_arrive(self, at_s: float) -> None:
        await trio.sleep_until(at_s)
        await self._network.until_flowing(self.peer, self._me, lambda: self._aborted)
        if self._aborted:
            raise Truncated("the stream was aborted")

    async def close(self) -> None:
        """Send nothing more."""
        self._out.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def abort(self) -> None:
        """End both directions at once."""
        self.break_now()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def break_now(self) -> None:
        """The same, for the network itself."""
        self._aborted = True
        self._out.close()
        self._into.close()
        self._network.notify()


@dataclass(slots=True, eq=False)
class _Link:
    """A connection between two nodes."""

    ends: tuple[NodeId, NodeId]
    streams: list[FakeStream] = field(default_factory=list)

    def other(self, node: NodeId) -> NodeId:
        return self.ends[1] if self.ends[0] == node else self.ends[0]


class FakeTransport:
    """A node's side of the `FakeNetwork`; made by `FakeNetwork.transport`."""

    def __init__(self, network: FakeNetwork, certificate: Certificate, address: str) -> None:
        self.node = certificate.node
        self.certificate = certificate
        self.links: dict[NodeId, _Link] = {}
        self.handlers: dict[str, StreamHandler] = {}
        self.alive = True
        self.scopes: set[trio.CancelScope] = set()
        self._network = network
        self._address = address
        self._news: trio.MemorySendChannel[PeerUp | PeerDown] | None = None

    def addresses(self) -> tuple[str, ...]:
        return (self._address,)

    def certificate_of(self, node: NodeId) -> Certificate | None:
        return self._network.transports[node].certificate if node in self.links else None

    def connected(self) -> tuple[NodeId, ...]:
        return tuple(self.links)

    async def dial(self, node: NodeId | None, addresses: Sequence[str], timeout_s: float) -> NodeId:
        """Connect, or keep the connection. Raises Unreachable (after ``timeout_s``, if silent), NotMember."""
        target = self._network.find(node, addresses)
        if target is not None and target in self.links:
            return target
        with trio.move_on_after(timeout_s):
            await trio.sleep(self._network.latency_s)
            if target is None or not self.alive or not self._network.transports[target].alive:
                raise Unreachable("connection refused")
            await self._network.until_flowing(self.node, target)
            self._network.connect(self.node, target)
            return target
        raise Unreachable("no answer in time")

    async def open_stream(self, node: NodeId, protocol: str, timeout_s: float) -> FakeStream:
        """A new stream, once the other side has answered. Raises Unreachable."""
        link = self.links.get(node)
        if link is None:
            raise Unreachable("not connected")
        with trio.move_on_after(timeout_s):
            await trio.sleep(self._network.latency_s)
            await self._network.until_flowing(self.node, node)
            if self.links.get(node) is not link:
                raise Unreachable("the connection is gone")
            return self._network.open_stream(link, self.node, protocol)
        raise Unreachable("no answer in time")

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        """Run ``handler`` for each inbound stream of ``protocol``."""
        self.handlers[protocol] = handler

    async def drop(self, node: NodeId) -> None:
        """Abort the connection to ``node``."""
        self._network.disconnect(self.node, node)
        await trio.lowlevel.cancel_shielded_checkpoint()

    def events(self) -> AsyncIterator[PeerUp | PeerDown]:
        """Peers coming and going from now on."""
        self._news, news = trio.open_memory_channel[PeerUp | PeerDown](EVENTS_WAITING)
        return news

    def tell(self, event: PeerUp | PeerDown) -> None:
        """Used by the network: report a peer."""
        if self._news is not None and self.alive:
            self._news.send_nowait(event)


class FakeNetwork:
    """Connects fake transports. Use as ``async with FakeNetwork() as network``: inbound handlers run inside."""

    def __init__(self, latency_s: float = 0.001) -> None:
        self.latency_s = latency_s
        self.transports: dict[NodeId, FakeTransport] = {}
        self.ads: dict[NodeId, tuple[float, bytes]] = {}
        self._frozen: set[NodeId] = set()
        self._cut: set[frozenset[NodeId]] = set()
        self._changed = trio.Event()
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> FakeNetwork:
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
        await self._manager.__aexit__(kind, error, trace)

    def transport(self, certificate: Certificate) -> FakeTransport:
        """Join a member; a node that was killed comes back this way, with none of its connections."""
        number = len(self.transports)
        old = self.transports.get(certificate.node)
        address = old.addresses()[0] if old else f"/ip4/10.0.{number // 250}.{number % 250 + 1}/tcp/4001"
        self._frozen.discard(certificate.node)
        self.transports[certificate.node] = made = FakeTransport(self, certificate, address)
        return made

    def directory(self, node: NodeId) -> FakeDirectory:
        """The directory as ``node`` sees it."""
        return FakeDirectory(self, node)

    # -- faults

    def kill(self, node: NodeId) -> None:
        """Break every connection of the node, cancel its inbound handlers, refuse new connections."""
        transport = self.transports[node]
        for peer in transport.connected():
            self.disconnect(node, peer)
        transport.alive = False
        for scope in tuple(transport.scopes):
            scope.cancel()
        self.notify()

    def freeze(self, node: NodeId) -> None:
        """Nothing leaves or reaches the node any more; its connections stay."""
        self._frozen.add(node)

    def thaw(self, node: NodeId) -> None:
        """Everything that was held back arrives."""
        self._frozen.discard(node)
        self.notify()

    def cut(self, *nodes: NodeId) -> None:
        """Cut ``nodes`` off from all others, silently; among themselves they still talk."""
        inside = set(nodes)
        outside = set(self.transports) - inside
        self._cut |= {frozenset((a, b)) for a in inside for b in outside}

    def heal(self) -> None:
        """Undo every `cut`."""
        self._cut.clear()
        self.notify()

    # -- used by transports and streams

    def flowing(self, a: NodeId, b: NodeId) -> bool:
        """Whether anything moves between the two."""
        return not ({a, b} & self._frozen) and frozenset((a, b)) not in self._cut

    def notify(self) -> None:
        """Something changed: everyone who waits looks again."""
        self._changed.set()
        self._changed = trio.Event()

    async def until_flowing(self, a: NodeId, b: NodeId, or_else: Callable[[], bool] = bool) -> None:
        """Wait until something moves between the two, or until ``or_else()`` is true."""
        while not self.flowing(a, b) and not or_else():
            await self._changed.wait()

    def find(self, node: NodeId | None, addresses: Sequence[str]) -> NodeId | None:
        """Who listens at one of ``addresses``, if it is ``node`` or nobody in particular is wanted."""
        plain = {a.split("/p2p/")[0] for a in addresses}
        named = {a.split("/p2p/")[1] for a in addresses if "/p2p/" in a}
        for there, transport in self.transports.items():
            if transport.addresses()[0] in plain and (there == node or (node is None and named <= {there})):
                return there
        return node if node in self.transports and node in self.transports[node].links else None

    def connect(self, a: NodeId, b: NodeId) -> None:
        """Make the connection, unless there is one. Raises NotMember for another organisation's node."""
        ours, theirs = self.transports[a], self.transports[b]
        if ours.certificate.org != theirs.certificate.org:
            raise NotMember("the certificate is of another organisation")
        if b not in ours.links:
            ours.links[b] = theirs.links[a] = _Link((a, b))
            ours.tell(PeerUp(b, theirs.certificate, outbound=True))
            theirs.tell(PeerUp(a, ours.certificate, outbound=False))

    def disconnect(self, a: NodeId, b: NodeId) -> None:
        """Break the connection and its streams; both ends are told."""
        link = self.transports[a].links.pop(b, None)
        if link is None:
            return
        self.transports[b].links.pop(a, None)
        for stream in link.streams:
            stream.break_now()
        self.transports[a].tell(PeerDown(b))
        self.transports[b].tell(PeerDown(a))

    def open_stream(self, link: _Link, opener: NodeId, protocol: str) -> FakeStream:
        """A stream over ``link``; the other side's handler starts. Raises Unreachable when it has none."""
        other = link.other(opener)
        handler = self.transports[other].handlers.get(protocol)
        if handler is None or self._nursery is None:
            raise Unreachable(f"the peer does not speak {protocol}")
        a_out, b_in = trio.open_memory_channel[_Frame](FRAMES_IN_FLIGHT)
        b_out, a_in = trio.open_memory_channel[_Frame](FRAMES_IN_FLIGHT)
        ours = FakeStream(self, opener, other, a_out, a_in)
        theirs = FakeStream(self, other, opener, b_out, b_in)
        link.streams += [ours, theirs]
        self._nursery.start_soon(self._handle, self.transports[other], handler, theirs)
        return ours

    async def _handle(self, transport: FakeTransport, handler: StreamHandler, stream: FakeStream) -> None:
        """Run a handler; an error of ours ends its stream, any other fails the test that uses the network."""
        scope = trio.CancelScope()
        transport.scopes.add(scope)
        try:
            with scope, suppress(MeshError):
                await handler(stream)
        finally:
            transport.scopes.discard(scope)
            stream.break_now()


class FakeDirectory:
    """The DHT as one shared shelf: what a connected member published is found by every other until it expires."""

    def __init__(self, network: FakeNetwork, node: NodeId) -> None:
        self._network = network
        self._node = node

    def _reachable(self) -> bool:
        transport = self._network.transports[self._node]
        return any(self._network.flowing(self._node, peer) for peer in transport.connected())

    async def publish(self, ad: bytes) -> None:
        """Shelve the ad; raises Unreachable when no neighbour can be reached."""
        await trio.lowlevel.checkpoint()
        if not self._reachable():
            raise Unreachable("nobody took the ad")
        self._network.ads[self._node] = (trio.current_time(), ad)

    async def lookup(self, node: NodeId) -> bytes | None:
        """The ad last published by ``node``, for as long as an ad lives."""
        await trio.lowlevel.checkpoint()
        published_s, ad = self._network.ads.get(node, (float("-inf"), b""))
        fresh = trio.current_time() < published_s + limits.AD_TTL_S
        return ad if fresh and self._reachable() else None

    def known(self) -> tuple[NodeId, ...]:
        """Members that are up, seen from any node that has a neighbour."""
        if not self._reachable():
            return ()
        return tuple(n for n, t in self._network.transports.items() if t.alive and n != self._node)

    def addresses_of(self, node: NodeId) -> tuple[str, ...]:
        transport = self._network.transports.get(node)
        return () if transport is None else transport.addresses()

    async def refresh(self) -> None:
        await trio.lowlevel.checkpoint()
