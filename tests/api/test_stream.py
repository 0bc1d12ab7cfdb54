"""Streams on the wire: comments, errors, keepalive, and clients that go away or stop reading."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from meshd.core.errors import NoWorker, Overloaded
from meshd.core.job import Job
from meshd.node.views import AnswerEvent, Rerouted, TextDelta
from tests.api.fake_service import RECEIPT, FakeAnswer, FakeService, done, endless, plays, says, says_then_hangs
from tests.api.running import HELLO, data_of, events_of, read_until, running
from tests.helpers import until

STREAM = json.dumps({**HELLO, "stream": True}).encode()
WHOLE = json.dumps(HELLO).encode()


async def test_a_reroute_is_a_comment_and_the_attempts_are_counted() -> None:
    moved = Rerouted(3, "id", "blue fox\r\n\r\ndata: x", 1, "connection lost")
    async with running(FakeService(plays(TextDelta("a", 1), moved, TextDelta("b", 1), done(2)))) as api:
        streamed = await api.chat(stream=True)
        whole = (await api.chat()).json()
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = events_of(streamed.text)
    comments = [e for e in events if e.startswith(":")]
    assert comments == [
        ": mesh rerouted attempt=3 worker=blue%20fox%0D%0A%0D%0Adata%3A%20x at_token=1 reason=connection%20lost"
    ]
    assert events[-1] == "data: [DONE]"
    job = streamed.headers["X-Mesh-Job"]
    assert data_of(events[-2])["mesh"] == {"job": job, "receipt": RECEIPT, "attempts": 3}
    assert whole["mesh"]["attempts"] == 3 and whole["choices"][0]["message"]["content"] == "ab"


@pytest.mark.parametrize(
    ("failure", "code"), [(NoWorker("nobody"), "mesh_no_worker"), (ValueError("secret"), "internal_error")]
)
async def test_an_error_ends_the_stream_without_done(failure: Exception, code: str) -> None:
    async with running(FakeService(plays(TextDelta("a", 1), failure))) as api:
        text = (await api.chat(stream=True)).text
    events = events_of(text)
    assert data_of(events[-1])["error"]["code"] == code
    assert "[DONE]" not in text and '"finish_reason": "' not in text and "secret" not in text


@pytest.mark.parametrize("stream", [True, False])
async def test_events_that_end_without_an_end_are_an_error(stream: bool) -> None:
    async with running(FakeService(plays(TextDelta("a", 1)))) as api:
        answer = await api.chat(stream=stream)
    assert "internal_error" in answer.text and "[DONE]" not in answer.text
    assert answer.status_code == (200 if stream else 500)


async def test_silence_is_filled_with_comments_and_the_answer_still_comes() -> None:
    go_on = trio.Event()

    async def script(job: Job) -> AsyncIterator[AnswerEvent]:
        await go_on.wait()
        yield TextDelta("late", 1)
        yield done(1)

    async with running(FakeService(script), keepalive_s=0.02) as api, await api.connect() as stream:
        await stream.send_all(api.request(STREAM))
        head = await read_until(stream, b": mesh waiting\n\n")
        assert head.startswith(b"HTTP/1.1 200")
        go_on.set()
        rest = await read_until(stream, b"[DONE]\n\n")
    assert b'"role": "assistant"' in rest and b'"late"' in rest


async def test_a_job_that_waits_for_a_worker_in_vain_fails_with_a_status_though_it_took_long() -> None:
    """Comments come often, but none before it is clear whether anybody takes the job."""
    waited = trio.Event()

    async def script(job: Job) -> AsyncIterator[AnswerEvent]:
        with trio.move_on_after(10 * 0.02):
            await waited.wait()
        raise Overloaded("every worker is busy", retry_after_s=3)
        yield done(0)

    async with running(FakeService(script), keepalive_s=0.02, patience_s=60) as api:
        answer = await api.chat(stream=True)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "3")
    assert "mesh_overloaded" in answer.text


async def test_a_failure_after_a_keepalive_is_an_error_event() -> None:
    go_on = trio.Event()

    async def script(job: Job) -> AsyncIterator[AnswerEvent]:
        await go_on.wait()
        raise NoWorker("nobody")
        yield done(0)

    async with running(FakeService(script), keepalive_s=0.02) as api, await api.connect() as stream:
        await stream.send_all(api.request(STREAM))
        await read_until(stream, b": mesh waiting\n\n")
        go_on.set()
        rest = await read_until(stream, b"0\r\n\r\n")
    assert b'"code": "mesh_no_worker"' in rest and b"[DONE]" not in rest and b"role" not in rest


@pytest.mark.parametrize("body", [STREAM, WHOLE])
async def test_a_client_that_leaves_cancels_its_job(body: bytes) -> None:
    async with running(FakeService(says_then_hangs("a"))) as api:
        stream = await api.connect()
        await stream.send_all(api.request(body))
        if body is STREAM:
            await read_until(stream, b'"a"')
        await until(lambda: api.service.running == 1, 5, "the job's start")
        await stream.aclose()
        await until(lambda: api.service.running == 0, 10, "the job's cancellation")


async def test_a_client_that_leaves_while_much_is_being_written_cancels_its_job() -> None:
    async with running(FakeService(endless())) as api:
        stream = await api.connect()
        await stream.send_all(api.request(STREAM))
        await read_until(stream, b"xxx")
        await stream.aclose()
        await until(lambda: api.service.running == 0, 10, "the job's cancellation")


async def test_a_client_that_stops_reading_is_cut_off() -> None:
    async with running(FakeService(endless()), write_stall_s=0.2) as api, await api.connect() as stream:
        await stream.send_all(api.request(STREAM))
        await until(lambda: api.service.running == 1, 5, "the job's start")
        await until(lambda: api.service.running == 0, 5, "the cut")
        with trio.fail_after(5), suppress(trio.BrokenResourceError):  # the kernel's buffers, then the end
            while await stream.receive_some(1 << 20):
                pass


async def test_shutdown_does_not_wait_for_a_client_that_stops_reading() -> None:
    async with running(FakeService(endless())) as api:
        stream = await api.connect()
        await stream.send_all(api.request(STREAM))
        await until(lambda: api.service.running == 1, 5, "the job's start")
    await stream.aclose()  # that the block ended in time is checked by `running`


async def test_shutdown_ends_a_stream_in_a_typed_error() -> None:
    async with running(FakeService(says_then_hangs("a"))) as api:
        stream = await api.connect()
        await stream.send_all(api.request(STREAM))
        await read_until(stream, b'"a"')
    rest = b""
    while part := await stream.receive_some(65536):
        rest += part
    await stream.aclose()
    assert b'"code": "mesh_overloaded"' in rest and b"[DONE]" not in rest
    assert rest.endswith(b"0\r\n\r\n")


async def test_shutdown_answers_a_waiting_request() -> None:
    async with running(FakeService(says_then_hangs("a"))) as api:
        stream = await api.connect()
        await stream.send_all(api.request(WHOLE))
        await until(lambda: api.service.running == 1, 5, "the job's start")
    answer = await read_until(stream, b"mesh_overloaded")
    await stream.aclose()
    assert answer.startswith(b"HTTP/1.1 503") and b"retry-after" in answer.lower()


async def test_the_end_of_a_job_is_not_cut_by_a_client_that_hangs_up_on_done() -> None:
    ended: list[str] = []
    hung_up = trio.Event()

    class Service(FakeService):
        @asynccontextmanager
        async def submit(self, job: Job) -> AsyncIterator[FakeAnswer]:
            async with super().submit(job) as answer:
                try:
                    yield answer
                    await hung_up.wait()
                    ended.append("quietly")
                except BaseException:
                    ended.append("cancelled")
                    raise

    async with running(Service(says("a"))) as api:
        stream = await api.connect()
        await stream.send_all(api.request(STREAM))
        await read_until(stream, b"[DONE]\n\n")
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.05)
        hung_up.set()
        await until(lambda: ended, 5, "the job's end")
    assert ended == ["quietly"]


async def test_sixteen_streams_at_once_stay_apart() -> None:
    async def script(job: Job) -> AsyncIterator[AnswerEvent]:
        for i in range(20):
            await trio.lowlevel.checkpoint()
            yield TextDelta(f"{job.id}:{i} ", 1)
        yield done(20)

    async with running(FakeService(script)) as api, trio.open_nursery() as nursery:

        async def one() -> None:
            answer = await api.chat(stream=True)
            job = answer.headers["X-Mesh-Job"]
            texts = [data_of(e)["choices"][0]["delta"].get("content", "") for e in events_of(answer.text)[:-1]]
            assert "".join(texts) == "".join(f"{job}:{i} " for i in range(20))

        for _ in range(16):
            nursery.start_soon(one)
