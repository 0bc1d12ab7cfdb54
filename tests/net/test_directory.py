"""The directory: ads found, renewed, refused."""

from __future__ import annotations

from contextlib import AsyncExitStack

from meshd.net.mesh_net import MeshNet
from tests.helpers import until
from tests.net.members import id_of, make_ad, member, seed_of


async def connect(a: MeshNet, b: MeshNet) -> None:
    await a.transport.dial(b.transport.node, b.transport.addresses(), 5)


async def mesh(stack: AsyncExitStack, size: int) -> list[MeshNet]:
    """``size`` members that all dialled the first, then refreshed."""
    nets = [await stack.enter_async_context(member(n)) for n in range(1, size + 1)]
    for net in nets[1:]:
        await connect(net, nets[0])
        await net.directory.refresh()
    for net in nets:
        await net.directory.refresh()
    return nets


async def test_a_reader_sees_every_update() -> None:
    async with AsyncExitStack() as stack:
        nets = await mesh(stack, 5)
        owner, reader = nets[1], nets[4]
        for seq in (1, 2, 2, 3):
            await owner.directory.publish(make_ad(seed_of(2), seq, text=str(seq)))
            assert await reader.directory.lookup(id_of(2)) is not None
            found = await reader.directory.lookup(id_of(2))
            assert found is not None and found.endswith(str(seq).encode())
        assert len(reader.directory.known()) == 4
        assert owner.transport.addresses()[0] in reader.directory.addresses_of(id_of(2))
        assert await reader.directory.lookup(id_of(99)) is None
    await until(lambda: True, 1)
