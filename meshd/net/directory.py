"""The directory port: ads in the DHT under ``/meshd/<peer id>``. In the background only, never on a request's path.

From the library: routing table, messages, and the serving side. Ours: which values count, and the walks. Deviations:
- walks stop at the k closest (the library asks every node it can reach) and every step is impatient;
- an expired or forged ad is neither stored, served nor believed: the judge sees it each time (the library serves
  what it has for 24 h and reads its own copy first);
- the newest ad wins and the last one on a tie: the library refuses an identical put when the first wins;
- provider records are not kept: they outlive their node by two days and cannot be withdrawn;
- none of the library's background loops runs: the node refreshes and publishes when it sees fit.
"""

from __future__ import annotations

import logging
import secrets

import trio
from libp2p.abc import INetStream
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.routing_table import RoutingTable
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.kad_dht.value_store import ValueStore
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator, Validator

from meshd.core import limits
from meshd.core.errors import BadInput, MeshError, Unreachable
from meshd.core.ids import NodeId, parse_node_id
from meshd.net.config import AdJudge, NetConfig
from meshd.net.host import MeshHost
from meshd.net.swarm import MeshSwarm
from meshd.wire import protocols

log = logging.getLogger("meshd.net")

REPLICAS = 8
"""How many nodes keep an ad: with a quarter of them dead, two in 100,000 ads are lost until the next put."""

ROUNDS = 4
"""Steps of a walk. Each asks `REPLICAS` nodes, so a walk costs at most 32 messages however large the mesh."""

IDLE_CONNECTIONS = 48
"""Connections without a stream that walks may leave behind."""


def key_of(node: NodeId) -> str:
    """The key under which ``node`` publishes."""
    return f"/{protocols.AD_NAMESPACE}/{node}"


class AdValidator(Validator):
    """What the library asks about values: the judge answers."""

    def __init__(self, judge: AdJudge) -> None:
        self._judge = judge

    def version(self, key: str, value: bytes) -> tuple[int, int]:
        """The version of the ad. Raises MeshError when it does not count under ``key``."""
        prefix, _, name = key.rpartition("/")
        if prefix != f"/{protocols.AD_NAMESPACE}" or len(value) > limits.MAX_AD_BYTES:
            raise BadInput("not an ad of this directory")
        return self._judge.judge(parse_node_id(name), value)

    def validate(self, key: str, value: bytes) -> None:
        """Raise ValueError, the library's word for no."""
        try:
            self.version(key, value)
        except MeshError as error:
            raise ValueError(str(error)) from error

    def select(self, key: str, values: list[bytes]) -> int:
        """The index of the newest ad that counts, the last one on a tie."""
        best, best_version = 0, (-1, -1)
        for index, value in enumerate(values):
            try:
                version = self.version(key, value)
            except MeshError:
                continue
            if version >= best_version:
                best, best_version = index, version
        return best


class AdStore(ValueStore):
    """The values we keep for others: only as long as the judge lets them count."""

    validator: AdValidator

    def get(self, key: bytes) -> Record | None:
        """The record under ``key`` unless its time is over."""
        record = super().get(key)
        if record is None:
            return None
        try:
            self.validator.validate(key.decode(), record.value)
        except ValueError:
            self.remove(key)
            return None
        return record


class NoProviders(ProviderStore):
    """Keeps no provider records, whoever announces them."""

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Ignore it."""


class MeshDht(KadDHT):
    """The serving side: impatient with whoever asks, and acquainted with them afterwards."""

    def __init__(self, host: MeshHost, validator: AdValidator, patience_s: float) -> None:
        namespaces = NamespacedValidator({protocols.AD_NAMESPACE: validator}, strict_validation=True)
        super().__init__(
            host,
            DHTMode.SERVER,
            validator=namespaces,
            validator_changed=True,
            strict_validation=True,
            max_peers_per_subnet=0,  # a company's nodes share their subnets
        )
        self.ads = AdStore(host=host, local_peer_id=self.local_peer_id)
        self.ads.validator = validator
        self.value_store = self.ads
        self.provider_store = NoProviders(host=host, peer_routing=self.peer_routing)
        self._patience_s = patience_s

    async def handle_stream(self, stream: INetStream) -> None:
        """Serve one stream. A frozen or idle peer holds one of the few serving slots only briefly."""
        stream.muxed_stream.patience_s = self._patience_s  # type: ignore[attr-defined]
        await super().handle_stream(stream)
        await self.add_peer(stream.muxed_conn.peer_id, skip_server_mode_check=True)


class DhtDirectory:
    """A `Directory` of the ports over `MeshDht`."""

    def __init__(self, host: MeshHost, swarm: MeshSwarm, judge: AdJudge, config: NetConfig) -> None:
        self._swarm = swarm
        self._validator = AdValidator(judge)
        self._dht = MeshDht(host, self._validator, config.directory_timeout_s)
        self._store = self._dht.ads
        self._table: RoutingTable = self._dht.routing_table
        self._me = swarm.get_peer_id()
        self._step_s = 2 * config.directory_timeout_s

    # The port

    async def publish(self, ad: bytes) -> None:
        """Put this node's signed ad under its own key. Raises Unreachable when nobody took it, BadInput when the
        judge would not let it count."""
        key = key_of(NodeId(self._me.to_base58()))
        self._validator.version(key, ad)
        self._store.put(key.encode(), ad)
        keepers = self._nearest(key.encode())
        taken: list[ID] = []
        async with trio.open_nursery() as nursery:
            for peer in keepers:
                nursery.start_soon(self._put, peer, key.encode(), ad, taken)
        if not taken:
            raise Unreachable(f"none of {len(keepers)} nodes took our ad")

    async def lookup(self, node: NodeId) -> bytes | None:
        """The newest ad of ``node`` that counts, asked of the nodes that should keep it; None when there is none."""
        key = key_of(node)
        own = self._store.get(key.encode())
        found: list[bytes] = [own.value] if own is not None else []
        await self._walk(key.encode(), found)
        counting = [value for value in found if self._counts(key, value)]
        return counting[self._validator.select(key, counting)] if counting else None

    def known(self) -> tuple[NodeId, ...]:
        """Members in this node's routing table."""
        return tuple(node for peer in self._table.get_peer_ids() if (node := _node_id(peer)))

    def addresses_of(self, node: NodeId) -> tuple[str, ...]:
        """Addresses of ``node`` as its own records and other nodes have told, newest first."""
        return self._swarm.peerstore.endpoints(ID.from_base58(node))  # type: ignore[attr-defined, no-any-return]

    async def refresh(self) -> None:
        """Walk towards ourselves and towards a random place, so that ``known`` learns of nodes met by others."""
        await self._walk(self._me.to_bytes(), None)
        await self._walk(secrets.token_bytes(32), None)
        await self._swarm.prune_idle(IDLE_CONNECTIONS)

    # Walks

    async def _walk(self, key: bytes, found: list[bytes] | None) -> None:
        """Ask ever closer nodes about ``key``: for values when ``found`` is a list, else for nodes only."""
        asked: set[ID] = set()
        candidates = self._nearest(key)
        for _ in range(ROUNDS):
            step = [peer for peer in candidates[:REPLICAS] if peer not in asked]
            if not step:
                return
            asked.update(step)
            nearer: list[ID] = []
            async with trio.open_nursery() as nursery:
                for peer in step:
                    nursery.start_soon(self._ask, peer, key, found, nearer)
            met = dict.fromkeys(p for p in [*candidates, *nearer] if p != self._me)
            candidates = sort_peer_ids_by_distance(key, list(met))

    async def _ask(self, peer: ID, key: bytes, found: list[bytes] | None, nearer: list[ID]) -> None:
        with trio.move_on_after(self._step_s):
            try:
                if found is None:
                    nearer += await self._dht.peer_routing._query_peer_for_closest(peer, key)
                else:
                    value, more = await self._store._get_from_peer(peer, key, return_closer_peers=True)  # type: ignore[misc]
                    nearer += more  # type: ignore[arg-type]
                    found += [value] if isinstance(value, bytes) else []
            except Exception as error:  # noqa: BLE001 - the door: a peer's garbage raises anything in the library
                log.debug("directory question to %s failed: %r", peer, error)

    async def _put(self, peer: ID, key: bytes, ad: bytes, taken: list[ID]) -> None:
        with trio.move_on_after(self._step_s):
            if await self._store._store_at_peer(peer, key, ad):
                taken.append(peer)
                return
        self._table.remove_peer(peer)

    def _nearest(self, key: bytes) -> list[ID]:
        """The nodes to begin with: the closest we know, and whoever is connected while we know few."""
        near = self._table.find_local_closest_peers(key, REPLICAS)
        if len(near) < REPLICAS:
            near = list(dict.fromkeys([*near, *self._swarm.connections]))[:REPLICAS]
        return near

    def _counts(self, key: str, value: bytes) -> bool:
        try:
            self._validator.version(key, value)
        except MeshError:
            return False
        return True


def _node_id(peer: ID) -> NodeId | None:
    """The peer as a node id; None for what is none, for other nodes tell us of peers as they like."""
    try:
        return parse_node_id(peer.to_base58())
    except BadInput:
        return None
