"""Whom a node dials, when, and how failures make it patient."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import trio

from meshd.core.errors import ClockWrong, NotMember, Unreachable
from meshd.core.ids import NodeId
from meshd.node import dialler as dialling
from meshd.node.dialler import Dialler
from meshd.testing.fakes import fake_certificate, fake_node
from meshd.testing.network import FakeDirectory, FakeNetwork, FakeTransport
from tests.helpers import until
from tests.node.mesh import client, mesh_of, run_job, text_of
from tests.node.stores import MemoryBook

pytestmark = pytest.mark.mock_clock
ME, A, B, C = (fake_node(n) for n in range(1, 5))
DEAD = "/ip4/10.9.9.9/tcp/1"
Known = dict[NodeId, tuple[str, ...]]


class Dials:
    """A dialler on a fake network, every dial of which is written down."""

    def __init__(
        self,
        network: FakeNetwork,
        bootstrap: Sequence[str] = (),
        most: int = 32,
        book: MemoryBook | None = None,
    ) -> None:
        self.transport: FakeTransport = network.transport(fake_certificate(ME))
        self.known: Known = {}
        self.made: list[tuple[float, NodeId | None, tuple[str, ...]]] = []
        self.unreachable: list[NodeId] = []
        self.error: Exception | None = None
        self.book = book or MemoryBook()
        plain = self.transport.dial

        async def written(node: NodeId | None, addresses: Sequence[str], timeout_s: float) -> NodeId:
            self.made.append((trio.current_time(), node, tuple(addresses)))
            if self.error is not None:
                raise self.error
            return await plain(node, addresses, timeout_s)

        self.transport.dial = written  # type: ignore[method-assign]
        self.dialler = Dialler(
            self.transport,
            FakeDirectory(network, ME),
            self.book,
            bootstrap,
            self.known.items,
            self.unreachable.append,
            max_neighbours=most,
            timeout_s=3.0,
        )

    def times_s(self) -> list[float]:
        """When something was dialled."""
        return [at_s for at_s, _, _ in self.made]


async def test_alone_it_dials_the_bootstrap_and_with_a_neighbour_no_more() -> None:
    async with FakeNetwork() as network, trio.open_nursery() as nursery:
        a = network.transport(fake_certificate(A))
        dials = Dials(network, bootstrap=(DEAD, a.addresses()[0]))
        nursery.start_soon(dials.dialler.run)
        await until(lambda: dials.transport.connected() == (A,), 2)
        assert {addresses for _, _, addresses in dials.made} == {(DEAD,), a.addresses()}
        await until(lambda: A in dials.book.members, 1)
        made = len(dials.made)
        with trio.move_on_after(dialling.MAX_RETRY_S):
            await until(lambda: len(dials.made) > made, dialling.MAX_RETRY_S + 1)
            raise AssertionError("it dials though it has whom it needs")
        network.disconnect(ME, A)
        dials.dialler.wake()
        await until(lambda: dials.transport.connected() == (A,), 0.1)
        nursery.cancel_scope.cancel()


async def test_a_dead_address_is_tried_less_and_less_often() -> None:
    async with FakeNetwork() as network, trio.open_nursery() as nursery:
        dials = Dials(network, bootstrap=(DEAD,))
        nursery.start_soon(dials.dialler.run)
        await until(lambda: len(dials.made) == 9, 300)
        times_s = dials.times_s()
        gaps_s = [b - a for a, b in pairwise(times_s)]
        round_s = dialling.ROUND_INTERVAL_S
        for tries, gap_s in enumerate(gaps_s):
            wait_s = min(dialling.MAX_RETRY_S, dialling.FIRST_RETRY_S * 2**tries)
            assert wait_s <= gap_s <= wait_s + 2 * round_s
        nursery.cancel_scope.cancel()


async def test_whoever_is_no_member_is_left_alone_for_long() -> None:
    async with FakeNetwork() as network, trio.open_nursery() as nursery:
        dials = Dials(network, bootstrap=(DEAD,))
        dials.error = NotMember("of another organisation")
        nursery.start_soon(dials.dialler.run)
        await until(lambda: dials.transport.alive and len(dials.made) == 2, 2 * dialling.MEMBER_RETRY_S)
        assert dials.times_s()[1] >= dialling.MEMBER_RETRY_S
        nursery.cancel_scope.cancel()


async def test_waking_it_all_the_time_makes_it_dial_no_more_often() -> None:
    async with FakeNetwork() as network, trio.open_nursery() as nursery:
        dials = Dials(network, bootstrap=(DEAD,))
        nursery.start_soon(dials.dialler.run)

        async def nag() -> None:
            while True:
                dials.dialler.wake()
                await trio.lowlevel.checkpoint()
                with trio.move_on_after(dialling.ROUND_INTERVAL_S / 50):
                    await trio.sleep_forever()

        nursery.start_soon(nag)
        await until(lambda: len(dials.made) >= 4, 20)
        assert dials.times_s()[3] >= 7 * dialling.FIRST_RETRY_S
        nursery.cancel_scope.cancel()


async def test_a_hint_is_dialled_at_once_and_its_own_word_comes_first() -> None:
    async with FakeNetwork() as network, trio.open_nursery() as nursery:
        a, b = (network.transport(fake_certificate(n)) for n in (A, B))
        dials = Dials(network)
        nursery.start_soon(dials.dialler.run)
        await trio.testing.wait_all_tasks_blocked()
        dials.dialler.hint(A, a.addresses())
        dials.dialler.hint(ME, (DEAD,))
        await until(lambda: dials.transport.connected() == (A,), 0.1)
        dials.known[B] = b.addresses()
        dials.dialler.hint(B, (DEAD,))
        await until(lambda: B in dials.transport.connected(), 0.1)
        assert all(addresses != (DEAD,) for _, _, addresses in dials.made)
        nursery.cancel_scope.cancel()


async def test_a_forged_hint_does_not_keep_members_apart() -> None:
    """Anybody on the LAN can say that a member is elsewhere."""
    async with FakeNetwork() as network, trio.open_nursery() as nursery:
        a, b = (network.transport(fake_certificate(n)) for n in (A, B))
        dials = Dials(network, book=MemoryBook({A: a.addresses()}))
        dials.known[B] = b.addresses()
        for node in (A, B):
            dials.dialler.hint(node, (DEAD,) * dialling.MAX_ADDRESSES)
        nursery.start_soon(dials.dialler.run)
        await until(lambda: set(dials.transport.connected()) == {A, B}, 1)
        assert all(addresses[0] != DEAD for _, _, addresses in dials.made)
        nursery.cancel_scope.cancel()


async def test_a_flood_of_hints_delays_no_member() -> None:
    async with FakeNetwork() as network, trio.open_nursery() as nursery:
        a = network.transport(fake_certificate(A))
        dials = Dials(network, most=8)
        for number in range(10, 10 + dialling.MAX_HINTS):
            dials.dialler.hint(fake_node(number), (DEAD,))
        dials.known[A] = a.addresses()
        nursery.start_soon(dials.dialler.run)
        await until(lambda: dials.transport.connected() == (A,), 1)
        first_round = [node for at_s, node, _ in dials.made if at_s == dials.made[0][0]]
        assert len(first_round) <= 1 + dialling.MAX_HINT_DIALS
        nursery.cancel_scope.cancel()


async def test_hints_are_bounded() -> None:
    async with FakeNetwork() as network:
        dials = Dials(network)
        for number in range(10, 10 + 3 * dialling.MAX_HINTS):
            dials.dialler.hint(fake_node(number), (DEAD,) * 50)
        assert len(dials.dialler._hints) == dialling.MAX_HINTS
        assert all(len(addresses) <= 8 for addresses in dials.dialler._hints.values())


async def test_it_keeps_no_more_neighbours_than_it_may() -> None:
    async with FakeNetwork() as network, trio.open_nursery() as nursery:
        dials = Dials(network, most=2)
        for node in (A, B, C):
            dials.known[node] = network.transport(fake_certificate(node)).addresses()
        nursery.start_soon(dials.dialler.run)
        await until(lambda: len(dials.transport.connected()) == 2, 1)
        with trio.move_on_after(5 * dialling.ROUND_INTERVAL_S):
            await until(lambda: len(dials.made) > 2, 6)
            raise AssertionError("it dials beyond its bound")
        nursery.cancel_scope.cancel()


async def test_after_a_restart_the_book_says_whom_to_dial() -> None:
    async with FakeNetwork() as network, trio.open_nursery() as nursery:
        a = network.transport(fake_certificate(A))
        dials = Dials(network, book=MemoryBook({A: a.addresses()}))
        nursery.start_soon(dials.dialler.run)
        await until(lambda: dials.transport.connected() == (A,), 1)
        nursery.cancel_scope.cancel()


async def test_a_member_that_cannot_be_reached_is_told_to_membership() -> None:
    async with FakeNetwork() as network, trio.open_nursery() as nursery:
        dials = Dials(network)
        dials.known[A] = network.transport(fake_certificate(A)).addresses()
        network.kill(A)
        nursery.start_soon(dials.dialler.run)
        await until(lambda: dials.unreachable == [A], 1)
        nursery.cancel_scope.cancel()


async def test_reach_uses_what_is_known_and_says_when_nothing_is() -> None:
    async with FakeNetwork() as network:
        a = network.transport(fake_certificate(A))
        dials = Dials(network)
        with pytest.raises(Unreachable, match="no address"):
            await dials.dialler.reach(C)
        await dials.dialler.reach(ME)
        assert dials.made == []
        dials.known[A] = a.addresses()
        await dials.dialler.reach(A)
        await dials.dialler.reach(A)
        assert len(dials.made) == 1 and dials.transport.connected() == (A,)


@pytest.mark.parametrize("error", [NotMember("other"), ClockWrong("other"), Unreachable("gone")])
async def test_whatever_reaching_a_worker_fails_with_only_moves_the_job(error: Exception) -> None:
    async with mesh_of(client(), "w1", "w2") as mesh:
        app = mesh.nodes["app"]
        victims: list[NodeId] = []
        plain = app.dialler.reach

        async def reach(node: NodeId) -> None:
            if not victims or node in victims:
                victims.append(node)
                raise error
            await plain(node)

        app.dialler.reach = reach  # type: ignore[method-assign]
        job = mesh.job()
        assert (await run_job(app, job)).text == text_of(job)
        assert [a.number for a in app.jobs()[0].attempts] == [1, 2]
