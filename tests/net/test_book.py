"""The address book, beside the library's store that it stands in for."""

from __future__ import annotations

import time

import pytest
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore, PeerStoreError
from multiaddr import Multiaddr

from meshd.net import book
from meshd.net.book import AddressBook
from tests.net.members import id_of

PEER = ID.from_base58(id_of(1))


def test_addresses_do_not_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's store forgets them; when it no longer does, ours may go."""
    ours, theirs = AddressBook(), PeerStore()
    for store in (ours, theirs):
        store.add_addrs(PEER, [Multiaddr("/ip4/192.0.2.1/tcp/1")], 120)
    later = time.time() + 86_400
    monkeypatch.setattr(time, "time", lambda: later)
    assert ours.endpoints(PEER) == ("/ip4/192.0.2.1/tcp/1",)
    with pytest.raises(PeerStoreError):
        theirs.addrs(PEER)


def test_the_newest_address_comes_first_and_old_ones_fall_out() -> None:
    ours = AddressBook()
    for port in range(1, 40):
        ours.learn(PEER, [f"/ip4/192.0.2.1/tcp/{port}"])
    known = ours.endpoints(PEER)
    assert len(known) == book.MAX_ADDRESSES and known[0] == "/ip4/192.0.2.1/tcp/39"


def test_what_is_no_tcp_address_is_not_kept() -> None:
    ours = AddressBook()
    ours.learn(
        PEER, ["/ip4/192.0.2.1/udp/1/quic-v1", "/ip4/999.0.0.1/tcp/1", "/p2p-circuit", "/ip4/192.0.2.1/tcp/70000"]
    )
    assert ours.endpoints(PEER) == () and ours.peer_ids() == []


def test_peers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book, "MAX_PEERS", 3)
    ours = AddressBook()
    peers = [ID.from_base58(id_of(n)) for n in range(5)]
    for peer in peers:
        ours.learn(peer, ["/ip4/192.0.2.1/tcp/1"])
    assert ours.peer_ids() == peers[2:]
