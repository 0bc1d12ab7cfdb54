"""Who may be where: the library's peer store with our rules on addresses.

The library forgets a peer's addresses 120 s after connecting (two hours after identify) even while it is connected,
and keeps whatever anybody claims. Here addresses live until replaced, bounded per peer and in all, the least recently
touched peer going first; only plain TCP addresses are kept. It may go when the store takes addresses without a TTL
and with bounds (``test_addresses_do_not_expire``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore, PeerStoreError
from multiaddr import Multiaddr

from meshd.net.addresses import parse_all

MAX_PEERS = 4096
MAX_ADDRESSES = 16


class AddressBook(PeerStore):
    """Keys and records as the library keeps them; addresses as said above."""

    def __init__(self) -> None:
        super().__init__(max_records=MAX_PEERS, max_peers=MAX_PEERS)
        self._addresses: OrderedDict[ID, tuple[str, ...]] = OrderedDict()

    def endpoints(self, peer_id: ID) -> tuple[str, ...]:
        """Multiaddrs without the peer id, newest first; empty when unknown."""
        return self._addresses.get(peer_id, ())

    def learn(self, peer_id: ID, addresses: Sequence[str]) -> None:
        """Put ``addresses`` in front of what is known of the peer."""
        known = [e.multiaddr() for e in parse_all([*addresses, *self.endpoints(peer_id)])]
        if not known:
            return
        self._addresses[peer_id] = tuple(dict.fromkeys(known))[:MAX_ADDRESSES]
        self._addresses.move_to_end(peer_id)
        while len(self._addresses) > MAX_PEERS:
            forgotten, _ = self._addresses.popitem(last=False)
            self.peer_data_map.pop(forgotten, None)
            self.peer_record_map.pop(forgotten, None)

    def add_addrs(self, peer_id: ID, addrs: Sequence[Multiaddr], ttl: int = 0) -> None:
        """The library's way in."""
        del ttl
        self.learn(peer_id, [str(a) for a in addrs[:MAX_ADDRESSES]])

    def addrs(self, peer_id: ID) -> list[Multiaddr]:
        """The library's way out. Raises PeerStoreError when nothing is known."""
        if not (known := self.endpoints(peer_id)):
            raise PeerStoreError("no address known")
        return [Multiaddr(a) for a in known]

    def clear_addrs(self, peer_id: ID) -> None:
        """Forget a peer's addresses."""
        self._addresses.pop(peer_id, None)

    def peer_ids(self) -> list[ID]:
        """Peers with addresses."""
        return list(self._addresses)

    def peers_with_addrs(self) -> list[ID]:
        """The same."""
        return list(self._addresses)
