"""Composition of the network layer: one call opens it, leaving the block ends it."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.tools.anyio_service import background_trio_service

from meshd.core.errors import BadInput, PortInUse
from meshd.net.addresses import Endpoint, expand, parse
from meshd.net.book import AddressBook
from meshd.net.config import AdJudge, Gate, NetConfig
from meshd.net.directory import DhtDirectory
from meshd.net.host import MeshHost
from meshd.net.noise import MemberNoise
from meshd.net.swarm import MeshSwarm, Upgrader
from meshd.net.transport import Libp2pTransport

# The library logs warnings of its own dealings with strangers; without a handler they would go to stderr.
logging.getLogger("libp2p").addHandler(logging.NullHandler())


INTERFACES_FRESH_S = 5.0


class MeshNet:
    """The running network: its ``transport`` and its ``directory``."""

    def __init__(self, transport: Libp2pTransport, directory: DhtDirectory) -> None:
        self.transport = transport
        self.directory = directory


@asynccontextmanager
async def open_mesh_net(config: NetConfig, gate: Gate, judge: AdJudge) -> AsyncIterator[MeshNet]:
    """Listen and serve until the block is left. Raises PortInUse, BadInput (an address that cannot be listened on).

    Handlers should be installed with ``transport.serve`` before the first await inside the block.
    """
    async with _listening([parse(a) for a in config.listen]) as listeners:
        swarm, net = _build(listeners, config, gate, judge)
        async with background_trio_service(swarm), trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, swarm.accept, listeners)
            nursery.start_soon(swarm.keep_members, gate)
            try:
                yield net
            finally:
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    await swarm.close()


class OwnAddresses:
    """Where this node listens, wildcards expanded: asked with every message of the directory, so remembered a
    little while, and asked again for machines that move."""

    def __init__(self, bound: list[tuple[str, int]]) -> None:
        self._bound = bound
        self._known: tuple[str, ...] = ()
        self._fresh_until = 0.0

    def __call__(self) -> tuple[str, ...]:
        """Multiaddrs without the peer id."""
        if time.monotonic() >= self._fresh_until:
            found = (Endpoint(host, port).multiaddr() for wildcard, port in self._bound for host in expand(wildcard))
            self._known = tuple(dict.fromkeys(found))
            self._fresh_until = time.monotonic() + INTERFACES_FRESH_S
        return self._known


def _build(
    listeners: list[trio.SocketListener], config: NetConfig, gate: Gate, judge: AdJudge
) -> tuple[MeshSwarm, MeshNet]:
    keys = create_new_key_pair(config.seed)
    me = ID.from_pubkey(keys.public_key)
    book = AddressBook()
    book.add_key_pair(me, keys)
    addresses = OwnAddresses([listener.socket.getsockname()[:2] for listener in listeners])
    noise = MemberNoise(keys, gate, config.handshake_timeout_s)
    swarm = MeshSwarm(me, book, Upgrader(noise, config.write_deadline_s), config)
    host = MeshHost(swarm, addresses, config.directory_timeout_s)
    return swarm, MeshNet(Libp2pTransport(host, swarm, addresses), DhtDirectory(host, swarm, judge, config))


@asynccontextmanager
async def _listening(endpoints: list[Endpoint]) -> AsyncIterator[list[trio.SocketListener]]:
    """Our own listeners: the library's share a taken port silently (SO_REUSEPORT) instead of failing."""
    listeners: list[trio.SocketListener] = []
    try:
        for endpoint in endpoints:
            listeners += await _listen(endpoint)
        yield listeners
    finally:
        for listener in listeners:
            listener.socket.close()


async def _listen(endpoint: Endpoint) -> list[trio.SocketListener]:
    try:
        return list(await trio.open_tcp_listeners(endpoint.port, host=endpoint.host))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(f"port {endpoint.port} is taken", hint="choose another one to listen on") from error
        raise BadInput(f"cannot listen on {endpoint.host}: {error.strerror}", param="listen") from error
