"""Jobs that wait because every worker is busy: for how long, how many, and who goes first."""

from __future__ import annotations

import pytest
import trio

from meshd.core.classes import Region
from meshd.core.errors import NoWorker, Overloaded
from meshd.core.job import Constraints, Job, TaskKind
from tests.helpers import until
from tests.node.mesh import (
    PATIENCE_S,
    QUEUE_S,
    Mesh,
    MeshNode,
    Outcome,
    Setup,
    all_idle,
    client,
    mesh_of,
    run_job,
    text_of,
)

pytestmark = pytest.mark.mock_clock
PACE = {"slots": 1, "tokens_per_s": 10.0}
"""One answer at a time, each of 20 tokens takes 2 s."""

ANSWER_S = 2.0


async def submit_in_order(app: MeshNode, nursery: trio.Nursery, *jobs: Job) -> list[Outcome]:
    """Start the jobs, each once the one before it runs or waits."""
    outcomes = []
    for job in jobs:
        outcomes.append(Outcome())
        nursery.start_soon(run_job, app, job, outcomes[-1])
        await until(lambda job=job: any(j.id == job.id and j.state in ("running", "waiting") for j in app.jobs()), 2)  # type: ignore[misc]
    return outcomes


def declined(app: MeshNode) -> int:
    """Offers that were declined, of all jobs."""
    return sum(a.outcome.startswith("declined") for job in app.jobs() for a in job.attempts)


@pytest.mark.parametrize("slots", [1, 2])
async def test_first_come_first_served_longer_than_patience_and_without_offers_in_vain(slots: int) -> None:
    async with mesh_of(client(), "worker", slots=slots, tokens_per_s=10.0) as mesh:
        app = mesh.nodes["app"]
        jobs = [mesh.job(f"{n}") for n in range(10)]
        async with trio.open_nursery() as nursery:
            outcomes = await submit_in_order(app, nursery, *jobs)
        ends_s = [o.times_s[-1] for o in outcomes]
        assert ends_s == sorted(ends_s) and ends_s[-1] > PATIENCE_S + ANSWER_S
        assert [o.text for o in outcomes] == [text_of(j) for j in jobs]
        assert ends_s[-1] - outcomes[0].times_s[0] < len(jobs) / slots * (ANSWER_S + 0.2), "no slot stood empty"
        assert declined(app) <= 2
        await all_idle(list(mesh.nodes.values()))


async def test_who_comes_when_a_slot_is_free_again_does_not_go_before_those_who_wait() -> None:
    async with mesh_of(client(), "worker", **PACE) as mesh:
        app = mesh.nodes["app"]
        first, second, late = (mesh.job(name) for name in ("first", "second", "late"))
        async with trio.open_nursery() as nursery:
            outcomes = await submit_in_order(app, nursery, first, second)
            await until(lambda: outcomes[0].done is not None, 2 * ANSWER_S)
            came_last = Outcome()
            nursery.start_soon(run_job, app, late, came_last)
        assert outcomes[1].times_s[-1] + ANSWER_S <= came_last.times_s[-1]


async def test_the_queue_has_an_end_and_the_app_is_told_to_come_back() -> None:
    async with mesh_of(client(), "worker", slots=1, tokens_per_s=0.1) as mesh:
        app = mesh.nodes["app"]
        async with trio.open_nursery() as nursery:
            await submit_in_order(app, nursery, mesh.job("long"))
            began_s = trio.current_time()
            with pytest.raises(Overloaded, match="busy") as refused:
                await run_job(app, mesh.job("waits"))
            assert trio.current_time() - began_s == pytest.approx(QUEUE_S, abs=0.1) and refused.value.retry_after_s > 0
            nursery.cancel_scope.cancel()


async def test_no_more_wait_than_may_and_the_others_are_told_at_once() -> None:
    async with mesh_of(Setup("app", models=(), max_waiting=2), "worker", slots=1, tokens_per_s=10.0) as mesh:
        app = mesh.nodes["app"]
        jobs = [mesh.job(f"{n}") for n in range(3)]
        async with trio.open_nursery() as nursery:
            outcomes = await submit_in_order(app, nursery, *jobs)
            began_s = trio.current_time()
            with pytest.raises(Overloaded):
                await run_job(app, mesh.job("one too many"))
            assert trio.current_time() == began_s
        assert [o.text for o in outcomes] == [text_of(j) for j in jobs], "who waits is not sent away for it"


async def test_a_job_that_lost_its_worker_waits_though_the_queue_is_full() -> None:
    async with mesh_of(Setup("app", models=(), max_waiting=0), "one", "two", **PACE) as mesh:
        app = mesh.nodes["app"]
        jobs = [mesh.job(f"{n}") for n in range(2)]
        async with trio.open_nursery() as nursery:
            outcomes = await submit_in_order(app, nursery, *jobs)
            await until(lambda: all(o.tokens for o in outcomes), ANSWER_S)
            mesh.kill(mesh.nodes["two"])
        assert [o.text for o in outcomes] == [text_of(j) for j in jobs]


async def test_who_waits_for_a_region_holds_up_nobody_who_needs_none() -> None:
    async with mesh_of(client(), Setup("paris", region="eu/fr/paris"), Setup("ny", region="us/ny"), **PACE) as mesh:
        app = mesh.nodes["app"]
        in_paris = Constraints(regions=(Region("eu/fr"),))
        async with trio.open_nursery() as nursery:
            await submit_in_order(app, nursery, *(mesh.job(f"{n}", constraints=in_paris) for n in range(3)))
            began_s = trio.current_time()
            await run_job(app, mesh.job("anywhere"))
            assert trio.current_time() - began_s < ANSWER_S + 0.5


async def test_nobody_there_is_still_told_when_patience_ends_and_busy_ones_that_leave_begin_it_anew() -> None:
    async with mesh_of(client(), "worker", slots=1, tokens_per_s=1.0) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        async with trio.open_nursery() as nursery:
            running = mesh.job("long")
            nursery.start_soon(swallow, app, running)
            await until(lambda: any(j.state == "running" for j in app.jobs()), 2)
            nursery.start_soon(expect_no_worker, app, mesh)
            await until(lambda: any(j.state == "waiting" for j in app.jobs()), 2)
            await trio.sleep(PATIENCE_S + 1)
            mesh.kill(worker)


async def swallow(app: MeshNode, job: Job) -> None:
    with pytest.raises(NoWorker):
        await run_job(app, job)


async def expect_no_worker(app: MeshNode, mesh: Mesh) -> None:
    began_s = trio.current_time()
    with pytest.raises(NoWorker):
        await run_job(app, mesh.job("waits"))
    assert 2 * PATIENCE_S < trio.current_time() - began_s < 2 * PATIENCE_S + 5


async def test_a_no_op_waits_for_no_slot_that_others_were_offered() -> None:
    async with mesh_of(client(), "worker", slots=2, tokens_per_s=10.0) as mesh:
        app = mesh.nodes["app"]
        noops = [Job(mesh.new_id(), TaskKind.NOOP, "", None, Constraints()) for _ in range(8)]
        async with trio.open_nursery() as nursery:
            for noop in noops:
                nursery.start_soon(run_job, app, noop)
        assert all([a.outcome for a in job.attempts] == ["stop"] for job in app.jobs())
