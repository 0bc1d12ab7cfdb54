"""Cancelling any operation at any moment leaves the connection usable.

In the library it desynchronises the encryption: the connection is dead and stays listed."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from meshd.core.errors import Truncated
from meshd.net.mesh_net import MeshNet
from meshd.net.mux import MAX_STREAMS
from tests.net.members import ECHO, member
from tests.net.peer_process import FLOOD, PeerProcess, peer_process

ROUNDS = 25
ALIVE_S = 20.0
"""A dead connection never answers; a live one may have megabytes of the cancelled operation before it."""


async def cancelled_bulk_send(net: MeshNet, peer: PeerProcess, dice: random.Random) -> None:
    stream = await net.transport.open_stream(peer.node, ECHO, 5)
    with trio.move_on_after(dice.random() * 0.01):
        await stream.send(1, bytes(4 << 20))
    await stream.abort()


async def cancelled_small_sends(net: MeshNet, peer: PeerProcess, dice: random.Random) -> None:
    stream = await net.transport.open_stream(peer.node, ECHO, 5)
    with trio.move_on_after(dice.random() * 0.004):
        for _ in range(400):
            await stream.send(1, bytes(200))
    await stream.abort()


async def cancelled_receive(net: MeshNet, peer: PeerProcess, dice: random.Random) -> None:
    stream = await net.transport.open_stream(peer.node, FLOOD, 5)
    with trio.move_on_after(dice.random() * 0.03):
        while True:
            await stream.receive(2000)
    await stream.abort()


async def cancelled_opening(net: MeshNet, peer: PeerProcess, dice: random.Random) -> None:
    for _ in range(14):
        with trio.move_on_after(dice.random() * 0.004):
            stream = await net.transport.open_stream(peer.node, ECHO, 5)
            await stream.abort()


OPERATIONS = [cancelled_bulk_send, cancelled_small_sends, cancelled_receive, cancelled_opening]


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_the_connection_survives(operation: Callable[..., Awaitable[None]]) -> None:
    dice = random.Random(7)
    async with member(1) as net, peer_process(2) as peer:
        await net.transport.dial(peer.node, (peer.address,), 5)
        for _ in range(ROUNDS):
            await operation(net, peer, dice)
            with trio.fail_after(ALIVE_S):
                stream = await net.transport.open_stream(peer.node, ECHO, ALIVE_S)
                await stream.send(1, b"ping")
                assert await stream.receive(100) == (1, b"ping")
                await stream.abort()
        (conn,) = net.transport._swarm.get_connections()
        assert conn.muxed_conn.slots.value == MAX_STREAMS


async def test_a_cancelled_receive_loses_nothing() -> None:
    dice = random.Random(7)
    async with member(1) as a, member(2) as b:
        node = await a.transport.dial(None, b.transport.addresses(), 5)
        stream = await a.transport.open_stream(node, ECHO, 5)
        received: list[bytes] = []
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:

                async def send() -> None:
                    for number in range(200):
                        await stream.send(1, number.to_bytes(2) * 3000)

                nursery.start_soon(send)
                while len(received) < 200:
                    with trio.move_on_after(dice.random() * 0.005):
                        while len(received) < 200:
                            received.append((await stream.receive(6000))[1])
        assert received == [number.to_bytes(2) * 3000 for number in range(200)]


async def test_a_cancelled_send_is_whole_or_nothing() -> None:
    dice = random.Random(7)
    async with member(1) as a, member(2) as b:
        node = await a.transport.dial(None, b.transport.addresses(), 5)
        stream = await a.transport.open_stream(node, ECHO, 5)

        async def send() -> None:
            for number in range(100):
                with trio.move_on_after(dice.choice([0, dice.random() * 0.003])):
                    await stream.send(number, bytes([number]) * dice.randrange(200_000))
            await stream.send(200, b"")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            kind = -1
            with trio.fail_after(30):
                while kind != 200:
                    kind, payload = await stream.receive(200_000)
                    assert set(payload) <= {kind}


async def test_cancelling_one_stream_leaves_its_neighbour_alone() -> None:
    async with member(1) as net, peer_process(2) as peer:
        await net.transport.dial(peer.node, (peer.address,), 5)
        neighbour = await net.transport.open_stream(peer.node, ECHO, 5)
        for _ in range(10):
            victim = await net.transport.open_stream(peer.node, FLOOD, 5)
            await victim.receive(2000)
            await victim.abort()
            with pytest.raises(Truncated):
                while True:
                    await victim.receive(2000)
        with trio.fail_after(ALIVE_S):
            await neighbour.send(1, b"fine")
            assert await neighbour.receive(100) == (1, b"fine")
