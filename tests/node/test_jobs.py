"""One job on a remote worker: text, usage, receipt, streams, and what is left afterwards."""

from __future__ import annotations

import pytest
import trio

from meshd.core.generation import FinishReason, Token
from meshd.core.share import Share
from meshd.node.views import JobDone, NoopRequest, Opened, TextDelta
from meshd.wire.protocols import TASK
from meshd.wire.receipt import open_receipt, receipt_id
from tests.helpers import until
from tests.node.mesh import MODEL, Setup, all_idle, client, mesh_of, run_job, text_of

pytestmark = pytest.mark.mock_clock


async def test_a_remote_answer_streams_in_order_with_usage_and_the_same_receipt_at_both_ends() -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        job = mesh.job(max_tokens=10)
        got = await run_job(app, job)
        assert got.text == text_of(job, 20)
        assert isinstance(got.events[0], Opened) and isinstance(got.events[-1], JobDone)
        assert all(isinstance(e, TextDelta) for e in got.events[1:-1])
        assert len(set(got.times_s)) > 5, "the tokens came one by one"
        assert got.done is not None and got.done.finish is FinishReason.LENGTH
        assert (got.usage.completion_tokens, got.tokens) == (10, 10) and got.usage.prompt_tokens > 0
        await all_idle([app, worker])
        await until(lambda: app.ledger.signed, 1)
        assert app.ledger.signed == worker.ledger.signed and len(app.ledger.signed) == 1
        signed = app.ledger.signed[0]
        assert got.done.receipt_id == receipt_id(signed) and got.done.receipt == open_receipt(signed, worker.node)


async def test_both_ends_show_the_job() -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        job = mesh.job(max_tokens=5)
        await run_job(app, job)
        ours, theirs = app.jobs()[0], worker.jobs("worker")[0]
        assert (ours.id, ours.finish, ours.completion_tokens) == (job.id, "length", 5)
        assert [(a.number, a.worker_name, a.tokens, a.outcome) for a in ours.attempts] == [(1, "worker", 5, "length")]
        assert (theirs.id, theirs.submitter, theirs.completion_tokens, theirs.state) == (job.id, "app", 5, "ended")
        assert theirs.ended_at is not None and theirs.ended_at >= theirs.started_at


async def test_the_next_job_uses_the_same_stream() -> None:
    async with mesh_of(client(), "worker") as mesh:
        app = mesh.nodes["app"]
        for _ in range(5):
            await run_job(app, mesh.job(max_tokens=3))
        assert [p for _, p in app.opened].count(TASK) == 1


async def test_jobs_at_once_use_a_stream_each_and_keep_them() -> None:
    async with mesh_of(client(), "worker", slots=8) as mesh:
        app = mesh.nodes["app"]
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(run_job, app, mesh.job())
            await all_idle(list(mesh.nodes.values()))
        assert [p for _, p in app.opened].count(TASK) == 6


async def test_a_noop_goes_there_and_back() -> None:
    async with mesh_of(client(), "worker") as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        report = await app.service.noop(NoopRequest("worker", count=5, concurrency=2))
        assert len(report.round_trips_ms) == 5 and 0 < report.ms < 20
        assert worker.engine.started == 0
        assert [j.kind for j in worker.jobs("worker")] == ["noop"] * 5
        await until(lambda: len(app.ledger.signed) == 5, 1)
        assert sorted(app.ledger.signed) == sorted(worker.ledger.signed)


async def test_a_job_of_its_own_runs_on_the_node_that_does_not_share() -> None:
    async with mesh_of(Setup("alone", Share(), (MODEL,))) as mesh:
        alone = mesh.nodes["alone"]
        job = mesh.job()
        assert (await run_job(alone, job)).text == text_of(job)
        await all_idle([alone])
        assert alone.jobs("worker") == [], "the node's own jobs are told once"


async def test_tokens_of_long_pieces_are_cut_into_frames_that_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshd.testing.fakes.fake_token", lambda prompt, seed, index: Token(index, 1, b"x" * 3000))
    async with mesh_of(client(), "worker", tokens_per_s=1e6, answer_tokens=300) as mesh:
        app, job = mesh.nodes["app"], mesh.job()
        got = await run_job(app, job)
        assert got.text == "x" * 3000 * 300 and got.tokens == 300 and got.reroutes == []
