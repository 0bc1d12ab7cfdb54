"""The library's host: protocol negotiation on streams, and what its DHT needs. Listening is our own.

Deviations: no identify (members' certificates and signed records of the DHT say all we need; its background tasks
outlive the host) and no identify push; streams that the DHT opens are impatient, because the library waits 10 s for
every frozen peer, hard-coded in four modules (``test_frozen_peers_do_not_stall_the_directory``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import trio
from libp2p.abc import INetConn, INetStream
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.host.ping import ID as PING
from libp2p.host.ping import PingService
from multiaddr import Multiaddr

from meshd.net.swarm import MeshSwarm


class MeshHost(BasicHost):
    """The host. ``addresses`` answers what this node advertises."""

    def __init__(self, swarm: MeshSwarm, addresses: Callable[[], Sequence[str]], directory_timeout_s: float) -> None:
        super().__init__(
            swarm,
            default_protocols=OrderedDict({PING: self._ping}),
            disable_identify_address_discovery=True,
            addrs_factory=lambda _candidates: [Multiaddr(a) for a in addresses()],
        )
        self._directory_timeout_s = directory_timeout_s

    async def _ping(self, stream: INetStream) -> None:
        await PingService(self).handle_ping(stream)

    async def _on_notifee_connected(self, conn: INetConn) -> None:
        """No identify."""

    async def _push_identify_to_all_peers(self) -> None:
        """No identify push."""

    async def new_stream(self, peer_id: object, protocol_ids: Sequence[TProtocol]) -> INetStream:
        """A stream for the library's own protocols: no step on it waits longer than the directory's timeout."""
        with trio.move_on_after(self._directory_timeout_s):
            stream = await super().new_stream(peer_id, protocol_ids)  # type: ignore[arg-type]
            stream.muxed_stream.patience_s = self._directory_timeout_s  # type: ignore[attr-defined]
            return stream
        raise StreamFailure("the peer took too long")

    async def application_stream(self, peer_id: object, protocol: str) -> INetStream:
        """A stream of our own protocol; the caller bounds the wait."""
        return await super().new_stream(peer_id, [TProtocol(protocol)])  # type: ignore[arg-type]
