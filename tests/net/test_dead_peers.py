"""Peers that are killed or frozen: noticed at once, never waited for."""

from __future__ import annotations

import signal
import time

import pytest
import trio
import trio.testing

from meshd.core.errors import Truncated, Unreachable
from meshd.core.peers import PeerDown, PeerUp
from tests.helpers import until
from tests.net.members import ECHO, make_ad, member, seed_of
from tests.net.peer_process import FLOOD, SILENT, peer_process

SEEN_WITHIN_S = 10.0
"""A loss that is not seen at the socket is seen never: nothing else here would wake the reader."""

STUCK_S = 30.0
"""The deadline of writes where none may be waited for: whoever does is far beyond `AT_ONCE_S`."""

AT_ONCE_S = 4.0
"""On a slow machine. Below the 5 s at which handshakes and negotiations of streams end by themselves."""


async def test_a_killed_peer_is_a_truncation_and_down_at_once() -> None:
    """In the library a killed peer reads as a clean end, and is reported 200 ms later."""
    async with member(1) as net, peer_process(2) as peer:
        events = net.transport.events()
        await net.transport.dial(peer.node, (peer.address,), 5)
        assert isinstance(await anext(events), PeerUp)
        stream = await net.transport.open_stream(peer.node, FLOOD, 5)
        await stream.receive(2000)
        peer.signal(signal.SIGKILL)
        with pytest.raises(Truncated), trio.fail_after(SEEN_WITHIN_S):
            while True:
                await stream.receive(2000)
        # Whoever reads learns it no earlier than whoever watches: what comes 200 ms later is not there yet.
        assert net.transport.connected() == ()
        assert events.receive_nowait() == PeerDown(peer.node)  # type: ignore[attr-defined]


async def test_what_arrived_before_the_kill_is_still_read() -> None:
    """The library throws away received bytes when the connection ends."""
    async with member(1) as net, peer_process(2) as peer:
        await net.transport.dial(peer.node, (peer.address,), 5)
        stream = await net.transport.open_stream(peer.node, ECHO, 5)
        for number in range(5):
            await stream.send(number, b"kept")
        await until(lambda: len(stream._stream._received) == 5 * 9, 5, "the echoes arriving")
        peer.signal(signal.SIGKILL)
        await until(lambda: not net.transport.connected(), 5, "the loss showing")
        assert [await stream.receive(10) for _ in range(5)] == [(n, b"kept") for n in range(5)]
        with pytest.raises(Truncated):
            await stream.receive(10)


async def test_restart_on_the_same_port() -> None:
    """The library shuns the peer for a minute after a failed dial."""
    async with member(1) as net:
        async with peer_process(2) as peer:
            await net.transport.dial(peer.node, (peer.address,), 5)
            peer.signal(signal.SIGKILL)
            await peer.ended()
        await until(lambda: not net.transport.connected(), 5, "the loss showing")
        with pytest.raises(Unreachable):
            await net.transport.dial(peer.node, (peer.address,), 1)
        assert await net.directory.lookup(peer.node) is None
        async with peer_process(2, peer.port) as again:
            assert await net.transport.dial(again.node, (again.address,), 10) == peer.node


async def test_a_stuck_send_to_a_frozen_peer_ends_by_its_deadline() -> None:
    async with member(1, write_deadline_s=0.5) as net, peer_process(2) as peer:
        await net.transport.dial(peer.node, (peer.address,), 5)
        stream = await net.transport.open_stream(peer.node, SILENT, 5)
        other = await net.transport.open_stream(peer.node, ECHO, 5)
        peer.signal(signal.SIGSTOP)
        began = time.perf_counter()
        with pytest.raises(Truncated):
            while True:
                await stream.send(1, bytes(100_000))
        assert time.perf_counter() - began < AT_ONCE_S, "waited for another deadline than its own"
        with pytest.raises(Truncated):
            await other.receive(100)
        assert net.transport.connected() == ()


async def test_a_stuck_send_to_a_slow_reader_costs_only_its_stream() -> None:
    """The peer answers elsewhere: it is alive, so its other streams stay."""
    async with member(1, write_deadline_s=1.5) as net, peer_process(2) as peer:
        await net.transport.dial(peer.node, (peer.address,), 5)
        stuck = await net.transport.open_stream(peer.node, SILENT, 5)
        lively = await net.transport.open_stream(peer.node, ECHO, 5)
        async with trio.open_nursery() as nursery:

            async def keep_talking() -> None:
                while True:
                    await lively.send(1, b"x")
                    await lively.receive(100)

            nursery.start_soon(keep_talking)
            with pytest.raises(Truncated):
                while True:
                    await stuck.send(1, bytes(100_000))
            await lively.send(2, b"still here")
            nursery.cancel_scope.cancel()
        assert net.transport.connected() == (peer.node,)


async def test_a_frozen_peer_is_dropped_at_once() -> None:
    async with member(1, write_deadline_s=STUCK_S) as net, peer_process(2) as peer:
        await net.transport.dial(peer.node, (peer.address,), 5)
        stream = await net.transport.open_stream(peer.node, SILENT, 5)
        peer.signal(signal.SIGSTOP)
        async with trio.open_nursery() as nursery:

            async def stuck() -> None:
                with pytest.raises(Truncated):
                    while True:
                        await stream.send(1, bytes(1_000_000))

            nursery.start_soon(stuck)
            await trio.testing.wait_all_tasks_blocked(0.05)
            began = time.perf_counter()
            with trio.testing.assert_no_checkpoints():  # it waits for nothing at all
                await net.transport.drop(peer.node)
        assert time.perf_counter() - began < AT_ONCE_S, "the sender was not woken"


async def test_nothing_waits_long_for_a_frozen_peer() -> None:
    async with member(1) as net, peer_process(2) as peer:
        await net.transport.dial(peer.node, (peer.address,), 5)
        peer.signal(signal.SIGSTOP)
        with trio.fail_after(AT_ONCE_S), pytest.raises(Unreachable):
            await net.transport.open_stream(peer.node, ECHO, 0.3)
        await net.transport.drop(peer.node)
        with trio.fail_after(AT_ONCE_S), pytest.raises(Unreachable):
            await net.transport.dial(peer.node, (peer.address,), 0.3)


async def test_leaving_does_not_wait_for_a_frozen_peer() -> None:
    async with peer_process(2) as peer:
        async with member(1, write_deadline_s=STUCK_S) as net:
            await net.transport.dial(peer.node, (peer.address,), 5)
            stream = await net.transport.open_stream(peer.node, SILENT, 5)
            peer.signal(signal.SIGSTOP)
            await stream.send(1, bytes(100_000))
            began = time.perf_counter()
        assert time.perf_counter() - began < AT_ONCE_S


async def test_frozen_peers_do_not_stall_the_directory() -> None:
    """The library waits 10 to 30 s for each question; each of these three waits 1 s for the frozen one."""
    async with member(1, directory_timeout_s=1.0) as net, member(2) as helper, peer_process(3) as frozen:
        for address, node in ((frozen.address, frozen.node), (helper.transport.addresses()[0], None)):
            await net.transport.dial(node, (address,), 5)
        await net.directory.refresh()
        frozen.signal(signal.SIGSTOP)
        await helper.directory.publish(make_ad(seed_of(2), 1))
        began = time.perf_counter()
        assert await net.directory.lookup(helper.transport.node) is not None
        assert await net.directory.lookup(frozen.node) is None
        await net.directory.publish(make_ad(seed_of(1), 1))
        assert time.perf_counter() - began < 9
