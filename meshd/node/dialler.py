"""Keeps neighbours: dials members that are known or remembered and not connected, and the bootstrap while there are
none. Remembered members are dialled though others are connected: two halves of a mesh that lost each other for longer
than an ad lives would never meet again otherwise.

Never on a request's path but for `reach`, which a submitter uses for a worker that is not a neighbour.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from meshd.core.errors import MeshError, NotMember, Unreachable
from meshd.core.ids import NodeId
from meshd.node.ports import Directory, Transport
from meshd.node.stores import PeerBook

log = logging.getLogger("meshd.node.dialler")

ROUND_INTERVAL_S = 1.0
MAX_DIALS = 8
"""Dials at once: a handshake is a few milliseconds of work, a dead address only waits."""

MAX_HINTS = 256
MAX_HINT_DIALS = 4
"""Of a round's dials, how many may follow from nothing but hints: as many dials at once are left for members."""

MAX_ADDRESSES = 8
"""Addresses of one node that one source may make us try."""

FIRST_RETRY_S = 1.0
MAX_RETRY_S = 30.0
MEMBER_RETRY_S = 300.0
"""An address whose owner is no member is left alone for longer: certificates do not change by the second."""


@dataclass(slots=True)
class _Retry:
    after_s: float
    wait_s: float


class Dialler:
    """Decides whom to dial and when; remembers failures with growing pauses."""

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        book: PeerBook,
        bootstrap: Sequence[str],
        known: Callable[[], Iterable[tuple[NodeId, tuple[str, ...]]]],
        unreachable: Callable[[NodeId], None],
        *,
        max_neighbours: int,
        timeout_s: float,
    ) -> None:
        self._transport = transport
        self._directory = directory
        self._book = book
        self._bootstrap = tuple(bootstrap)
        self._known = known
        self._unreachable = unreachable
        self._max_neighbours = max_neighbours
        self._timeout_s = timeout_s
        self._retries: dict[object, _Retry] = {}
        self._limit = trio.CapacityLimiter(MAX_DIALS)
        self._hints: dict[NodeId, tuple[str, ...]] = {}
        self._remembered: dict[NodeId, tuple[str, ...]] = {}
        self._wake = trio.Event()

    def hint(self, node: NodeId, addresses: Sequence[str]) -> None:
        """An unproven word that ``node`` listens there (mDNS): dialled soon, believed never. Kept for when the
        node is lost; the oldest word makes room."""
        if node == self._transport.node:
            return
        self._hints.pop(node, None)
        self._hints[node] = tuple(addresses[:MAX_ADDRESSES])
        if len(self._hints) > MAX_HINTS:
            del self._hints[next(iter(self._hints))]
        self._wake.set()

    def wake(self) -> None:
        """Something changed: look for somebody to dial now."""
        self._wake.set()

    async def reach(self, node: NodeId) -> None:
        """Connect to ``node`` now, by every address known. Raises Unreachable, NotMember."""
        if node == self._transport.node or self._transport.certificate_of(node) is not None:
            return
        addresses = dict(self._known()).get(node) or self._directory.addresses_of(node) or self._hints.get(node, ())
        if not addresses:
            raise Unreachable(f"no address is known for {node}")
        await self._transport.dial(node, addresses, self._timeout_s)

    async def run(self) -> None:
        """Dial in rounds until cancelled."""
        self._remembered = dict((await self._book.recall())[: self._max_neighbours])
        while True:
            async with trio.open_nursery() as nursery:
                for node, addresses in await self._round():
                    nursery.start_soon(self._dial, node, addresses)
            with trio.move_on_after(ROUND_INTERVAL_S):
                await self._wake.wait()
            self._wake = trio.Event()

    async def _round(self) -> list[tuple[NodeId | None, tuple[str, ...]]]:
        connected = set(self._transport.connected())
        await self._remember(connected)
        bootstrap = () if connected else self._bootstrap
        strangers: list[tuple[NodeId | None, tuple[str, ...]]] = [(None, (a,)) for a in bootstrap if self._due(a)]
        return self._members(connected)[: max(0, self._max_neighbours - len(connected))] + strangers

    def _members(self, connected: set[NodeId]) -> list[tuple[NodeId | None, tuple[str, ...]]]:
        """Who is not connected and due, at every address known: by its own word first, then where it was last
        reached. A hint adds an address and takes none away, and those known by nothing else come last and few at a
        time: anybody on the LAN can send hints, about any node, and must not keep members apart."""
        found: dict[NodeId | None, tuple[str, ...]] = {}
        members = (*self._known(), *self._remembered.items())
        sure = {node for node, _ in members}
        unsure = [node for node in self._hints if node not in sure and node not in connected and self._due(node)]
        hints = [(n, a) for n, a in self._hints.items() if n in sure or n in unsure[:MAX_HINT_DIALS]]
        for node, addresses in (*members, *hints):
            if node not in connected and node != self._transport.node and addresses and self._due(node):
                found[node] = (*found.get(node, ()), *addresses[:MAX_ADDRESSES])
        return [(node, tuple(dict.fromkeys(addresses))) for node, addresses in found.items()]

    async def _remember(self, connected: set[NodeId]) -> None:
        """Keep where those listen who dialled us: after a restart it is for us to find them."""
        for node, addresses in self._known():
            if node in connected and addresses and self._remembered.get(node) != addresses:
                if node not in self._remembered and not self._make_room(connected):
                    return
                self._remembered[node] = addresses
                await self._book.remember(node, addresses)

    def _make_room(self, connected: set[NodeId]) -> bool:
        """Forget the oldest that is not connected when the memory is full; whether there is room for another."""
        if len(self._remembered) >= self._max_neighbours:
            gone = next((n for n in self._remembered if n not in connected), None)
            if gone is None:
                return False
            del self._remembered[gone]
        return True

    def _due(self, key: object) -> bool:
        retry = self._retries.get(key)
        return retry is None or retry.after_s <= trio.current_time()

    async def _dial(self, node: NodeId | None, addresses: tuple[str, ...]) -> None:
        key: object = node if node is not None else addresses[0]
        async with self._limit:
            try:
                found = await self._transport.dial(node, addresses, self._timeout_s)
            except NotMember as e:
                log.warning("not a member of this organisation at %s: %s", addresses[0], e.message)
                self._failed(key, MEMBER_RETRY_S)
            except MeshError as e:
                log.debug("cannot reach %s: %s", node or addresses[0], e.message)
                self._failed(key, MAX_RETRY_S)
                if node is not None:
                    self._unreachable(node)
            else:
                self._retries.pop(key, None)
                await self._book.remember(found, addresses)

    def _failed(self, key: object, most_s: float) -> None:
        retry = self._retries.get(key)
        wait_s = most_s if most_s == MEMBER_RETRY_S else min(most_s, retry.wait_s * 2 if retry else FIRST_RETRY_S)
        self._retries[key] = _Retry(trio.current_time() + wait_s, wait_s)
        while len(self._retries) > 4096:
            del self._retries[next(iter(self._retries))]
