"""The transport between proper members."""

from __future__ import annotations

from tests.net.members import ECHO, member


async def test_two_members_exchange_frames() -> None:
    async with member(1) as a, member(2) as b:
        found = await a.transport.dial(b.transport.node, b.transport.addresses(), 5)
        assert found == b.transport.node
        stream = await a.transport.open_stream(found, ECHO, 5)
        await stream.send(3, b"hello")
        assert await stream.receive(100) == (3, b"hello")
