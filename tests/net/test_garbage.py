"""Whatever a peer sends, the host lives, other connections live, and members still get in."""

from __future__ import annotations

import os
import struct
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import varint
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.net_stream import NetStream

from meshd.core.errors import Unreachable
from meshd.net.frames import Frames
from meshd.net.mesh_net import MeshNet
from meshd.net.mux import HEADER, Mux
from meshd.wire import protocols
from tests.helpers import until
from tests.net.members import ECHO, id_of, member

Attack = Callable[[MeshNet, MeshNet], Awaitable[None]]


def delimited(data: bytes) -> bytes:
    return bytes(varint.encode(len(data)) + data)


HELLO = delimited(b"/multistream/1.0.0\n")


async def raw_socket(target: MeshNet, *pieces: bytes) -> None:
    """Say ``pieces`` to the listening port and read until the other side has had enough."""
    port = int(target.transport.addresses()[0].rsplit("/", 1)[1])
    async with await trio.open_tcp_stream("127.0.0.1", port) as socket:
        try:
            for piece in pieces:
                await socket.send_all(piece)
            await socket.send_eof()
            while await socket.receive_some():
                pass
        except trio.BrokenResourceError:
            return


async def raw_stream(attacker: MeshNet, target: MeshNet) -> NetStream:
    """A stream on which nothing was negotiated."""
    await attacker.transport.dial(None, target.transport.addresses(), 5)
    swarm = attacker.transport._swarm
    return await swarm.new_stream(swarm.get_connections()[0].muxed_conn.peer_id)  # type: ignore[return-value]


async def negotiated(attacker: MeshNet, target: MeshNet, protocol: str) -> Frames:
    node = await attacker.transport.dial(None, target.transport.addresses(), 5)
    return await attacker.transport.open_stream(node, protocol, 5)


def mux_of(attacker: MeshNet) -> Mux:
    return attacker.transport._swarm.get_connections()[0].muxed_conn  # type: ignore[return-value]


async def on_mux(attacker: MeshNet, target: MeshNet, *frames: bytes) -> None:
    await attacker.transport.dial(None, target.transport.addresses(), 5)
    mux_of(attacker).push(*frames)


def on_socket(*pieces: bytes) -> Attack:
    async def attack(attacker: MeshNet, target: MeshNet) -> None:
        await raw_socket(target, *pieces)

    return attack


def on_raw_stream(*pieces: bytes, end: str = "close") -> Attack:
    async def attack(attacker: MeshNet, target: MeshNet) -> None:
        stream = await raw_stream(attacker, target)
        for piece in pieces:
            await stream.write(piece)
        await (stream.close() if end == "close" else stream.reset())

    return attack


def on_protocol(protocol: str, data: bytes, end: str) -> Attack:
    async def attack(attacker: MeshNet, target: MeshNet) -> None:
        stream = await negotiated(attacker, target, protocol)
        await stream._stream.write(data)
        if end == "drop":
            await attacker.transport.drop(target.transport.node)
        else:
            await (stream.close() if end == "close" else stream.abort())

    return attack


def on_muxer(*frames: bytes) -> Attack:
    async def attack(attacker: MeshNet, target: MeshNet) -> None:
        await on_mux(attacker, target, *frames)

    return attack


NOISE = delimited(protocols.NOISE.encode() + b"\n")
KAD, PING = "/ipfs/kad/1.0.0", "/ipfs/ping/1.0.0"
ATTACKS: dict[str, Attack] = {
    "tcp: nothing": on_socket(),
    "tcp: random": on_socket(os.urandom(4096)),
    "tcp: bad utf-8 protocol": on_socket(HELLO, delimited(b"\xff\xfe\xfd\n")),
    "tcp: bad utf-8 hello": on_socket(delimited(b"\xff\xfe\xfd\n")),
    "tcp: endless length": on_socket(b"\xff" * 64),
    "noise: random": on_socket(HELLO, NOISE, b"\x00\x20" + os.urandom(32), b"\xff\xff" + os.urandom(70000)),
    "noise: short": on_socket(HELLO, NOISE, b"\x00\x00"),
    "stream: bad utf-8 protocol": on_raw_stream(HELLO, delimited(b"\xff\xfe/app\n")),
    "stream: bad utf-8 hello": on_raw_stream(delimited(b"\xff\xfe\xfd\n")),
    "stream: empty protocol": on_raw_stream(HELLO, delimited(b"\n")),
    "stream: endless length": on_raw_stream(b"\xff" * 20),
    "stream: reset at once": on_raw_stream(end="reset"),
    "mux: unknown kind": on_muxer(b"\x07" * 120),
    "mux: window overrun": on_muxer(HEADER.pack(0, 0, 1, 1001, 0x7FFFFFFF)),
    "mux: data on no stream": on_muxer(HEADER.pack(0, 0, 0, 999, 4) + b"data"),
    "mux: stream id of the other side": on_muxer(HEADER.pack(0, 1, 1, 2, 0), HEADER.pack(0, 1, 1, 0, 0)),
    "mux: stream opened twice": on_muxer(HEADER.pack(0, 1, 1, 777, 0) * 2),
    "mux: thousand streams": on_muxer(*(HEADER.pack(0, 1, 1, i, 0) for i in range(1001, 3001, 2))),
    "mux: ping flood": on_muxer(HEADER.pack(0, 2, 1, 0, 1) * 5000),
    "mux: good-bye": on_muxer(HEADER.pack(0, 3, 0, 0, 0)),
    "kad: garbage": on_protocol(KAD, delimited(b"\xff" * 100), "close"),
    "kad: reset": on_protocol(KAD, b"", "reset"),
    "kad: cut off": on_protocol(KAD, b"\x50\x01", "drop"),
    "kad: huge": on_protocol(KAD, b"\xff\xff\xff\xff\x0f", "close"),
    "ping: short": on_protocol(PING, b"short", "reset"),
    "ping: cut off": on_protocol(PING, b"short", "drop"),
    "own: oversize frame": on_protocol(ECHO, struct.pack("!IB", 0xFFFFFFFF, 1), "close"),
    "own: half a header": on_protocol(ECHO, b"\x00\x00", "reset"),
    "own: half a frame": on_protocol(ECHO, struct.pack("!IB", 100, 1) + b"x", "drop"),
}


@pytest.mark.parametrize("what", ATTACKS)
async def test_garbage(what: str) -> None:
    async with member(1) as target, member(2) as attacker, member(3) as friend:
        node = await friend.transport.dial(None, target.transport.addresses(), 5)
        stream = await friend.transport.open_stream(node, ECHO, 5)
        with trio.fail_after(30):
            await ATTACKS[what](attacker, target)
            await stream.send(1, b"still there?")
            assert await stream.receive(100) == (1, b"still there?")
            again = await negotiated(attacker, target, ECHO) if "mux" not in what else None
            if again is not None:
                await again.send(1, b"and now")
                assert await again.receive(100) == (1, b"and now")


@pytest.mark.parametrize("protocol", ["/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0"])
async def test_identify_is_not_served(protocol: str) -> None:
    async with member(1) as target, member(2) as attacker:
        with pytest.raises(BaseLibp2pError):
            await attacker.transport.dial(None, target.transport.addresses(), 5)
            await attacker.transport._host.application_stream(target.transport._swarm.get_peer_id(), protocol)
        assert target.transport.connected()


async def test_a_window_overrun_ends_the_connection_before_the_body_comes() -> None:
    async with member(1) as target, member(2) as attacker:
        await on_mux(attacker, target, HEADER.pack(0, 0, 1, 1001, 0x7FFFFFFF))
        await until(lambda: not attacker.transport.connected(), 10, "being cut off")


async def test_nothing_reaches_stderr_or_the_root_logger(capfd: pytest.CaptureFixture[str]) -> None:
    async with member(1) as target, member(2) as attacker:
        for what in ("tcp: random", "noise: random", "kad: garbage", "stream: bad utf-8 hello"):
            await ATTACKS[what](attacker, target)
    assert capfd.readouterr().err == ""


ANSWERS = {
    "nothing": b"",
    "random": os.urandom(4096),
    "bad utf-8 hello": delimited(b"\xff\xfe\xfd\n"),
    "bad utf-8 protocol": HELLO + delimited(b"\xff\xfe\xfd\n"),
    "endless length": b"\xff" * 64,
    "noise of zeros": HELLO + NOISE + b"\x00\x60" + bytes(96),
}


@pytest.mark.parametrize("what", ANSWERS)
async def test_dialling_garbage_is_unreachable(what: str) -> None:
    async def answer(socket: trio.SocketStream) -> None:
        try:
            await socket.send_all(ANSWERS[what])
            await socket.send_eof()
        except trio.BrokenResourceError:
            return

    async with member(1) as net, trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        address = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
        with pytest.raises(Unreachable), trio.fail_after(7):
            await net.transport.dial(None, (address,), 3)
        with pytest.raises(Unreachable), trio.fail_after(7):
            await net.transport.dial(id_of(2), (address,), 3)
        nursery.cancel_scope.cancel()


async def test_opening_a_stream_to_garbage_is_unreachable() -> None:
    async def answer(stream: NetStream) -> None:
        await stream.write(HELLO + delimited(b"\xff\xfe\xfd\n"))

    async with member(1) as net, member(2) as other:
        other.transport._swarm.set_stream_handler(answer)  # type: ignore[arg-type]
        node = await net.transport.dial(None, other.transport.addresses(), 5)
        with pytest.raises(Unreachable):
            await net.transport.open_stream(node, ECHO, 2)
        await net.directory.refresh()
        assert await net.directory.lookup(id_of(2)) is None
