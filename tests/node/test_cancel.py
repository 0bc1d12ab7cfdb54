"""Apps that leave early: at any moment, many at once. Nothing is left running, nothing is left behind."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest
import trio
import trio.testing

from meshd.core.errors import NoWorker, Overloaded
from meshd.core.job import Job
from meshd.core.share import Share
from meshd.wire.protocols import TASK
from tests.helpers import until
from tests.node.mesh import MODEL, Mesh, MeshNode, Outcome, Setup, all_idle, client, mesh_of, run_job, text_of

pytestmark = pytest.mark.mock_clock


async def leave_after(node: MeshNode, job: Job, seconds: float) -> Outcome:
    """Run a job for so long, then leave."""
    got = Outcome()
    with trio.move_on_after(seconds):
        with suppress(NoWorker, Overloaded):
            await run_job(node, job, got)
    return got


def tasks_of(node: MeshNode) -> int:
    """Tasks that serve jobs at ``node``."""
    nurseries = [node.worker._nursery, node.submitter._nursery]
    return sum(len(n.child_tasks) for n in nurseries if n is not None)


async def test_an_app_that_leaves_frees_the_worker_at_once_and_its_stream_is_reused() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=10.0) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        before = tasks_of(app), tasks_of(worker)
        for _ in range(3):
            got = await leave_after(app, mesh.job(), 1.0)
            assert 5 < got.tokens < 15
            left_at_s = trio.current_time()
            await all_idle([app, worker])
            assert trio.current_time() - left_at_s < 0.05
        assert (tasks_of(app), tasks_of(worker)) == before
        assert [p for _, p in app.opened].count(TASK) == 1, "a cancel that was answered in order costs no stream"
        await until(lambda: len(app.ledger.receipts) == 3, 1)
        assert [r.finish for r in worker.ledger.receipts] == ["cancelled"] * 3
        assert app.ledger.signed == worker.ledger.signed
        assert app.jobs()[0].finish == "cancelled"


async def test_leaving_while_the_connection_is_being_made_leaves_nothing() -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        mesh.network.freeze(worker.node)
        got = await leave_after(app, mesh.job(), 0.3)
        assert got.events == []
        await until(lambda: app.idle() and not app.streams._open, 1)
        mesh.network.thaw(worker.node)
        await all_idle([app, worker])
        assert worker.engine.started == 0


async def test_leaving_while_the_offer_is_on_its_way_leaves_no_engine() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=1.0) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        for turn in range(30):
            await leave_after(app, mesh.job(), turn * mesh.network.latency_s / 4)
        await all_idle([app, worker])
        assert len(app.streams._open) <= 1 and sum(map(len, app.streams._idle.values())) <= 16


async def test_a_cancel_is_not_lost_behind_a_renewal() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=1.0) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_after, app, mesh.job(), 3.0)
            await until(lambda: app.submitter._talks and worker.engine.running, 2)
            (talk,) = app.submitter._talks.values()
            async with talk.sending:  # as a renewal does that the network takes its time for
                await until(lambda: talk.cancelled, 5)
            cancelled_at_s = trio.current_time()
            await until(lambda: not worker.engine.running, 0.5)
        assert trio.current_time() - cancelled_at_s < 0.1
        await all_idle([app, worker])
        assert worker.ledger.receipts[0].finish == "cancelled"
        assert len(app.streams._idle[worker.node]) == 1, "ended in order"


async def test_a_stream_still_being_spoken_on_carries_no_other_attempt() -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, mesh.job())
            await until(lambda: app.submitter._talks, 2)
            (talk,) = app.submitter._talks.values()
            async with talk.sending:
                await until(lambda: not app.submitter._running, 2)
                await trio.testing.wait_all_tasks_blocked()
                assert not app.streams._idle.get(worker.node)
        await until(lambda: app.streams._idle.get(worker.node), 1)


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm_of_cancels_leaves_nothing(seed: int) -> None:
    chance = random.Random(seed)
    own = Setup("app", Share(), (MODEL,))
    async with mesh_of(own, "w1", "w2", slots=3, tokens_per_s=50.0, prefill_s=0.01) as mesh:
        nodes = list(mesh.nodes.values())
        before = [tasks_of(n) for n in nodes]
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                asker = chance.choice(nodes)
                nursery.start_soon(leave_after, asker, mesh.job(), chance.choice([0.0, 0.001, chance.random()]))
                with trio.move_on_after(chance.random() / 20):
                    await trio.sleep_forever()
        await all_idle(nodes)
        await trio.testing.wait_all_tasks_blocked()
        for node in nodes:
            node.execution.check_invariants()
            assert all(0 <= n <= 128 for n in node.streams._open.values())
            idle = {peer: len(streams) for peer, streams in node.streams._idle.items() if streams}
            assert idle == node.streams._open, "every open stream is idle"
        serving = sum(len(s) for n in nodes for s in [n.streams._idle.get(n.node, ())])
        assert sum(map(tasks_of, nodes)) == sum(before) + serving, "one task a loopback stream, and no other"
        job = mesh.job()
        assert (await run_job(mesh.nodes["app"], job)).text == text_of(job)


@pytest.mark.parametrize("seed", range(4))
async def test_a_storm_of_cancels_and_faults_leaves_nothing(seed: int) -> None:
    chance = random.Random(100 + seed)
    async with mesh_of(client(), "w1", "w2", "w3", slots=3, tokens_per_s=40.0) as mesh:
        app, workers = mesh.nodes["app"], [n for n in mesh.nodes.values() if n.setup.models]
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(leave_after, app, mesh.job(), chance.random() * 2)
                nursery.start_soon(disturb, mesh, chance.choice(workers), chance)
                with trio.move_on_after(chance.random() / 5):
                    await trio.sleep_forever()
        mesh.network.heal()
        for worker in workers:
            mesh.network.thaw(worker.node)
            worker.engine.recover()
        await all_idle([app, *workers])
        await until(lambda: all(app.knows(w) for w in workers), 40)
        job = mesh.job()
        assert (await run_job(app, job)).text == text_of(job)


async def disturb(mesh: Mesh, worker: MeshNode, chance: random.Random) -> None:
    """One fault that passes."""
    match chance.randrange(4):
        case 0:
            worker.engine.crash()
        case 1:
            mesh.network.freeze(worker.node)
        case 2:
            mesh.network.disconnect(worker.node, mesh.nodes["app"].node)
        case 3:
            worker.engine.hang()
    with trio.move_on_after(chance.random()):
        await trio.sleep_forever()
    mesh.network.thaw(worker.node)
    worker.engine.recover()
