"""The directory: ads found, renewed, refused; members met through others."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

import msgpack
import nacl.signing
import pytest

from meshd.core import limits
from meshd.core.errors import MeshError, Unreachable
from meshd.core.ids import NodeId
from meshd.net import directory
from meshd.net.config import AdJudge
from meshd.net.mesh_net import MeshNet
from tests.net.members import ECHO, Clock, SignedAds, id_of, make_ad, member, seed_of


async def meet(net: MeshNet, bootstrap: MeshNet) -> None:
    await net.transport.dial(bootstrap.transport.node, bootstrap.transport.addresses(), 5)
    await net.directory.refresh()


async def mesh(stack: AsyncExitStack, size: int, judge: AdJudge | None = None) -> list[MeshNet]:
    """``size`` members, each of which dialled only the first."""
    nets = [await stack.enter_async_context(member(n, judge=judge)) for n in range(1, size + 1)]
    for net in nets[1:]:
        await meet(net, nets[0])
    for net in nets:
        await net.directory.refresh()
    return nets


async def offer(net: MeshNet, holder: NodeId, key: str, value: bytes) -> bool:
    """Put ``value`` at ``holder`` past our own checks; whether it was taken."""
    store = net.directory._store
    peer = next(p for p in net.directory._table.get_peer_ids() if p.to_base58() == holder)
    return bool(await store._store_at_peer(peer, key.encode(), value))


async def test_a_reader_sees_every_update() -> None:
    """The library answers from the reader's own copy for a day, and refuses an identical put."""
    async with AsyncExitStack() as stack:
        nets = await mesh(stack, 5)
        owner, reader = nets[1], nets[4]
        for seq in (1, 2, 2, 3):
            await owner.directory.publish(make_ad(seed_of(2), seq, text=str(seq)))
            for _ in range(2):
                found = await reader.directory.lookup(id_of(2))
                assert found is not None and found.endswith(str(seq).encode())
        assert await reader.directory.lookup(id_of(99)) is None


async def test_an_identical_put_is_taken_and_an_older_one_is_not() -> None:
    async with AsyncExitStack() as stack:
        nets = await mesh(stack, 3)
        ad, key = make_ad(seed_of(2), 5), directory.key_of(id_of(2))
        holder = nets[2].transport.node
        assert await offer(nets[1], holder, key, ad)
        assert await offer(nets[1], holder, key, ad)
        assert not await offer(nets[1], holder, key, make_ad(seed_of(2), 4))
        assert await offer(nets[1], holder, key, make_ad(seed_of(2), 6))


async def test_what_does_not_count_is_not_taken() -> None:
    async with AsyncExitStack() as stack:
        nets = await mesh(stack, 3)
        holder = nets[2].transport.node
        forged = bytes(nacl.signing.SigningKey(seed_of(9)).sign(msgpack.packb([1, 9, time.time() + 60, ""])))
        refused = {
            directory.key_of(id_of(2)): forged,
            directory.key_of(id_of(3)): make_ad(seed_of(2), 1),
            f"/pk/{id_of(2)}": b"key",
            "/ipns/x": b"value",
            "/other/x": b"value",
            "plain": b"value",
            f"/meshd/x/{id_of(2)}": make_ad(seed_of(2), 1),
        }
        for key, value in refused.items():
            assert not await offer(nets[1], holder, key, value), key
        own = directory.key_of(id_of(2))
        assert not await offer(nets[1], holder, own, make_ad(seed_of(2), 1, ttl_s=-1))
        assert not await offer(nets[1], holder, own, make_ad(seed_of(2), 1, text="x" * limits.MAX_AD_BYTES))
        assert nets[2].directory._store.size() == 0


async def test_expired_ads_are_gone_everywhere() -> None:
    clock = Clock()
    async with AsyncExitStack() as stack:
        nets = await mesh(stack, 4, SignedAds(clock))
        await nets[1].directory.publish(make_ad(seed_of(2), 1, ttl_s=600))
        assert await nets[3].directory.lookup(id_of(2)) is not None
        clock.ahead_s = 601
        for net in nets:
            assert await net.directory.lookup(id_of(2)) is None


async def test_we_do_not_publish_what_does_not_count_nor_into_the_void() -> None:
    async with member(1) as alone:
        with pytest.raises(Unreachable):
            await alone.directory.publish(make_ad(seed_of(1), 1))
        with pytest.raises(MeshError, match="forged"):
            await alone.directory.publish(make_ad(seed_of(2), 1))
        assert await alone.directory.lookup(id_of(1)) is not None
        await alone.directory.refresh()
        assert alone.directory.known() == ()


async def test_members_met_only_through_others_can_be_dialled() -> None:
    async with AsyncExitStack() as stack:
        nets = await mesh(stack, 6)
        everyone = {net.transport.node for net in nets}
        for net in nets:
            assert {*net.directory.known(), net.transport.node} == everyone
        last, stranger = nets[5], nets[3]
        addresses = last.directory.addresses_of(stranger.transport.node)
        assert set(stranger.transport.addresses()) <= set(addresses)
        await last.transport.drop(stranger.transport.node)
        assert await last.transport.dial(stranger.transport.node, addresses, 5) == stranger.transport.node
        stream = await last.transport.open_stream(stranger.transport.node, ECHO, 5)
        await stream.send(1, b"")
        assert await stream.receive(10) == (1, b"")


async def test_any_member_serves_as_bootstrap_once_the_first_is_gone() -> None:
    async with AsyncExitStack() as stack:
        others = [await stack.enter_async_context(member(n)) for n in range(1, 5)]
        async with member(20) as first:
            for net in others:
                await meet(net, first)
            for net in others:
                await net.directory.refresh()
        newcomer = await stack.enter_async_context(member(9))
        await meet(newcomer, others[2])
        await others[0].directory.publish(make_ad(seed_of(1), 1))
        assert await newcomer.directory.lookup(id_of(1)) is not None
        assert {id_of(n) for n in range(1, 5)} <= set(newcomer.directory.known())


async def test_nobody_is_dialled_unasked() -> None:
    """The library dials whomever it has an address of."""
    async with member(1) as a, member(2) as b, member(3) as c:
        await a.transport.dial(None, b.transport.addresses(), 5)
        a.transport._swarm.peerstore.learn(c.transport._swarm.get_peer_id(), c.transport.addresses())
        await a.transport._swarm.auto_connector.maybe_connect()
        assert a.transport.connected() == (b.transport.node,)


async def test_provider_records_are_not_kept() -> None:
    async with AsyncExitStack() as stack:
        nets = await mesh(stack, 3)
        await nets[1].directory._dht.provide("anything")
        assert all(net.directory._dht.provider_store.size() == 0 for net in nets)
        assert await nets[2].directory._dht.find_providers("anything") == []


async def test_idle_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncExitStack() as stack:
        nets = await mesh(stack, 6)
        monkeypatch.setattr(directory, "IDLE_CONNECTIONS", 2)
        net = nets[5]
        await net.transport.dial(nets[0].transport.node, nets[0].transport.addresses(), 5)
        await net.transport.open_stream(nets[0].transport.node, ECHO, 5)
        await net.directory.refresh()
        assert len(net.transport.connected()) <= 3
        assert nets[0].transport.node in net.transport.connected()
        assert len(net.directory.known()) == 5
