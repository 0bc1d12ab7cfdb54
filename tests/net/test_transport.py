"""The transport between proper members, in one process."""

from __future__ import annotations

import time

import pytest
import trio

from meshd.core.errors import FrameTooLarge, PortInUse, Truncated, Unreachable
from meshd.core.peers import PeerDown, PeerUp
from meshd.net.frames import Frames
from meshd.net.mesh_net import MeshNet
from meshd.net.mux import MAX_STREAMS
from tests.helpers import until
from tests.net.members import ECHO, id_of, member


async def connect(a: MeshNet, b: MeshNet) -> Frames:
    """Dial and open an echo stream."""
    node = await a.transport.dial(b.transport.node, b.transport.addresses(), 5)
    return await a.transport.open_stream(node, ECHO, 5)


async def test_two_members_exchange_frames() -> None:
    async with member(1) as a, member(2) as b:
        stream = await connect(a, b)
        assert stream.peer == b.transport.node
        for payload in (b"hello", b"", bytes(100_000)):
            await stream.send(3, payload)
            assert await stream.receive(200_000) == (3, payload)


async def test_large_frames_pass_both_ways_at_once() -> None:
    payload = bytes(range(256)) * (4 * 1024 * 4)
    async with member(1) as a, member(2) as b:
        stream = await connect(a, b)
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stream.send, 1, payload)
                nursery.start_soon(stream.send, 2, payload)
                frames = [await stream.receive(len(payload)) for _ in range(2)]
    assert sorted(kind for kind, _ in frames) == [1, 2] and all(back == payload for _, back in frames)


async def test_oversize_frame_is_refused_before_it_is_read() -> None:
    async with member(1) as a, member(2) as b:
        stream = await connect(a, b)
        await stream.send(1, bytes(101))
        with pytest.raises(FrameTooLarge):
            await stream.receive(100)
        other = await connect(a, b)
        await other.send(1, b"x")
        assert await other.receive(100) == (1, b"x")


async def test_running_out_of_bytes_is_a_truncation_wherever_it_happens() -> None:
    async with member(1) as a, member(2) as b:

        async def half_a_frame(stream: Frames) -> None:
            await stream._stream.write(b"\x00\x00\x00\x0a\x01half")

        async def whole_frame(stream: Frames) -> None:
            await stream.send(1, b"all")

        b.transport.serve("/half", half_a_frame)
        b.transport.serve("/whole", whole_frame)
        node = await a.transport.dial(None, b.transport.addresses(), 5)
        half = await a.transport.open_stream(node, "/half", 5)
        with pytest.raises(Truncated):
            await half.receive(100)
        whole = await a.transport.open_stream(node, "/whole", 5)
        assert await whole.receive(100) == (1, b"all")
        with pytest.raises(Truncated):
            await whole.receive(100)


async def test_half_close_leaves_the_other_direction_open() -> None:
    async with member(1) as a, member(2) as b:

        async def answer_after_the_end(stream: Frames) -> None:
            with pytest.raises(Truncated):
                while True:
                    await stream.receive(100)
            await stream.send(2, b"late")

        b.transport.serve("/late", answer_after_the_end)
        node = await a.transport.dial(None, b.transport.addresses(), 5)
        stream = await a.transport.open_stream(node, "/late", 5)
        await stream.send(1, b"request")
        await stream.close()
        await stream.close()
        with trio.fail_after(5):
            assert await stream.receive(100) == (2, b"late")
        with pytest.raises(Truncated):
            await stream.send(1, b"more")


async def dial_s(a: MeshNet, b: MeshNet) -> float:
    """How long a dial took, from no connection to one."""
    await a.transport.drop(b.transport.node)
    began = time.perf_counter()
    await a.transport.dial(None, b.transport.addresses(), 5)
    return time.perf_counter() - began


async def test_dial_is_quick_and_keeps_a_live_connection() -> None:
    """The library waits 250 ms in every dial. The quickest of several counts, for the machine may be busy."""
    async with member(1) as a, member(2) as b:
        assert min([await dial_s(a, b) for _ in range(8)]) < 0.2
        node = b.transport.node
        assert await a.transport.dial(node, ("/ip4/127.0.0.1/tcp/1",), 5) == node
        assert a.transport.connected() == (node,)
        certificate = a.transport.certificate_of(node)
        assert certificate is not None and certificate.node == node
        assert b.transport.certificate_of(id_of(1)) is not None and a.transport.certificate_of(id_of(9)) is None


async def test_dial_finds_the_address_that_works_among_dead_ones() -> None:
    (silent,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with silent, member(1, handshake_timeout_s=60) as a, member(2) as b:
        mute = f"/ip4/127.0.0.1/tcp/{silent.socket.getsockname()[1]}"
        addresses = ("/ip4/127.0.0.1/tcp/1", "nonsense", "/ip4/192.0.2.1/tcp/9", mute, *b.transport.addresses())
        # One after the other, the one that says nothing would take all the time there is.
        assert await a.transport.dial(b.transport.node, addresses, 20) == b.transport.node


async def test_dial_says_why_it_failed() -> None:
    async with member(1) as a, member(2) as b:
        here = b.transport.addresses()[0]
        with pytest.raises(Unreachable, match="refused"):
            await a.transport.dial(id_of(3), ("/ip4/127.0.0.1/tcp/1",), 5)
        with pytest.raises(Unreachable, match="no usable address"):
            await a.transport.dial(id_of(3), ("/ip4/127.0.0.1/udp/1/quic-v1",), 5)
        with pytest.raises(Unreachable):
            await a.transport.dial(id_of(3), (here,), 5)
        with pytest.raises(Unreachable, match="itself"):
            await a.transport.dial(None, (f"{a.transport.addresses()[0]}/p2p/{a.transport.node}",), 5)
        assert await a.transport.dial(None, (f"{here}/p2p/{b.transport.node}",), 5) == b.transport.node


async def test_dial_gives_up_in_time_on_a_listener_that_says_nothing() -> None:
    async with member(1) as a:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        async with listener:
            port = listener.socket.getsockname()[1]
            began = trio.current_time()
            with pytest.raises(Unreachable):
                await a.transport.dial(None, (f"/ip4/127.0.0.1/tcp/{port}",), 0.3)
            assert trio.current_time() - began < 4, "waited for the handshake's deadline"


async def test_coming_and_going_is_reported_once_each() -> None:
    async with member(1) as a:
        events = a.transport.events()
        async with member(2) as b:
            await connect(b, a)
            up = await anext(events)
            assert isinstance(up, PeerUp) and up.node == b.transport.node and not up.outbound
            assert up.certificate.node == b.transport.node
        assert await anext(events) == PeerDown(id_of(2))
        assert a.transport.connected() == ()


async def test_a_failing_handler_ends_its_own_stream_only() -> None:
    """The library ends the host, or leaves a connection that is listed and dead."""
    async with member(1) as a, member(2) as b:

        async def fail(stream: Frames) -> None:
            await stream.receive(100)
            raise RuntimeError("a bug")

        b.transport.serve("/fail", fail)
        healthy = await connect(a, b)
        for _ in range(3):
            failing = await a.transport.open_stream(b.transport.node, "/fail", 5)
            await failing.send(1, b"")
            with pytest.raises(Truncated), trio.fail_after(5):
                await failing.receive(100)
        await healthy.send(1, b"still here")
        assert await healthy.receive(100) == (1, b"still here")


async def test_reset_by_the_peer_leaves_the_connection_usable() -> None:
    async with member(1) as a, member(2) as b:
        healthy = await connect(a, b)
        for _ in range(5):
            stream = await connect(a, b)
            await stream.send(1, b"x")
            await stream.abort()
            await stream.abort()
            with pytest.raises(Truncated):
                await stream.send(1, b"x")
        await healthy.send(1, b"y")
        assert await healthy.receive(100) == (1, b"y")


async def test_one_stream_too_many_is_refused_in_time_and_room_comes_back() -> None:
    """The library's 257th stream waits for ever."""
    async with member(1) as a, member(2) as b:
        streams = [await connect(a, b) for _ in range(MAX_STREAMS)]
        with pytest.raises(Unreachable):
            await a.transport.open_stream(b.transport.node, ECHO, 0.3)
        for stream in streams:
            await stream.abort()
        with trio.fail_after(20):
            stream = await connect(a, b)
            await stream.send(1, b"room")
            assert await stream.receive(100) == (1, b"room")


async def test_no_stream_without_connection_or_for_a_protocol_nobody_serves() -> None:
    async with member(1) as a, member(2) as b:
        with pytest.raises(Unreachable, match="not connected"):
            await a.transport.open_stream(b.transport.node, ECHO, 5)
        await connect(a, b)
        with pytest.raises(Unreachable):
            await a.transport.open_stream(b.transport.node, "/nobody/serves/this", 5)
        await connect(a, b)


async def test_dropped_peers_are_gone_on_both_sides_at_once() -> None:
    async with member(1) as a, member(2) as b:
        stream = await connect(a, b)
        await a.transport.drop(b.transport.node)
        assert a.transport.connected() == ()
        with pytest.raises(Truncated):
            await stream.receive(100)
        await until(lambda: not b.transport.connected(), 10, "b noticing")
        await connect(a, b)
        await a.transport.drop(id_of(9))


async def test_a_taken_port_is_an_error() -> None:
    """The library would share it silently."""
    async with member(1) as a:
        with pytest.raises(BaseException) as caught:
            async with member(2, listen=a.transport.addresses()):
                raise AssertionError("listening on a taken port")
        assert isinstance(caught.value, PortInUse)


async def test_wildcards_are_expanded() -> None:
    async with member(1, listen=("/ip4/0.0.0.0/tcp/0",)) as a, member(2) as b:
        addresses = a.transport.addresses()
        assert addresses and not any("0.0.0.0" in x for x in addresses)
        assert await b.transport.dial(None, addresses, 5) == a.transport.node


async def test_many_inbound_connections() -> None:
    """The library accepts ``max_connections`` inbound connections in its life."""
    async with member(1, max_connections=20) as a, member(2) as b:
        for _ in range(60):
            await (await connect(b, a)).abort()
            await b.transport.drop(a.transport.node)
        with trio.fail_after(5):
            stream = await connect(b, a)
            await stream.send(1, b"sixty-first")
            assert await stream.receive(100) == (1, b"sixty-first")


async def test_connections_are_bounded() -> None:
    async with member(1, max_connections=1) as a, member(2) as b, member(3) as c:
        await connect(b, a)
        with pytest.raises(Unreachable):
            await c.transport.dial(None, a.transport.addresses(), 5)
        assert a.transport.connected() == (b.transport.node,)


async def test_a_dialled_address_is_remembered() -> None:
    async with member(1) as a, member(2) as b:
        await connect(a, b)
        assert a.directory.addresses_of(b.transport.node) == b.transport.addresses()
