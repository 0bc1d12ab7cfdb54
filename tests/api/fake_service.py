"""A scripted node behind the API: each test says what an answer's events are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from meshd.core.errors import MeshError, NotFound
from meshd.core.generation import FinishReason, Opening, Usage
from meshd.core.ids import JobId, job_id
from meshd.core.job import Job
from meshd.core.upstream import Upstream
from meshd.node.views import (
    AnswerEvent,
    InviteRequest,
    ItemsDelta,
    JobDone,
    JobView,
    MeshModelView,
    ModelView,
    NodeView,
    NoopReport,
    NoopRequest,
    Opened,
    OrgView,
    ShareView,
    StatusView,
    TextDelta,
    UpstreamView,
)
from meshd.testing.fakes import fake_answer

DIGEST = "ab" * 32
NODE = "12D3KooW" + "A" * 44
RECEIPT = "rcpt_1"
Script = Callable[[Job], AsyncIterator[AnswerEvent]]


def done(tokens: int, finish: FinishReason = FinishReason.STOP, cached: int = 0) -> JobDone:
    return JobDone(finish, Usage(7, tokens, cached), None, RECEIPT)


def opened(tool_syntax: str = "", cached: int = 0) -> Opened:
    return Opened(Opening(7, (), cached, tool_syntax))


def works(length: int = 3) -> Script:
    """Any kind of work, done as the fake engine does it; a generation's answer has ``length`` tokens."""

    async def script(job: Job) -> AsyncIterator[AnswerEvent]:
        assert job.work is not None
        yield opened()
        items = fake_answer(job.work, length)
        if job.generation is None:
            if items:
                yield ItemsDelta(items)
            yield done(0)
            return
        for token in items:
            scored = () if token.score is None else (token,)
            yield TextDelta(token.piece.decode(), 1, scored)
        yield done(len(items))

    return script


def says(*texts: str) -> Script:
    """An answer of these deltas, one token each."""

    async def script(job: Job) -> AsyncIterator[AnswerEvent]:
        for text in texts:
            yield TextDelta(text, 1)
        yield done(len(texts))

    return script


def plays(*events: AnswerEvent | MeshError | Exception) -> Script:
    """An answer of these events; an exception is raised when its turn comes."""

    async def script(job: Job) -> AsyncIterator[AnswerEvent]:
        for event in events:
            if isinstance(event, Exception):
                raise event
            yield event

    return script


def endless() -> Script:
    """Deltas without end, as fast as the reader takes them."""

    async def script(job: Job) -> AsyncIterator[AnswerEvent]:
        while True:
            yield TextDelta("x" * 1000, 1)
            await trio.lowlevel.checkpoint()

    return script


def says_then_hangs(*texts: str) -> Script:
    """Some deltas, then silence for ever."""

    async def script(job: Job) -> AsyncIterator[AnswerEvent]:
        for text in texts:
            yield TextDelta(text, 1)
        await trio.sleep_forever()

    return script


@dataclass
class FakeAnswer:
    job: JobId
    script: AsyncIterator[AnswerEvent]

    def events(self) -> AsyncIterator[AnswerEvent]:
        return self.script


def _node() -> NodeView:
    return NodeView(
        id=NODE,
        name="desk",
        site="hq",
        region="eu/de",
        clearance="internal",
        liveness="self",
        state="open",
        reason="",
        talked_age_s=None,
        heard_age_s=0.0,
        cpu_threads=2,
        memory_bytes=1,
        gpus=(),
        models=(),
        slots=1,
        slots_free=1,
        addresses=(),
        software="meshd/0",
    )


def _upstream(name: str) -> UpstreamView:
    url, able = "http://127.0.0.1:8000/v1", ("generate",)
    return UpstreamView(name, url, "big", DIGEST, "internal", True, 4, 4, 0, "ready", "", 0.0, able, ("chat",), False)


@dataclass
class FakeService:
    script: Script = field(default_factory=lambda: says("Hello", " world"))
    submitted: list[Job] = field(default_factory=list)
    ids: int = 0
    running: int = 0
    calls: list[tuple[object, ...]] = field(default_factory=list)
    failure: Exception | None = None
    share_view: ShareView = field(default_factory=lambda: ShareView(True, False, False, 0.5, 1, None))

    @asynccontextmanager
    async def submit(self, job: Job) -> AsyncIterator[FakeAnswer]:
        self.submitted.append(job)
        self.running += 1
        try:
            yield FakeAnswer(job.id, self.script(job))
        finally:
            self.running -= 1

    def new_job_id(self) -> JobId:
        self.ids += 1
        return job_id(self.ids.to_bytes(16, "big"))

    def new_seed(self) -> int:
        return 4242

    def mesh_models(self) -> tuple[MeshModelView, ...]:
        return (MeshModelView("org/tiny", DIGEST, 2048, (NODE,), True, (NODE,), ("generate", "embed")),)

    def _did(self, *call: object) -> None:
        self.calls.append(call)
        if self.failure is not None:
            raise self.failure

    async def status(self) -> StatusView:
        self._did("status")
        org = OrgView("acme", "00", True, 1, 0.0, "hq", "eu/de", "internal", ("member",))
        return StatusView(_node(), org, self.share_view, (), (), (), (), (), "http://127.0.0.1:1", 1.0, "0")

    async def nodes(self) -> tuple[NodeView, ...]:
        self._did("nodes")
        return (_node(),)

    async def jobs(self) -> tuple[JobView, ...]:
        self._did("jobs")
        return ()

    async def share(self, cpu: float | None, memory_bytes: int | None) -> ShareView:
        self._did("share", cpu, memory_bytes)
        return self.share_view

    async def unshare(self) -> ShareView:
        self._did("unshare")
        return self.share_view

    async def pause(self) -> ShareView:
        self._did("pause")
        return self.share_view

    async def resume(self) -> ShareView:
        self._did("resume")
        return self.share_view

    async def drain(self, deadline_s: float) -> ShareView:
        self._did("drain", deadline_s)
        return self.share_view

    async def add_model(self, path: str, name: str | None) -> ModelView:
        self._did("add_model", path, name)
        return ModelView(name or "tiny", DIGEST, 2048, False, 0.0, 0.0)

    async def remove_model(self, name: str) -> None:
        self._did("remove_model", name)
        if name != "org/tiny":
            raise NotFound("no such model")

    async def upstreams(self) -> tuple[UpstreamView, ...]:
        self._did("upstreams")
        return (_upstream("org/big"),)

    async def add_upstream(self, upstream: Upstream) -> UpstreamView:
        self._did("add_upstream", upstream)
        return _upstream(upstream.name)

    async def remove_upstream(self, name: str) -> None:
        self._did("remove_upstream", name)
        if name != "org/big":
            raise NotFound("no such upstream")

    async def invite(self, request: InviteRequest) -> str:
        self._did("invite", request)
        return "mesh1invite"

    async def noop(self, request: NoopRequest) -> NoopReport:
        self._did("noop", request)
        return NoopReport(1.5, (1.5,), 0.0015)

    async def shutdown(self) -> None:
        self._did("shutdown")
