"""Stop strings, in an answer's text as the app sees it; and apps that read slowly."""

from __future__ import annotations

import pytest
import trio

from meshd.core.generation import FinishReason, Generation, Prompt, Usage
from meshd.core.ids import job_id
from meshd.core.job import Job, TaskKind
from meshd.node.answer import AnswerBuffer
from meshd.node.views import JobDone, Rerouted, TextDelta
from meshd.testing.fakes import fake_node
from tests.helpers import until
from tests.node.mesh import PROMPT, Outcome, all_idle, client, mesh_of, run_job, text_of
from tests.node.test_losses import when

pytestmark = pytest.mark.mock_clock


def across(text: str, at: int) -> str:
    """A stop string that begins inside the word number ``at`` and ends inside the next."""
    words = text.split(" ")
    return words[at][1:] + " " + words[at + 1][:2]


@pytest.mark.parametrize("at", [0, 6, 18])
async def test_a_stop_across_tokens_ends_the_text_before_it_and_the_work_after_it(at: int) -> None:
    async with mesh_of(client(), "worker", tokens_per_s=10.0) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        whole = text_of(mesh.job())
        stop = across(whole, at)
        got = await run_job(app, mesh.job(stop=(stop,)))
        assert got.text == whole[: whole.index(stop)]
        assert got.done is not None and got.done.finish is FinishReason.STOP
        await all_idle([app, worker])
        assert worker.execution.runs() == ()


async def test_a_stop_that_a_reroute_falls_into_is_found_all_the_same() -> None:
    async with mesh_of(client(), "w1", "w2", tokens_per_s=10.0) as mesh:
        app, got = mesh.nodes["app"], Outcome()
        whole = text_of(mesh.job())
        stop = across(whole, 7)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, mesh.job(stop=(stop, "never")), got)
            killed = await when(mesh, got, lambda: got.tokens >= 8, mesh.kill)
        assert got.reroutes[0].at_token == 8, "the first half of the stop was delivered by the first worker"
        assert got.text == whole[: whole.index(stop)]
        assert got.done is not None and got.done.finish is FinishReason.STOP
        await all_idle([n for n in mesh.nodes.values() if n is not killed])


async def test_an_answer_ended_by_a_stop_has_its_workers_receipt() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=10.0) as mesh:
        app, worker = mesh.nodes["app"], mesh.nodes["worker"]
        whole = text_of(mesh.job())
        stop = across(whole, 4)
        worker.engine.answer_tokens = 6
        got = await run_job(app, mesh.job(stop=(stop,)))
        assert got.text == whole[: whole.index(stop)]
        assert got.done is not None and got.done.receipt is not None and got.done.receipt.tokens == 6
        await until(lambda: app.ledger.signed, 1)
        assert app.ledger.signed == worker.ledger.signed


async def test_a_template_of_the_model_adds_its_stops_also_after_a_reroute() -> None:
    whole = text_of(Job(job_id(bytes(16)), TaskKind.GENERATE, "", Generation(Prompt(PROMPT))))
    stop = across(whole, 9)
    async with mesh_of(client(), "w1", "w2", tokens_per_s=10.0, stops=(stop,)) as mesh:
        app, got = mesh.nodes["app"], Outcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_job, app, mesh.job(), got)
            await when(mesh, got, lambda: got.tokens >= 3, mesh.kill)
        assert got.text == whole[: whole.index(stop)] and len(got.reroutes) == 1


# -- slow readers


async def test_a_slow_app_holds_up_nobody_and_gets_everything_in_order() -> None:
    async with mesh_of(client(), "worker", tokens_per_s=1000.0, answer_tokens=800) as mesh:
        app, worker, job, got = mesh.nodes["app"], mesh.nodes["worker"], mesh.job(), Outcome()
        async with app.service.submit(job) as answer:
            await until(lambda: app.jobs()[0].ended_at is not None, 10)
            await all_idle([worker])
            assert len(answer._waiting) <= 3, "what adjoins is joined"
            async for event in answer.events():
                got.take(event)
        assert got.text == text_of(job, 800) and got.tokens == 800
        await all_idle([app])


async def test_other_events_keep_their_place_in_the_text() -> None:
    buffer = AnswerBuffer(job_id(bytes(16)))
    moved = Rerouted(2, fake_node(1), "w", 2, "silent")
    done = JobDone(FinishReason.STOP, Usage(1, 4), None, "")
    for event in (TextDelta("a", 1), TextDelta("b", 1), moved, TextDelta("c", 1), TextDelta("d", 0), done):
        buffer.write(event)
    seen = [event async for event in buffer.events()]
    assert seen == [TextDelta("ab", 2), moved, TextDelta("cd", 1), done]
