"""Who is there: one control stream per connected member, heartbeats and ads on it, the DHT behind it.

Feeds the membership machine and carries out its effects. The node with the smaller id opens the control stream of a
pair, so that there is exactly one. Any frame counts as a sign of life; each side sends at least a ping every
HEARTBEAT_INTERVAL_S.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from meshd.core import limits
from meshd.core.errors import AdExpired, MeshError, ProtocolViolation, Truncated
from meshd.core.ids import NodeId
from meshd.core.peers import PeerUp
from meshd.core.trust import Certificate
from meshd.machine import membership_events as on
from meshd.machine.membership import Membership, Peer
from meshd.machine.membership_events import Source
from meshd.node.ports import Directory, FrameStream, Transport
from meshd.node.timer import Timer
from meshd.policy.feasible import Facts
from meshd.policy.placement import PlacementView
from meshd.policy.suspicion import Liveness
from meshd.wire import frames
from meshd.wire.ads import AdJudge
from meshd.wire.protocols import CONTROL

log = logging.getLogger("meshd.node.neighbours")

OPEN_TIMEOUT_S = 2.0
FROZEN_AFTER_S = 8.0
"""A connected peer that says nothing for so long is cut off; until then its connection may recover by itself."""

MAX_OUTBOX_FRAMES = 64
"""News that may wait for one neighbour; a slower one misses some, the next ads make good for it."""

MAX_DIRECTORY_READS = 16
"""Ads read from the DHT in one round, so that its cost does not grow with the mesh."""


@dataclass(slots=True)
class Link:
    """One control stream."""

    stream: FrameStream
    send: trio.MemorySendChannel[frames.ControlMessage]
    outbox: trio.MemoryReceiveChannel[frames.ControlMessage]
    heard_at_s: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)

    def say(self, message: frames.ControlMessage) -> None:
        """Queue a message; dropped when the neighbour is too slow for news."""
        try:
            self.send.send_nowait(message)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("news for %s dropped", self.stream.peer)


@dataclass(frozen=True, slots=True)
class Rhythm:
    """How often things happen (s), and how many ads one gossip frame holds."""

    ad_interval_s: float
    gossip_interval_s: float
    gossip_ads: int
    publish_interval_s: float
    refresh_interval_s: float


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who wants to know. ``probe``: somebody should be dialled now. ``gone``: drop what belongs to a connection."""

    candidates_changed: Callable[[], None]
    suspected: Callable[[NodeId], None]
    connection_lost: Callable[[NodeId], None]
    probe: Callable[[], None]
    gone: Callable[[NodeId], Awaitable[None]]


def facts_of(certificate: Certificate) -> Facts:
    """What placement needs of a certificate."""
    return Facts(certificate.region, certificate.clearance)


class Neighbours:
    """Keeps the view of the mesh. Works inside `running_parts`."""

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        judge: AdJudge,
        view: PlacementView,
        own_ad: Callable[[], bytes],
        rhythm: Rhythm,
        wall: Callable[[], float],
        software: str,
        random: Callable[[int], bytes],
        max_peers: int,
    ) -> None:
        self._transport = transport
        self._directory = directory
        self._judge = judge
        self._view = view
        self._own_ad = own_ad
        self._rhythm = rhythm
        self._wall = wall
        self._software = software
        self._random = random
        self._machine = Membership(transport.node, seed=int.from_bytes(random(4), "big"), max_nodes=max_peers)
        self._timer = Timer(self._machine.next_deadline, lambda: self.feed(on.Tick(wall())))
        self._links: dict[NodeId, Link] = {}
        self._connections: dict[NodeId, object] = {}
        self._values: dict[NodeId, bytes] = {}
        self._certificates: dict[NodeId, Certificate] = {}
        self._listeners: Listeners | None = None
        self._nursery: trio.Nursery | None = None
        self._news = trio.Event()
        self._clock_warnings: dict[NodeId, str] = {}

    @asynccontextmanager
    async def running_parts(self, listeners: Listeners) -> AsyncIterator[None]:
        """Keep the view while in the context; says goodbye to the neighbours when it is left."""
        self._listeners = listeners
        self._transport.serve(CONTROL, self._serve)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for part in (self._timer.run, self._watch, self._tell_news, self._beat, self._gossip):
                nursery.start_soon(part)
            nursery.start_soon(self._publish)
            nursery.start_soon(self._walk)
            try:
                yield
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await self._say_goodbye()
                self._nursery = None
                nursery.cancel_scope.cancel()

    # -- what others ask

    def peers(self) -> tuple[Peer, ...]:
        """Every known peer."""
        return self._machine.peers()

    def certificate_of(self, node: NodeId) -> Certificate | None:
        """The newest verified certificate of ``node``."""
        return self._transport.certificate_of(node) or self._certificates.get(node)

    def liveness(self, node: NodeId) -> Liveness:
        """Whether ``node`` may get work."""
        return self._machine.liveness(node)

    def name_of(self, node: NodeId) -> str:
        """The name in the node's certificate, or its id."""
        certificate = self.certificate_of(node)
        return certificate.name if certificate is not None else node

    def addresses(self) -> tuple[tuple[NodeId, tuple[str, ...]], ...]:
        """Known peers and where their ads say they listen."""
        return tuple((p.node, p.ad.addresses) for p in self._machine.peers() if p.ad is not None)

    @property
    def clock_warning(self) -> str:
        """The last neighbour whose clock disagreed when it came, in words; empty once it agrees."""
        return next(iter(self._clock_warnings.values()), "")

    def announce(self) -> None:
        """Something about this node changed: tell the neighbours at once."""
        self._news.set()

    def dial_failed(self, node: NodeId) -> None:
        """The dialler could not reach ``node``."""
        self.feed(on.DialFailed(node, self._wall()))

    # -- the machine

    def feed(self, event: on.MembershipEvent) -> None:
        """Let the machine see ``event`` and carry out what follows."""
        for effect in self._machine.handle(event, trio.current_time()):
            self._carry_out(effect)
        self._timer.poke()

    def _carry_out(self, effect: on.MembershipEffect) -> None:
        listeners, nursery = self._listeners, self._nursery
        if listeners is None or nursery is None:
            return
        match effect:
            case on.Updated(node):
                self._update(node, listeners)
            case on.Changed(node, before, after, reason):
                log.info("%s: %s -> %s (%s)", self.name_of(node), before, after, reason)
                if after is not Liveness.ALIVE:
                    listeners.suspected(node)
            case on.Forget(node):
                self._values.pop(node, None)
                self._certificates.pop(node, None)
            case on.Drop(node):
                nursery.start_soon(self._transport.drop, node)
            case on.Probe():
                listeners.probe()

    def _update(self, node: NodeId, listeners: Listeners) -> None:
        candidate = self._machine.candidate(node)
        if candidate is None:
            self._view.remove(node)
            return
        self._view.put(candidate)
        listeners.candidates_changed()

    def hear(self, value: bytes, source: Source, node: NodeId | None = None) -> None:
        """Take a sealed ad in, from whomever; anything wrong with it is the teller's fault and changes nothing."""
        try:
            ad, certificate = self._judge.open(node, value)
        except AdExpired:
            return
        except MeshError as e:
            log.debug("an ad that does not count: %s", e.message)
            return
        if ad.node == self._transport.node:
            return
        self.feed(on.AdHeard(ad, facts_of(certificate), source, self._wall()))
        known = self._machine.peer(ad.node)
        if known is not None and known.ad is ad:  # else the machine did not take it: nobody would forget it again
            self._values[ad.node] = value
            self._certificates[ad.node] = certificate

    # -- connections

    async def _watch(self) -> None:
        """Follow members coming and going."""
        if self._nursery is None or self._listeners is None:
            raise RuntimeError("not running")
        async for event in self._transport.events():
            if isinstance(event, PeerUp):
                self._certificates[event.node] = event.certificate
                self._connections[event.node] = object()
                self.feed(on.PeerUp(event.node, facts_of(event.certificate)))
                if self._transport.node < event.node:
                    self._nursery.start_soon(self._open, event.node)
            else:
                self._connections.pop(event.node, None)
                self._unlink(event.node)
                self._listeners.connection_lost(event.node)
                self.feed(on.PeerDown(event.node, self._wall()))
                if self._machine.peer(event.node) is None:
                    self._certificates.pop(event.node, None)
                await self._listeners.gone(event.node)
                self._listeners.probe()

    def _unlink(self, node: NodeId) -> None:
        link = self._links.pop(node, None)
        if link is not None:
            link.scope.cancel()

    async def _cut(self, node: NodeId, connection: object) -> None:
        """Cut ``node`` off, unless that connection is gone already and another one has taken its place."""
        if self._connections.get(node) is connection:
            await self._transport.drop(node)

    async def _open(self, node: NodeId) -> None:
        connection = self._connections.get(node)
        try:
            stream = await self._transport.open_stream(node, CONTROL, OPEN_TIMEOUT_S)
        except MeshError as e:
            log.info("no control stream with %s: %s", self.name_of(node), e.message)
            await self._cut(node, connection)
            return
        await self._serve(stream)

    async def _serve(self, stream: FrameStream) -> None:
        """Run one control stream until it ends; its end costs the connection, which a live peer makes anew."""
        node, connection = stream.peer, self._connections.get(stream.peer)
        send, outbox = trio.open_memory_channel[frames.ControlMessage](MAX_OUTBOX_FRAMES)
        link = Link(stream, send, outbox, trio.current_time())
        self._unlink(node)
        self._links[node] = link
        link.say(frames.Hello(self._wall(), self._software, ads=(self._own_ad(), *self._sample())))
        try:
            with link.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._speak, link)
                    await self._hear(link)
                    nursery.cancel_scope.cancel()  # it said goodbye
        except* ProtocolViolation as broken:
            log.warning("%s broke the control protocol: %s", self.name_of(node), broken.exceptions[0])
        except* Truncated:
            log.debug("control stream of %s ended", node)
        finally:
            link.ended.set()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await stream.abort()
            if self._links.get(node) is link:
                del self._links[node]
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await self._cut(node, connection)

    async def _speak(self, link: Link) -> None:
        async for message in link.outbox:
            await link.stream.send(*frames.encode_control(message))

    async def _hear(self, link: Link) -> None:
        node = link.stream.peer
        while True:
            kind, payload = await link.stream.receive(limits.MAX_CONTROL_FRAME_BYTES)
            link.heard_at_s = trio.current_time()
            self.feed(on.HeartbeatAnswered(node))
            match frames.decode_control(kind, payload):
                case frames.Hello() as hello:
                    self._check_clock(node, hello.wall_s)
                    self._hear_ads(node, hello.ads)
                case frames.Ads() as news:
                    self._hear_ads(node, news.ads)
                case frames.Bye():
                    self.feed(on.PeerLeft(node, self._wall()))
                    return

    def _hear_ads(self, teller: NodeId, ads: tuple[bytes, ...]) -> None:
        for at, value in enumerate(ads):
            self.hear(value, Source.DIRECT if at == 0 else Source.GOSSIP)

    def _check_clock(self, node: NodeId, wall_s: float) -> None:
        off_s = wall_s - self._wall()
        if abs(off_s) > limits.CLOCK_SKEW_S:
            who = self.name_of(node)
            warning = (
                f"the clock of {who} is {abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} this machine's: "
                "ads and tasks between the two are refused until one is set right"
            )
            self._clock_warnings = {node: warning}
            log.warning(warning)
        else:
            self._clock_warnings.pop(node, None)

    async def _say_goodbye(self) -> None:
        async with trio.open_nursery() as nursery:
            for link in list(self._links.values()):
                nursery.start_soon(self._bye, link)

    async def _bye(self, link: Link) -> None:
        """Say goodbye, and let the neighbour hang up: what is cut off right after it was sent may never be read."""
        try:
            await link.stream.send(*frames.encode_control(frames.Bye("stopping")))
        except Truncated:
            log.debug("%s was gone before the goodbye", link.stream.peer)
            return
        await link.ended.wait()

    # -- rhythm

    async def _beat(self) -> None:
        """A sign of life to every neighbour; those that gave none for long are cut off."""
        nonce = 0
        while True:
            await trio.sleep(limits.HEARTBEAT_INTERVAL_S)
            nonce += 1
            now_s = trio.current_time()
            for node, link in list(self._links.items()):
                link.say(frames.Ping(nonce))
                if now_s - link.heard_at_s > FROZEN_AFTER_S:
                    log.info("%s has been silent for %.0f s: cut off", self.name_of(node), FROZEN_AFTER_S)
                    await self._transport.drop(node)

    async def _tell_news(self) -> None:
        """Our own ad to every neighbour: at once when something changed, else in its rhythm."""
        while True:
            with trio.move_on_after(self._rhythm.ad_interval_s):
                await self._news.wait()
            self._news = trio.Event()
            ads = frames.Ads((self._own_ad(),))
            for link in self._links.values():
                link.say(ads)
            await trio.sleep(limits.HEARTBEAT_INTERVAL_S / 5)

    async def _gossip(self) -> None:
        """Pass on what we heard of others, to one neighbour at a time: each in turn gets fresh news."""
        turn = 0
        while True:
            await trio.sleep(self._rhythm.gossip_interval_s)
            if len(self._links) > 1:
                turn += 1
                link = list(self._links.values())[turn % len(self._links)]
                link.say(frames.Ads((self._own_ad(), *self._sample())))

    def _sample(self) -> tuple[bytes, ...]:
        count = min(self._rhythm.gossip_ads, frames.MAX_ADS_PER_FRAME - 1)  # our own ad comes first
        ads = self._machine.gossip(count, int.from_bytes(self._random(4), "big"))
        return tuple(value for ad in ads if (value := self._values.get(ad.node)) is not None)

    async def _publish(self) -> None:
        """Keep our ad in the DHT."""
        while True:
            try:
                await self._directory.publish(self._own_ad())
            except MeshError as e:
                log.debug("the directory did not take our ad: %s", e.message)
            await trio.sleep(self._rhythm.publish_interval_s)

    async def _walk(self) -> None:
        """Learn from the DHT of members whom no neighbour has told us about."""
        while True:
            try:
                await self._directory.refresh()
                for node in self._unheard()[:MAX_DIRECTORY_READS]:
                    value = await self._directory.lookup(node)
                    if value is not None:
                        self.hear(value, Source.DIRECTORY, node)
            except MeshError as e:
                log.debug("the directory gave no answer: %s", e.message)
            listeners = self._listeners
            if listeners is not None:
                listeners.probe()
            await trio.sleep(self._rhythm.refresh_interval_s if self._links else 1.0)

    def _unheard(self) -> list[NodeId]:
        heard = {p.node for p in self._machine.peers() if p.ad is not None}
        return [n for n in self._directory.known() if n not in heard and n != self._transport.node]
