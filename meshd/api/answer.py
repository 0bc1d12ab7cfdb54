"""Runs the jobs of one HTTP request: the whole answer at once, or as a stream of events.

Leaving `service.submit()` cancels the job everywhere. The gate cancels us when the client goes away; `closing` is
set when the daemon stops, so that a stream ends in a typed error and not in a cut line.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from meshd.api.chunks import KEEPALIVE, Streamed, Whole, loading_comment, reroute_comment
from meshd.api.contract import JOB_HEADER
from meshd.api.errors import error_response, json_response
from meshd.core.errors import MeshError, Overloaded
from meshd.core.job import Job
from meshd.node.views import AnswerEvent, ItemsDelta, JobDone, Loading, Opened, Rerouted, Service, TextDelta

_log = logging.getLogger("meshd.api")


class InternalError(MeshError):
    """Something in the daemon broke its promise; the log has the details."""

    code = "internal_error"


def _unfinished() -> InternalError:
    return InternalError("the answer ended before it was complete")


class Closing:
    """Whether the daemon is stopping, and the scopes of the answers that must end when it does."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self._closing = False

    def close(self) -> None:
        """End every answer that runs, and every later one at once."""
        self._closing = True
        for scope in self._scopes:
            scope.cancel()

    async def guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run ``work``; raises Overloaded when the daemon stopped before it was done."""
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                if self._closing:
                    scope.cancel()
                await work()
            finally:
                self._scopes.discard(scope)
        if scope.cancelled_caught:
            raise Overloaded("the daemon is stopping", retry_after_s=5, hint="send the request again")


@asynccontextmanager
async def _events(service: Service, job: Job) -> AsyncIterator[AsyncIterator[AnswerEvent]]:
    """The events of ``job`` while it runs; leaving early ends the job, and the iterator with it."""
    async with service.submit(job) as answer:
        events = answer.events()
        try:
            yield events
        finally:
            if isinstance(events, AsyncGenerator):
                await events.aclose()


async def _outcome(closing: Closing, work: Callable[[], Awaitable[None]], jobs: Sequence[Job]) -> MeshError | None:
    """Do ``work``; the error to tell the client, None when all went well."""
    try:
        await closing.guard(work)
    except MeshError as error:
        return error
    except Exception:  # noqa: BLE001 - the door of a job: its client must get a typed error, the daemon lives on
        _log.exception("job %s: unexpected error", jobs[0].id)
        return InternalError("internal error; the daemon's log has the details")
    return None


async def _each(jobs: Sequence[Job], one: Callable[[int, Job], Awaitable[None]]) -> None:
    """Do ``one`` for every job at once; the first MeshError ends the others and is raised."""
    if len(jobs) == 1:
        await one(0, jobs[0])
        return
    faults: list[MeshError] = []

    async def guarded(choice: int, job: Job) -> None:
        try:
            await one(choice, job)
        except MeshError as error:
            faults.append(error)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for choice, job in enumerate(jobs):
            nursery.start_soon(guarded, choice, job)
    if faults:
        raise faults[0]


def _job_header(jobs: Sequence[Job]) -> dict[str, str]:
    return {JOB_HEADER: ", ".join(job.id for job in jobs)}


class WholeAnswer:
    """An ASGI endpoint's answer that is sent when all its jobs are done."""

    def __init__(self, service: Service, jobs: Sequence[Job], render: Whole, closing: Closing) -> None:
        self._service, self._jobs, self._closing = service, jobs, closing
        self._render = render
        self._response: Response | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = await _outcome(self._closing, self._run, self._jobs)
        if error is not None:
            self._response = error_response(error, _job_header(self._jobs))
        assert self._response is not None  # noqa: S101 - _run sets it or fails
        await self._response(scope, receive, send)

    async def _run(self) -> None:
        await _each(self._jobs, self._collect)
        self._response = await trio.to_thread.run_sync(self._respond) if self._render.large else self._respond()

    def _respond(self) -> Response:
        return json_response(self._render.body(), headers=_job_header(self._jobs))

    async def _collect(self, choice: int, job: Job) -> None:
        attempts = 1
        async with _events(self._service, job) as events:
            async for event in events:
                if isinstance(event, TextDelta | ItemsDelta):
                    self._render.take(choice, event)
                elif isinstance(event, Opened):
                    self._render.opened(choice, event.opening)
                elif isinstance(event, Rerouted):
                    attempts = event.attempt
                elif isinstance(event, JobDone):
                    self._render.done(choice, event, attempts)
                    return
        raise _unfinished()


@dataclass(frozen=True, slots=True)
class Silence:
    """How long a stream may say nothing before a comment goes down it: at its very beginning, where a job that nobody
    takes must be able to fail with a status of its own, and later."""

    first_s: float
    later_s: float


class StreamedAnswer:
    """An ASGI endpoint's answer as server-sent events.

    Nothing is sent before the first event (or the first keepalive), so that an early failure has its own status.
    """

    def __init__(
        self, service: Service, jobs: Sequence[Job], render: Streamed, closing: Closing, silence: Silence
    ) -> None:
        self._service, self._jobs, self._closing = service, jobs, closing
        self._render = render
        self._silence = silence
        self._running = len(jobs)
        self._started = self._ended = False
        self._write_lock = trio.Lock()
        self._written_at = trio.current_time()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_alive)
            error = await _outcome(self._closing, self._relay_all, self._jobs)
            nursery.cancel_scope.cancel()
        if error is None or self._ended:
            return
        if self._started:
            await self._write(self._render.failed(error), last=True)
        else:
            await error_response(error, _job_header(self._jobs))(scope, receive, send)

    async def _relay_all(self) -> None:
        await _each(self._jobs, self._relay)

    async def _relay(self, choice: int, job: Job) -> None:
        attempts = 1
        async with _events(self._service, job) as events:
            async for event in events:
                if isinstance(event, TextDelta):
                    await self._write(self._render.text(choice, event))
                elif isinstance(event, Opened):
                    await self._write(self._render.opened(choice, event.opening))
                elif isinstance(event, Rerouted):
                    attempts = event.attempt
                    await self._write(reroute_comment(event))
                elif isinstance(event, Loading):
                    await self._write(loading_comment(event))
                elif isinstance(event, JobDone):
                    await self._done(choice, event, attempts)
                    return
        raise _unfinished()

    async def _done(self, choice: int, done: JobDone, attempts: int) -> None:
        """The end of one answer; that of the last ends the stream."""
        self._running -= 1
        last = not self._running
        data = self._render.done(choice, done, attempts)
        await self._write(data + self._render.end() if last else data, last=last)

    async def _write(self, data: bytes, *, last: bool = False) -> None:
        if not data:
            return
        try:
            self._write_lock.acquire_nowait()
        except trio.WouldBlock:
            await self._write_lock.acquire()
        try:
            await self._send_now(data, last)
        finally:
            self._write_lock.release()

    async def _send_now(self, data: bytes, last: bool) -> None:
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self._headers()})
        self._ended = last  # before sending: a client may hang up the moment it reads the end
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        self._written_at = trio.current_time()

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            *((name.lower().encode(), value.encode()) for name, value in _job_header(self._jobs).items()),
        ]

    def _comment_due_s(self) -> float:
        return self._written_at + (self._silence.later_s if self._started else self._silence.first_s)

    async def _keep_alive(self) -> None:
        """A comment whenever nothing was written for a while; a writer that is busy needs none."""
        while not self._ended:
            await trio.sleep_until(self._comment_due_s())
            due = trio.current_time() >= self._comment_due_s()
            if due and not self._ended and not self._write_lock.locked():
                await self._write(KEEPALIVE)
            elif self._write_lock.locked():
                self._written_at = trio.current_time()
