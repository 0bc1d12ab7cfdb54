"""A worker that dies, freezes, crashes or leaves while it works: the answer goes on at the exact token."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from meshd.core import limits
from meshd.core.errors import NoWorker
from meshd.core.generation import FinishReason
from meshd.node.views import TextDelta
from meshd.testing.fakes import FakeEngine
from tests.helpers import until
from tests.node.mesh import Mesh, MeshNode, Outcome, Setup, all_idle, client, mesh_of, run_job, text_of

pytestmark = pytest.mark.mock_clock
MOVED_WITHIN_S = limits.SUSPECT_AFTER_S + limits.HEARTBEAT_INTERVAL_S


def busy_one(mesh: Mesh) -> MeshNode | None:
    """The worker whose engine works."""
    return next((n for n in mesh.nodes.values() if n.engine.running), None)


async def when(mesh: Mesh, outcome: Outcome, ready: Callable[[], object], do: Callable[[MeshNode], None]) -> MeshNode:
    """Do something to the busy worker as soon as ``ready()``."""
    await until(lambda: busy_one(mesh) is not None and ready(), 10)
    worker = busy_one(mesh)
    assert worker is not None
    do(worker)
    return worker


def check_whole(got: Outcome, text: str, tokens: int) -> None:
    """No token lost, none doubled."""
    assert got.text == text
    assert got.tokens == got.usage.completion_tokens == tokens


@pytest.mark.parametrize("at_token", [0, 1, 7, 18])
async def test_a_killed_worker_is_replaced_at_the_exact_token(at_token: int) -> None:
    async with mesh_of(client(), "w1", "w2", prefill_s=0.05, tokens_per_s=20.0) as mesh:
        app, got, job = mesh.nodes["app"], Outcome(), mesh.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, job, got)
            killed = await when(mesh, got, lambda: got.tokens >= at_token, mesh.kill)
        check_whole(got, text_of(job), 20)
        assert [(r.attempt, r.worker, r.reason) for r in got.reroutes] == [
            (2, busy_other(mesh, killed).node, "connection_lost")
        ]
        view = app.jobs()[0]
        assert [a.number for a in view.attempts] == [1, 2]
        assert view.attempts[0].outcome == "connection_lost"
        assert view.attempts[0].tokens + view.attempts[1].tokens == 20
        gap_ms = view.attempts[1].gap_ms
        assert (gap_ms is None) if at_token == 0 else (gap_ms is not None and 0 < gap_ms < 500)
        await all_idle([app, busy_other(mesh, killed)])


def busy_other(mesh: Mesh, killed: MeshNode) -> MeshNode:
    """The worker that is left."""
    return next(n for n in mesh.nodes.values() if n.setup.models and n is not killed)


async def test_a_worker_killed_between_the_last_token_and_the_last_word_costs_nothing_but_its_receipt() -> None:
    async with mesh_of(client(), "w1", "w2") as mesh:
        app, got, job = mesh.nodes["app"], Outcome(), mesh.job(max_tokens=8)
        for node in mesh.nodes.values():
            node.disk.hold()  # the last word waits for the receipt
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, job, got)
            await until(lambda: got.tokens == 8, 5)
            worker = next(n for n in mesh.nodes.values() if n.engine.started)
            mesh.kill(worker)
        check_whole(got, text_of(job), 8)
        assert got.done is not None and got.done.finish is FinishReason.LENGTH
        assert got.done.receipt is None and got.reroutes == []


async def test_a_frozen_worker_is_left_within_two_seconds_and_its_own_lease_ends_its_engine() -> None:
    async with mesh_of(client(), "w1", "w2", tokens_per_s=4.0) as mesh:
        app, got, job = mesh.nodes["app"], Outcome(), mesh.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, job, got)
            frozen = await when(mesh, got, lambda: got.tokens >= 5, lambda n: mesh.network.freeze(n.node))
            frozen_at_s, tokens = trio.current_time(), got.tokens
            other = busy_other(mesh, frozen)
            await until(lambda: got.reroutes, 10)
            assert trio.current_time() - frozen_at_s <= MOVED_WITHIN_S
            assert got.reroutes[0].at_token == tokens and got.reroutes[0].reason == "silent"
            assert frozen.engine.running == 1, "it does not know yet"
            frozen.engine.hang()
            await until(lambda: not frozen.engine.running, limits.LEASE_S)
            assert trio.current_time() - frozen_at_s <= limits.LEASE_S + 0.1
            mesh.network.thaw(frozen.node)
        check_whole(got, text_of(job), 20)
        assert [r.worker for r in got.reroutes] == [other.node], "what it said late did not count"
        frozen.engine.recover()
        await all_idle(list(mesh.nodes.values()))
        await until(lambda: app.knows(frozen), 15)
        assert (await run_job(app, mesh.job(max_tokens=2))).tokens == 2


async def test_late_words_after_a_thaw_are_ignored() -> None:
    async with mesh_of(client(), "w1", "w2", tokens_per_s=10.0, answer_tokens=100) as mesh:
        app, got, job = mesh.nodes["app"], Outcome(), mesh.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, job, got)
            frozen = await when(mesh, got, lambda: got.tokens >= 5, lambda n: mesh.network.freeze(n.node))
            await until(lambda: got.reroutes and got.tokens > 10, 10)
            mesh.network.thaw(frozen.node)  # it went on, and all it said arrives now
        check_whole(got, text_of(job, 100), 100)
        await all_idle(list(mesh.nodes.values()))


async def test_a_slip_in_an_engine_costs_the_attempt_and_not_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks come from other machines: what nobody foresaw in one must not end the daemon that it reaches."""

    def slips(self: object, *_: object) -> object:
        monkeypatch.undo()
        raise UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed")

    async with mesh_of(client(), "w1", "w2") as mesh:
        monkeypatch.setattr(FakeEngine, "generate", slips)
        got, job = Outcome(), mesh.job()
        await run_job(mesh.nodes["app"], job, got)
        check_whole(got, text_of(job), 20)
        await all_idle(list(mesh.nodes.values()))
        assert (await run_job(mesh.nodes["app"], mesh.job(max_tokens=3))).tokens == 3


async def test_a_crashed_engine_moves_the_job_and_both_keep_the_receipt_of_what_was_done() -> None:
    async with mesh_of(client(), "w1", "w2") as mesh:
        app, got, job = mesh.nodes["app"], Outcome(), mesh.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, job, got)
            crashed = await when(mesh, got, lambda: got.tokens >= 5, lambda n: n.engine.crash())
        check_whole(got, text_of(job), 20)
        assert [r.reason for r in got.reroutes] == ["engine_failed"]
        await all_idle(list(mesh.nodes.values()))
        assert [r.finish for r in crashed.ledger.receipts] == ["engine_failed"]
        first = crashed.ledger.receipts[0]
        await until(lambda: len(app.ledger.receipts) == 2, 1)
        assert app.ledger.receipts[0] == first and first.tokens == got.reroutes[0].at_token


async def test_the_only_engine_crashes_and_the_job_goes_on_when_it_is_back() -> None:
    async with mesh_of("alone") as mesh:
        alone, got, job = mesh.nodes["alone"], Outcome(), mesh.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, alone, job, got)
            await until(lambda: got.tokens >= 3, 5)
            alone.engine.crash()
            await until(lambda: not alone.engine.running, 1)
            alone.engine.recover()
        check_whole(got, text_of(job), 20)
        await all_idle([alone])


async def test_an_engine_that_stays_broken_fails_the_job_in_time() -> None:
    async with mesh_of("alone") as mesh:
        alone = mesh.nodes["alone"]
        alone.engine.crash()
        began_s = trio.current_time()
        with pytest.raises(NoWorker):
            await run_job(alone, mesh.job())
        assert trio.current_time() - began_s < 15
        await all_idle([alone])


async def test_what_was_shown_before_the_loss_is_not_shown_again() -> None:
    async with mesh_of(client(), "w1", "w2", "w3", tokens_per_s=20.0) as mesh:
        app, got, job = mesh.nodes["app"], Outcome(), mesh.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, job, got)
            await when(mesh, got, lambda: got.tokens >= 5, mesh.kill)
            await until(lambda: got.reroutes and got.tokens >= 12, 5)
            await when(mesh, got, lambda: True, mesh.kill)
        check_whole(got, text_of(job), 20)
        assert [r.attempt for r in got.reroutes] == [2, 3]
        deltas = [e.text for e in got.events if isinstance(e, TextDelta)]
        assert "".join(deltas) == text_of(job)


async def test_a_killed_app_leaves_no_orphan() -> None:
    async with mesh_of("worker", client(), tokens_per_s=5.0) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        mesh.nursery.start_soon(_run_until_killed, app, mesh)
        await until(lambda: worker.engine.running, 5)
        mesh.kill(app)
        killed_at_s = trio.current_time()
        await all_idle([worker])
        assert trio.current_time() - killed_at_s < 0.5
        await until(lambda: worker.ledger.receipts, 1)
        assert worker.ledger.receipts[0].finish == "cancelled"


async def _run_until_killed(app: MeshNode, mesh: Mesh) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, mesh.job())
            await app.ended.wait()
            scope.cancel()


async def test_a_partition_between_app_and_worker_is_a_loss_that_heals() -> None:
    async with mesh_of(client(), Setup("w1"), Setup("w2"), tokens_per_s=10.0) as mesh:
        app, got, job = mesh.nodes["app"], Outcome(), mesh.job()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, job, got)
            lost = await when(mesh, got, lambda: got.tokens >= 3, lambda n: mesh.network.cut(n.node))
        check_whole(got, text_of(job), 20)
        mesh.network.heal()
        await until(lambda: app.knows(lost) and lost.knows(app), 30)
        await all_idle(list(mesh.nodes.values()))
