"""How much a peer can make us hold: a stranger next to nothing, a member a bounded amount per connection."""

from __future__ import annotations

import struct

import pytest
import trio
import trio.testing
import varint
from libp2p.peer.id import ID

from meshd.core import limits
from meshd.net.addresses import parse
from meshd.net.bounds import LARGE_FRAMES, MAX_GROWTH_BYTES
from meshd.net.frames import FRAMES_A_TURN, Frames
from meshd.net.mesh_net import MeshNet
from meshd.net.mux import FIRST_WINDOW_BYTES, HEADER, MAX_STREAMS, Mux
from meshd.net.swarm import MAX_CONNECTIONS_PER_PEER
from tests.helpers import until
from tests.net.members import ECHO, member
from tests.net.test_garbage import HELLO, mux_of, on_mux

QUIET_S = 0.3
"""Both ends are tasks of this process: when none of them had anything to do for so long, all that is let in is in."""

HUGE = bytes(varint.encode(64 * 1024 * 1024))


async def swallowed(target: MeshNet, *before: bytes) -> int:
    """Bytes that ``target`` takes of a message announced as 64 MiB, sent after ``before``, until it hangs up."""
    port = int(target.transport.addresses()[0].rsplit("/", 1)[1])
    sent = 0
    async with await trio.open_tcp_stream("127.0.0.1", port) as socket:
        socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 64 * 1024)
        try:
            await socket.send_all(b"".join(before) + HUGE)
            for _ in range(1024):
                await socket.send_all(bytes(64 * 1024))
                sent += 64 * 1024
            while await socket.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
    return sent


@pytest.mark.parametrize("before", [(), (HELLO,)], ids=["as hello", "as protocol"])
async def test_a_stranger_announcing_a_huge_message_is_hung_up_on_at_once(before: tuple[bytes, ...]) -> None:
    async with member(1, handshake_timeout_s=30.0) as target:
        with trio.fail_after(20):
            assert await swallowed(target, *before) < 32 * 1024 * 1024


async def test_the_first_frame_of_a_stream_keeps_to_the_first_window() -> None:
    async with member(1) as target, member(2) as attacker:
        await on_mux(attacker, target, HEADER.pack(0, 0, 1, 1001, FIRST_WINDOW_BYTES + 1))
        await until(lambda: not attacker.transport.connected(), 10, "being cut off")


async def test_a_member_announcing_a_huge_protocol_name_loses_the_stream_at_once() -> None:
    async with member(1) as target, member(2) as attacker:
        await attacker.transport.dial(None, target.transport.addresses(), 5)
        stream = await mux_of(attacker).open_stream()
        await stream.write(HELLO + HUGE)
        await until(lambda: stream.was_reset, 4, "the reset, before the negotiation's deadline of 5 s")


async def unfinished(attacker: MeshNet, target: MeshNet, streams: int) -> None:
    """Streams of frames of full size, each sent as far as the target lets it, and never finished."""
    node = await attacker.transport.dial(None, target.transport.addresses(), 5)
    opened = [await attacker.transport.open_stream(node, ECHO, 5) for _ in range(streams)]
    head = struct.pack("!IB", limits.MAX_TASK_BYTES, 1)
    async with trio.open_nursery() as nursery:
        for frames in opened:
            nursery.start_soon(frames._stream.write, head + bytes(limits.MAX_TASK_BYTES - 1))
        await trio.testing.wait_all_tasks_blocked(QUIET_S)
        nursery.cancel_scope.cancel()


def held_bytes(mux: Mux) -> int:
    """What one side of a connection has let the other send and has not given to anybody."""
    return sum(s.receive_window + len(s._received) for s in mux.streams.values())


async def test_frames_never_finished_hold_a_bounded_amount() -> None:
    async with member(1) as target, member(2) as attacker:
        await unfinished(attacker, target, 40)
        mux: Mux = target.transport._swarm.get_connections()[0].muxed_conn  # type: ignore[assignment]
        stalled = [len(s._received) for s in mux.streams.values() if s._received]
        assert len(stalled) == 40 - LARGE_FRAMES and max(stalled) <= 2 * FIRST_WINDOW_BYTES
        assert held_bytes(mux) <= MAX_STREAMS * FIRST_WINDOW_BYTES + MAX_GROWTH_BYTES


async def test_large_frames_beyond_the_bound_come_one_after_the_other() -> None:
    payload = bytes(limits.MAX_TASK_BYTES)
    back: list[int] = []
    async with member(1) as target, member(2) as friend:
        node = await friend.transport.dial(None, target.transport.addresses(), 5)

        async def ask() -> None:
            frames = await friend.transport.open_stream(node, ECHO, 5)
            await frames.send(1, payload)
            back.append(len((await frames.receive(limits.MAX_TASK_BYTES))[1]))

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(LARGE_FRAMES + 2):
                    nursery.start_soon(ask)
    assert back == [len(payload)] * (LARGE_FRAMES + 2)


async def test_a_flood_of_small_frames_leaves_everybody_else_their_turns() -> None:
    flood, turns = 3200, 0
    async with member(1) as target, member(2) as attacker:
        release, done = trio.Event(), trio.Event()

        async def read(stream: Frames) -> None:
            await release.wait()
            for _ in range(flood):
                await stream.receive(100)
            done.set()

        target.transport.serve(ECHO, read)
        node = await attacker.transport.dial(None, target.transport.addresses(), 5)
        frames = await attacker.transport.open_stream(node, ECHO, 5)
        for _ in range(flood):
            await frames.send(1, b"x")
        mux: Mux = target.transport._swarm.get_connections()[0].muxed_conn  # type: ignore[assignment]
        await until(lambda: any(len(s._received) == 6 * flood for s in mux.streams.values()), 10, "all of it there")
        release.set()
        while not done.is_set():
            await trio.lowlevel.checkpoint()
            turns += 1
        assert turns >= flood // FRAMES_A_TURN


async def test_streams_of_the_peer_are_counted_as_they_come_and_go() -> None:
    async with member(1) as target, member(2) as attacker:
        await attacker.transport.dial(None, target.transport.addresses(), 5)
        ids = range(1001, 1001 + 2 * (MAX_STREAMS + 50), 2)
        mux_of(attacker).push(*(HEADER.pack(0, 1, 1, i, 0) for i in ids))
        mux: Mux = target.transport._swarm.get_connections()[0].muxed_conn  # type: ignore[assignment]
        await until(lambda: 1001 in mux.streams, 10, "the flood")
        assert mux.theirs == len([i for i in mux.streams if i % 2]) <= MAX_STREAMS
        mux_of(attacker).push(*(HEADER.pack(0, 1, 8, i, 0) for i in ids))
        await until(lambda: mux.theirs == 0 and not [i for i in mux.streams if i % 2], 10, "all of them ended")


async def test_a_stream_that_ends_gives_its_growth_back() -> None:
    async with member(1) as target, member(2) as friend:
        node = await friend.transport.dial(None, target.transport.addresses(), 5)
        frames = await friend.transport.open_stream(node, ECHO, 5)
        await frames.send(1, bytes(limits.MAX_TASK_BYTES))
        await frames.receive(limits.MAX_TASK_BYTES)
        mux: Mux = target.transport._swarm.get_connections()[0].muxed_conn  # type: ignore[assignment]
        assert mux.growth_left_bytes < MAX_GROWTH_BYTES
        await frames.abort()
        await until(lambda: mux.growth_left_bytes == MAX_GROWTH_BYTES, 10, "the growth given back")


async def test_connections_of_one_peer_are_bounded_and_the_newest_stay() -> None:
    async with member(1) as target, member(2) as attacker:
        (address,) = target.transport.addresses()
        me, it = ID.from_base58(attacker.transport.node), ID.from_base58(target.transport.node)
        muxes = []
        for _ in range(MAX_CONNECTIONS_PER_PEER + 3):
            attacker.transport._swarm.connections.clear()  # an attacker has no bound of its own
            muxes.append((await attacker.transport._swarm.connect(it, parse(address))).muxed_conn)

        def live() -> list[object]:
            return [c for c in target.transport._swarm.get_connections(me) if not c.is_closed]

        await until(lambda: len(live()) == MAX_CONNECTIONS_PER_PEER, 10, "the bound")
        await until(lambda: sum(m.is_closed for m in muxes) == 3, 10, "the others ended")
        assert [m.is_closed for m in muxes] == [True] * 3 + [False] * MAX_CONNECTIONS_PER_PEER
        assert target.transport.connected() == (attacker.transport.node,)
