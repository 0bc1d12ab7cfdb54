"""Who is there: nodes learn of each other, of deaths, goodbyes and returns, each in its time."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from meshd.core import limits
from meshd.machine.membership_events import Source
from meshd.policy.suspicion import Liveness
from meshd.wire import frames
from meshd.wire.protocols import CONTROL
from tests.helpers import until
from tests.node.mesh import Mesh, MeshNode, Setup, client, mesh_of, run_job, text_of
from tests.node.rogue import Rogue

pytestmark = pytest.mark.mock_clock
GONE_WITHIN_S = 15.0
TELLS_AT_ONCE_S = limits.HEARTBEAT_INTERVAL_S


def nodes_of(mesh: Mesh) -> list[MeshNode]:
    return list(mesh.nodes.values())


async def all_linked(mesh: Mesh) -> list[MeshNode]:
    """The nodes, once each has a control stream with each other."""
    nodes = nodes_of(mesh)
    await until(lambda: all(_linked(a, b) for a in nodes for b in nodes if a is not b), 10)
    return nodes


async def test_nodes_that_never_met_learn_of_each_other_from_a_third() -> None:
    one = {"max_neighbours": 1}
    async with mesh_of("hub", Setup("left", **one), Setup("right", **one)) as mesh:
        hub, left, right = nodes_of(mesh)
        assert left.transport.connected() == right.transport.connected() == (hub.node,)
        assert left.knows(right) and right.knows(left)
        assert left.neighbours.name_of(right.node) == "right"
        job = mesh.job()
        hub.view.remove(left.node)
        assert (await run_job(left, job)).text == text_of(job)


async def test_a_job_goes_to_a_node_that_is_only_heard_about() -> None:
    one = {"max_neighbours": 1}
    hub = client("hub")
    async with mesh_of(hub, client("left"), Setup("right", **one)) as mesh:
        left, right = mesh.nodes["left"], mesh.nodes["right"]
        mesh.network.disconnect(left.node, right.node)
        await until(lambda: left.knows(right), 10)
        job = mesh.job()
        assert (await run_job(left, job)).text == text_of(job)


async def test_five_nodes_find_each_other_and_each_pair_has_one_control_stream() -> None:
    async with mesh_of(*(f"n{i}" for i in range(5))) as mesh:
        nodes = await all_linked(mesh)
        opened = [(n.node, peer) for n in nodes for peer, protocol in n.opened if protocol == CONTROL]
        assert len(opened) == len(set(opened)) == 10
        assert all(a < b for a, b in opened), "the smaller id opens it"


async def test_a_killed_node_is_suspect_at_once_and_gone_from_every_view_in_time() -> None:
    async with mesh_of("n0", "n1", "n2", "n3") as mesh:
        *left, dead = await all_linked(mesh)
        mesh.kill(dead)
        killed_at_s = trio.current_time()
        await until(lambda: all(n.sees(dead) is Liveness.SUSPECT for n in left), TELLS_AT_ONCE_S)
        await until(lambda: all(n.sees(dead) is Liveness.GONE for n in left), GONE_WITHIN_S)
        assert trio.current_time() - killed_at_s <= GONE_WITHIN_S
        for node in left:
            assert node.view.get(dead.node) is None and dead.node not in node.neighbours._values
            assert dead.node not in node.neighbours._certificates
            assert dead.node not in dict(node.neighbours.addresses())
            assert all(node.knows(other) for other in left if other is not node)
        with trio.move_on_after(GONE_WITHIN_S):
            await until(lambda: any(n.sees(dead) is not Liveness.GONE for n in left), GONE_WITHIN_S + 1)
            raise AssertionError("gossip brought the dead back")


async def test_a_frozen_neighbour_is_suspect_in_two_seconds_dropped_later_and_back_when_thawed() -> None:
    async with mesh_of("n0", "n1", "n2") as mesh:
        *others, frozen = await all_linked(mesh)
        mesh.network.freeze(frozen.node)
        frozen_at_s = trio.current_time()
        await until(lambda: all(n.sees(frozen) is Liveness.SUSPECT for n in others), 3)
        assert trio.current_time() - frozen_at_s <= limits.SUSPECT_AFTER_S + limits.HEARTBEAT_INTERVAL_S
        await until(lambda: not frozen.transport.connected(), 15)
        assert trio.current_time() - frozen_at_s <= GONE_WITHIN_S
        mesh.network.thaw(frozen.node)
        await mesh.met(timeout_s=40)


async def test_a_short_freeze_costs_no_connection() -> None:
    async with mesh_of("n0", "n1") as mesh:
        a, b = nodes_of(mesh)
        before = len(a.opened) + len(b.opened)
        mesh.network.freeze(b.node)
        await until(lambda: a.sees(b) is Liveness.SUSPECT, 3)
        mesh.network.thaw(b.node)
        await until(lambda: a.knows(b), 1)
        assert len(a.opened) + len(b.opened) == before


async def test_a_goodbye_is_believed_at_once() -> None:
    async with mesh_of("n0", "n1", "n2") as mesh:
        *others, leaver = await all_linked(mesh)
        last_ad = leaver.presence.sealed_ad()
        leaver.asked_to_stop.set()
        await leaver.ended.wait()
        mesh.network.kill(leaver.node)
        await until(lambda: all(n.sees(leaver) is Liveness.GONE for n in others), TELLS_AT_ONCE_S)
        assert all(n.view.get(leaver.node) is None for n in others)
        assert all(leaver.node not in n.neighbours._links for n in others)
        others[0].neighbours.hear(last_ad, Source.GOSSIP)
        assert others[0].sees(leaver) is Liveness.GONE and leaver.node not in others[0].neighbours._values
        with trio.move_on_after(GONE_WITHIN_S):
            await until(lambda: any(n.sees(leaver) is not Liveness.GONE for n in others), GONE_WITHIN_S + 1)
            raise AssertionError("an old ad brought it back")
        assert all(leaver.node not in n.neighbours._values for n in others), "nothing of it is kept"
        assert all(leaver.node not in n.neighbours._certificates for n in others)


@pytest.mark.parametrize("stop", ["kill", "goodbye"])
async def test_a_node_that_starts_again_is_alive_again_at_once(stop: str) -> None:
    async with mesh_of("n0", "n1", "n2") as mesh:
        *others, node = await all_linked(mesh)
        if stop == "kill":
            mesh.kill(node)
        node.asked_to_stop.set()
        await node.ended.wait()
        mesh.network.kill(node.node)
        await until(lambda: all(n.sees(node) is not Liveness.ALIVE for n in others), 1)
        again = await mesh.start(node.setup)
        await until(lambda: all(n.knows(again) for n in others) and all(again.knows(n) for n in others), 4)
        seen = others[0].view.get(again.node)
        assert seen is not None and seen.ad.boot > 1
        job = mesh.job()
        assert (await run_job(again, job)).text == text_of(job)


async def test_a_partition_heals_on_both_sides() -> None:
    async with mesh_of("n0", "n1", "n2", "n3") as mesh:
        nodes = nodes_of(mesh)
        left, right = nodes[:2], nodes[2:]
        mesh.network.cut(*(n.node for n in left))
        await until(lambda: all(a.sees(b) is Liveness.GONE for a in left for b in right), 30)
        await until(lambda: all(b.sees(a) is Liveness.GONE for a in left for b in right), 30)
        assert left[0].knows(left[1]) and right[0].knows(right[1])
        mesh.network.heal()
        await mesh.met(timeout_s=60)


async def test_news_of_a_slot_reaches_the_neighbours_at_once() -> None:
    async with mesh_of(client(), "worker", slots=2, tokens_per_s=2.0) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, mesh.job())
            await until(lambda: worker.engine.running, 2)
            await until(lambda: (seen := app.view.get(worker.node)) and seen.ad.slots_free == 1, TELLS_AT_ONCE_S)
            nursery.cancel_scope.cancel()
        await until(lambda: (seen := app.view.get(worker.node)) and seen.ad.slots_free == 2, TELLS_AT_ONCE_S)


async def test_a_clock_that_is_wrong_is_told_in_words_and_no_more_once_it_is_right() -> None:
    async with mesh_of("right") as mesh:
        right = mesh.nodes["right"]
        wrong = await mesh.start(Setup("wrong", skew_s=60.0))
        await until(lambda: right.neighbours.clock_warning and wrong.neighbours.clock_warning, 5)
        assert "60 s ahead" in right.neighbours.clock_warning and "wrong" in right.neighbours.clock_warning
        assert "60 s behind" in wrong.neighbours.clock_warning
        assert right.neighbours.clock_warning in (await right.service.status()).warnings
        assert not right.knows(wrong), "its ads are from the future"
        wrong.skew_s = 0.0
        mesh.network.disconnect(right.node, wrong.node)
        await until(lambda: right.knows(wrong) and not right.neighbours.clock_warning, 15)
        assert (await right.service.status()).warnings == ()


async def test_when_both_open_a_control_stream_they_agree_in_the_end() -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, worker = nodes_of(mesh)
        mesh.nursery.start_soon(max(app, worker, key=lambda n: n.node).neighbours._open, min(app.node, worker.node))
        await until(lambda: sum(p == CONTROL for n in (app, worker) for _, p in n.opened) == 2, 1)
        await until(lambda: app.knows(worker) and worker.knows(app) and _linked(app, worker), 15)
        for _ in range(4):
            with trio.move_on_after(limits.SUSPECT_AFTER_S):
                await until(lambda: not (app.knows(worker) and worker.knows(app)), GONE_WITHIN_S)
                raise AssertionError("they lost each other")


def _linked(a: MeshNode, b: MeshNode) -> bool:
    return b.node in a.neighbours._links and a.node in b.neighbours._links


async def test_a_neighbour_that_reads_nothing_costs_no_memory() -> None:
    async with mesh_of("n0") as mesh:
        node, rogue = mesh.nodes["n0"], Rogue(mesh)
        await rogue.meet(node)
        stream = await rogue.control(node)
        await stream.send(*frames.encode_control(frames.Hello(node.wall(), "rogue")))
        await until(lambda: rogue.node in node.neighbours._links, 1)
        link = node.neighbours._links[rogue.node]
        for _ in range(2000):
            link.say(frames.Ping(1))
        assert link.outbox.statistics().current_buffer_used <= 64


async def test_a_failure_on_an_old_connection_leaves_the_new_one_alone() -> None:
    async with mesh_of("n0", "n1") as mesh:
        a, b = await all_linked(mesh)
        for _ in range(3):
            mesh.network.disconnect(a.node, b.node)
            mesh.network.connect(a.node, b.node)
            await trio.testing.wait_all_tasks_blocked()  # the control stream is being opened
            mesh.network.disconnect(a.node, b.node)
            mesh.network.connect(a.node, b.node)
            connection = a.transport.links[b.node]
            await until(lambda: _linked(a, b), 0.5)
            assert a.transport.links[b.node] is connection and a.knows(b)
