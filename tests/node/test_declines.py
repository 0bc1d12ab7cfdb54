"""Workers that say no, and the owner's will: what an app gets, when, and from whom."""

from __future__ import annotations

import pytest
import trio

from meshd.core.classes import DataClass, Region
from meshd.core.errors import BadInput, NoWorker, Overloaded, UnknownModel
from meshd.core.generation import Generation, Prompt
from meshd.core.job import Constraints, Job
from meshd.core.share import Share
from meshd.node.views import JobView
from meshd.policy.feasible import Candidate, Facts
from tests.helpers import until
from tests.node.mesh import MODEL, PATIENCE_S, MeshNode, Outcome, Setup, all_idle, client, mesh_of, run_job, text_of

pytestmark = pytest.mark.mock_clock
SECRET = Constraints(DataClass.RESTRICTED)


def believe(app: MeshNode, worker: MeshNode) -> None:
    """Let ``app`` believe that ``worker`` may do everything: only the worker's own word counts then."""
    candidate = app.view.get(worker.node)
    assert candidate is not None
    view, put = app.view, app.view.put

    def always(said: Candidate) -> None:
        if said.node == worker.node:
            said = Candidate(candidate.ad, Facts(Region("eu/de/berlin"), DataClass.RESTRICTED))
        put(said)

    view.put = always  # type: ignore[method-assign]
    view.put(candidate)


def outcomes(app: MeshNode) -> list[str]:
    """How the attempts of the app's latest job ended."""
    return [a.outcome for a in app.jobs()[0].attempts]


@pytest.mark.parametrize(
    ("share", "reason"),
    [(Share(), "not_sharing"), (Share(enabled=True, paused=True), "paused")],
)
async def test_the_owner_has_the_last_word_whatever_the_app_believes(share: Share, reason: str) -> None:
    async with mesh_of(client(), Setup("no"), "yes") as mesh:
        app, no = mesh.nodes["app"], mesh.nodes["no"]
        believe(app, no)
        app.view.remove(mesh.nodes["yes"].node)
        await no.guest.change(enabled=share.enabled, paused=share.paused)
        got, job = Outcome(), mesh.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, job, got)
            await until(lambda: app.jobs() and app.jobs()[0].attempts and outcomes(app)[0], 1)
        assert outcomes(app)[0] == f"declined: {reason}" and outcomes(app)[-1] == "stop"
        assert got.text == text_of(job) and no.engine.started == 0
        assert got.reroutes == [], "a decline is no reroute"
        await all_idle(list(mesh.nodes.values()))


@pytest.mark.parametrize(
    ("setup", "constraints", "reason"),
    [
        (Setup("no", clearance=DataClass.PUBLIC), SECRET, "clearance"),
        (Setup("no", region="us/ny"), Constraints(regions=(Region("eu"),)), "region"),
    ],
)
async def test_class_and_region_are_judged_by_the_worker_too(
    setup: Setup, constraints: Constraints, reason: str
) -> None:
    async with mesh_of(client(), setup) as mesh:
        app = mesh.nodes["app"]
        with pytest.raises(NoWorker) as refused:
            await run_job(app, mesh.job(constraints=constraints))
        assert reason in refused.value.message and app.jobs()[0].attempts == ()
        believe(app, mesh.nodes["no"])
        with pytest.raises(NoWorker):
            await run_job(app, mesh.job(constraints=constraints))
        assert outcomes(app) == [f"declined: {reason}"], "once is enough: it stays true"


async def test_a_model_that_is_gone_since_the_ad_is_declined() -> None:
    async with mesh_of(client(), "no") as mesh:
        app, no = mesh.nodes["app"], mesh.nodes["no"]
        believe(app, no)
        await no.service.remove_model(MODEL.name)
        with pytest.raises(NoWorker):
            await run_job(app, mesh.job())
        assert outcomes(app) == ["declined: no_model"]


async def test_a_model_nobody_offers_is_told_soon() -> None:
    async with mesh_of(client(), "worker") as mesh:
        began_s = trio.current_time()
        with pytest.raises(UnknownModel):
            await run_job(mesh.nodes["app"], mesh.job(model="unheard-of"))
        assert trio.current_time() - began_s < PATIENCE_S / 2


async def test_a_busy_worker_is_asked_again_until_it_is_free() -> None:
    async with mesh_of(client(), "worker", slots=1, tokens_per_s=20.0) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        believe(app, worker)
        jobs, got = [mesh.job(f"{i}") for i in range(3)], [Outcome() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for job, outcome in zip(jobs, got, strict=True):
                nursery.start_soon(run_job, app, job, outcome)
        assert [o.text for o in got] == [text_of(j) for j in jobs]
        assert worker.engine.most_running == 1
        assert any("declined: busy" in [a.outcome for a in view.attempts] for view in app.jobs())


async def test_nobody_left_is_told_when_patience_ends() -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        await worker.service.pause()
        await until(lambda: (seen := app.view.get(worker.node)) and seen.ad.state == "paused", 2)
        began_s = trio.current_time()
        with pytest.raises(NoWorker, match="paused"):
            await run_job(app, mesh.job())
        assert trio.current_time() - began_s == pytest.approx(PATIENCE_S)


async def test_a_waiting_job_goes_on_as_soon_as_somebody_can() -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        await worker.service.pause()
        await until(lambda: (seen := app.view.get(worker.node)) and seen.ad.state == "paused", 2)
        got, job = Outcome(), mesh.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, job, got)
            await until(lambda: app.jobs() and app.jobs()[0].state == "waiting", 1)
            resumed_s = trio.current_time()
            await worker.service.resume()
        assert got.text == text_of(job) and got.times_s[0] - resumed_s < 0.2


# -- the owner's will


async def test_draining_hands_over_what_still_runs_at_the_deadline() -> None:
    async with mesh_of(client(), "w1", "w2", tokens_per_s=2.0) as mesh:
        app, got, job = mesh.nodes["app"], Outcome(), mesh.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, job, got)
            await until(lambda: got.tokens >= 2, 5)
            drained = next(n for n in mesh.nodes.values() if n.engine.running)
            began_s = trio.current_time()
            view = await drained.service.drain(3.0)
            assert view.draining and trio.current_time() - began_s == pytest.approx(3.0, abs=0.1)
            await until(lambda: got.reroutes, 1)
        assert got.text == text_of(job) and [r.reason for r in got.reroutes] == ["draining"]
        assert app.view.bans.score(drained.node, trio.current_time()) == 0, "leaving in order is no fault"
        await until(lambda: drained.ledger.receipts, 1)
        assert drained.ledger.receipts[0].finish == "draining"


async def test_draining_ends_as_soon_as_nothing_runs_and_declines_what_comes() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=10.0) as mesh:
        app, worker, got = mesh.nodes["app"], mesh.nodes["worker"], Outcome()
        believe(app, worker)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, mesh.job(), got)
            await until(lambda: got.tokens >= 2, 5)
            began_s = trio.current_time()
            await worker.service.drain(60.0)
            assert trio.current_time() - began_s < 3
            await until(lambda: got.tokens == 20, 0.1)
        with pytest.raises(NoWorker):
            await run_job(app, mesh.job())
        assert set(outcomes(app)) == {"declined: draining"}
        await worker.service.resume()
        assert (await run_job(app, mesh.job())).tokens == 20


async def test_unsharing_hands_over_at_once_and_the_owner_keeps_working() -> None:
    async with mesh_of(client(), "w1", "w2", tokens_per_s=5.0) as mesh:
        app, got, job = mesh.nodes["app"], Outcome(), mesh.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, job, got)
            await until(lambda: got.tokens >= 2, 5)
            owner = next(n for n in mesh.nodes.values() if n.engine.running)
            own, own_job = Outcome(), mesh.job("my own")
            nursery.start_soon(run_job, owner, own_job, own)
            await until(lambda: own.tokens >= 1, 5)
            began_s = trio.current_time()
            assert not (await owner.service.unshare()).enabled
            assert trio.current_time() - began_s < 0.5
            await until(lambda: got.reroutes, 1)
        assert (got.text, own.text) == (text_of(job), text_of(own_job))
        assert own.reroutes == []


@pytest.mark.parametrize("will", ["unshare", "pause", "drain"])
async def test_own_jobs_run_whatever_others_are_refused(will: str) -> None:
    async with mesh_of("owner") as mesh:
        owner = mesh.nodes["owner"]
        await (owner.service.drain(0.0) if will == "drain" else getattr(owner.service, will)())
        job = mesh.job()
        assert (await run_job(owner, job)).text == text_of(job)


async def test_a_pause_lets_running_work_end() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=10.0) as mesh:
        app, worker, got, job = mesh.nodes["app"], mesh.nodes["worker"], Outcome(), mesh.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, job, got)
            await until(lambda: got.tokens >= 2, 5)
            assert (await worker.service.pause()).paused
        assert got.text == text_of(job) and got.reroutes == []


async def test_who_waits_for_a_drain_is_told_when_another_replaces_or_ends_it() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=1.0) as mesh:
        app, worker, got = mesh.nodes["app"], mesh.nodes["worker"], Outcome()
        for end in (worker.service.resume, worker.service.unshare):
            async with trio.open_nursery() as nursery:
                await worker.service.share(None, None)
                await until(lambda: app.view.open_to(mesh.job(), None), 2)
                nursery.start_soon(_run_or_fail, app, mesh.job(), got)
                await until(lambda: worker.engine.running, 5)
                async with trio.open_nursery() as drains:
                    drains.start_soon(worker.service.drain, 600.0)
                    await until(lambda: worker.execution.draining, 1)
                    await end()
                nursery.cancel_scope.cancel()
            await all_idle([app, worker])


async def _run_or_fail(node: MeshNode, job: Job, got: Outcome) -> None:
    await run_job(node, job, got)


# -- bounds


async def test_an_app_may_run_so_many_jobs_and_no_more() -> None:
    async with mesh_of(Setup("alone", max_running=2)) as mesh:
        alone = mesh.nodes["alone"]
        async with alone.service.submit(mesh.job()), alone.service.submit(mesh.job()):
            with pytest.raises(Overloaded) as refused:
                async with alone.service.submit(mesh.job()):
                    raise AssertionError("a third job was taken")
            assert refused.value.retry_after_s is not None
        assert (await run_job(alone, mesh.job())).tokens == 20
        await all_idle([alone])


async def test_streams_to_one_worker_are_bounded_and_jobs_beyond_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshd.node.streams.MAX_STREAMS_PER_PEER", 2)
    async with mesh_of(client(), "worker", slots=8) as mesh:
        app, got = mesh.nodes["app"], [Outcome() for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for outcome in got:
                nursery.start_soon(run_job, app, mesh.job(), outcome)
        assert [o.tokens for o in got] == [20] * 5
        assert mesh.nodes["worker"].engine.most_running == 2
        views: list[JobView] = app.jobs()
        assert any(len(v.attempts) > 1 for v in views)


async def test_a_task_that_cannot_be_sent_fails_its_job_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mesh_of(client(), "worker") as mesh:
        app = mesh.nodes["app"]
        monkeypatch.setattr("meshd.core.limits.MAX_TASK_BYTES", 1000)
        with pytest.raises(NoWorker):
            await run_job(app, mesh.job("x" * 2000))
        monkeypatch.undo()
        assert (await run_job(app, mesh.job())).tokens == 20


def test_a_stop_string_that_no_task_can_carry_is_refused() -> None:
    with pytest.raises(BadInput):
        Generation(Prompt("x"), stop=("\ud800",))
