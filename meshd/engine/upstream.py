"""One upstream: its health, its slots, its speed, and the work that goes through it."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, Final

import trio

from meshd.core.ad import DeviceKind
from meshd.core.engine import EngineEvent, EngineFinished, EngineModel, EngineStarted, EngineStatus, EngineTokens
from meshd.core.errors import BadInput, EngineFailed, MeshError, Overloaded
from meshd.core.generation import FinishReason, Generation, Opening, Token
from meshd.core.job import Embedding, Work
from meshd.core.upstream import Learnt, Upstream, UpstreamStatus
from meshd.engine.config import UpstreamConfig
from meshd.engine.upstream_faults import Away, Garbled, Refusal, Silent, of_work
from meshd.engine.upstream_http import Events, Server
from meshd.engine.upstream_learn import find_model, learn
from meshd.engine.upstream_pace import Pace, Speed
from meshd.engine.upstream_request import EMBEDDINGS, Request, embedding_requests, generation_request
from meshd.engine.upstream_stream import TEXT_ID, Numbered, Reading, vectors_in

log = logging.getLogger("meshd.engine.upstream")

FIRST_REST_S: Final = 1.0
FRAME_TOKENS: Final = 256
"""Tokens told at once."""

AFTERWORD_S: Final = 5.0
"""How long token counts may come after the end of an answer. They are written at the same moment."""


class UpstreamEngine:
    """One model of one server. `run` looks after its health; work may come while it is ready."""

    def __init__(self, upstream: Upstream, config: UpstreamConfig, changed: Callable[[], None]) -> None:
        self.upstream = upstream
        self.learnt: Learnt | None = None
        self._config = config
        self._changed = changed
        self._server = Server(upstream, config)
        self._ready = False
        self._reason = "not asked yet"
        self._state = "loading"
        self._failures = 0
        self._rest_s = 0.0
        self._news = trio.Event()
        self._running = 0
        self._seen_alive_s = -math.inf
        self._speed = Speed()

    # -- what it offers

    @property
    def slots_free(self) -> int:
        """How many more pieces of work may start now."""
        return max(0, self.upstream.slots - self._running) if self._ready else 0

    def model(self) -> EngineModel | None:
        """What is offered of it now; None while it is not ready."""
        if not self._ready or self.learnt is None:
            return None
        upstream = self.upstream
        return EngineModel(
            upstream.name,
            upstream.digest,
            self._context_tokens,
            upstream.slots,
            self.learnt.chat,
            0,
            self._speed.prefill_tokens_per_s,
            self._speed.generation_tokens_per_s,
            self._speed.rates(),
            self.learnt.abilities,
            DeviceKind.UPSTREAM,
            upstream.class_max,
        )

    @property
    def _context_tokens(self) -> int:
        return self.upstream.context_tokens or (self.learnt.context_tokens if self.learnt is not None else 0)

    def engine_status(self) -> EngineStatus:
        """As the engines of this machine are shown; there is no process to show."""
        name, digest, slots = self.upstream.name, self.upstream.digest, self.upstream.slots
        return EngineStatus(name, digest, 0, 0, slots, self.slots_free, self._state, self._reason)

    def leave(self) -> None:
        """Nobody wants it any more: no new work."""
        self._ready, self._state, self._reason = False, "resting", "removed"

    def status(self) -> UpstreamStatus:
        """All there is to know."""
        speed = self._speed.generation_tokens_per_s
        return UpstreamStatus(
            self.upstream, self._state, self._reason, self.slots_free, self._context_tokens, speed, self.learnt
        )

    # -- health

    def taught(self, learnt: Learnt) -> None:
        """It was just asked everything, and answered."""
        self.learnt = learnt
        self._be_ready()

    async def run(self) -> None:
        """Look after its health until cancelled; then end its connections."""
        try:
            while True:
                await self._wait()
                await self._check()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await self._server.close()

    async def _wait(self) -> None:
        """Until the next look is due. A failure meanwhile may change when that is."""
        while True:
            news = self._news = trio.Event()
            due_s = self._config.check_interval_s if self._ready else self._rest_s
            with trio.move_on_after(due_s):
                await news.wait()
                continue
            return

    async def _check(self) -> None:
        """Ask again. An answer that came a moment ago shows as much, and the server may do one thing at a time."""
        if self._ready and trio.current_time() - self._seen_alive_s < self._config.check_interval_s:
            return
        try:
            if self.learnt is None:
                self.learnt = await learn(self._server, self.upstream, self._config)
            else:
                await find_model(self._server, self.upstream, self._config.check_timeout_s)
        except MeshError as e:
            if not (self._ready and trio.current_time() - self._seen_alive_s < self._config.check_interval_s):
                self.learnt = None
                self._fail(e.message)
        else:
            self._be_ready()

    def _be_ready(self) -> None:
        if not self._ready:
            log.info("%s: the server is ready", self.upstream.name)
            self._ready, self._state, self._reason = True, "ready", ""
            self._changed()

    def _fail(self, reason: str, rest_s: float | None = None) -> None:
        """Offer it no more until it was asked again: in ``rest_s``, or later each time it fails."""
        if rest_s is None:
            rest_s = min(self._config.max_rest_s, FIRST_REST_S * 2 ** min(self._failures, 16))
            self._failures += 1
        was_ready, self._ready = self._ready, False
        self._state, self._reason, self._rest_s = "resting", reason, rest_s
        if was_ready:
            log.warning("%s rests for %.1f s: %s", self.upstream.name, rest_s, reason)
            self._news.set()
            self._changed()

    # -- work

    @asynccontextmanager
    async def generate(self, work: Work, delivered: Sequence[Token]) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """Do one piece of work, going on after ``delivered``; leaving the context closes the request.

        Raises on entering: BadInput, ContextOverflow (the request's fault), Overloaded (no slot, or the server says
        so), EngineFailed. Iterating raises EngineFailed after the tokens that came before.
        """
        with self._slot() as learnt:
            if isinstance(work, Generation):
                request = generation_request(self.upstream.model, learnt, work, delivered)
                with self._judged():
                    async with self._server.stream(request.path, request.body) as events:
                        answer = _Answer(events, request, self._note)
                        await answer.begin()
                        yield answer
            elif isinstance(work, Embedding):
                with self._judged():
                    done = await self._embed(work, len(delivered))
                yield _Told(done)
            else:
                raise BadInput("the server behind this model tells no tokens", param="model")

    @contextmanager
    def _slot(self) -> Iterator[Learnt]:
        if not self._ready or self.learnt is None:
            raise EngineFailed(f"the server behind this model is away: {self._reason}")
        if self._running >= self.upstream.slots:
            raise Overloaded("every slot of the upstream is in use", retry_after_s=1.0)
        self._running += 1
        try:
            yield self.learnt
        finally:
            self._running -= 1

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Let work's failures say what they say about the server, and tell them in the words of the port."""
        try:
            yield
        except Refusal as refusal:
            error = of_work(refusal)
            if isinstance(error, Overloaded):
                self._fail(error.message, error.retry_after_s)
            elif isinstance(error, EngineFailed) and refusal.status != 500:  # one bad request can cause a 500
                self._fail(error.message)
            raise error from None
        except (Away, Garbled, Silent) as e:
            if isinstance(e, Away):
                self.learnt = None  # what answers there next may be another program
            self._fail(e.message)
            raise

    def _note(self, pace: Pace | None) -> None:
        """A sign of life; with ``pace``, of a whole answer."""
        self._seen_alive_s = trio.current_time()
        if pace is not None:
            self._failures = 0
            self._speed.note(pace, max(1, self._running))

    async def _embed(self, work: Embedding, delivered: int) -> list[EngineEvent]:
        """Ask for the vectors that are not delivered yet; all that there is to tell about them."""
        prompt_tokens = 0
        tokens: list[Token] = []
        for body in embedding_requests(self.upstream.model, replace(work, inputs=work.inputs[delivered:])):
            answer = await self._server.post(EMBEDDINGS, body, self._config.first_token_timeout_s)
            vectors, counted = vectors_in(answer, len(body["input"]))
            tokens += [Token(delivered + len(tokens) + at, TEXT_ID, vector) for at, vector in enumerate(vectors)]
            prompt_tokens += counted
            self._note(None)
        self._failures = 0
        told: list[EngineEvent] = [EngineStarted(Opening(prompt_tokens))]
        return [*told, *_told(tokens), EngineFinished(FinishReason.STOP)]


def _told(tokens: Sequence[Token]) -> list[EngineEvent]:
    return [EngineTokens(tuple(tokens[at : at + FRAME_TOKENS])) for at in range(0, len(tokens), FRAME_TOKENS)]


class _Told:
    """Events that are all there; an iterator rather than a generator, so that leaving it costs nothing."""

    def __init__(self, events: Iterable[EngineEvent]) -> None:
        self._waiting = deque(events)

    def __aiter__(self) -> AsyncIterator[EngineEvent]:
        return self

    async def __anext__(self) -> EngineEvent:
        await trio.lowlevel.checkpoint()
        if not self._waiting:
            raise StopAsyncIteration
        return self._waiting.popleft()


class _Answer:
    """The events of one streamed answer, as they come."""

    def __init__(self, events: Events, request: Request, note: Callable[[Pace | None], None]) -> None:
        self._events = events
        self._request = request
        self._note = note
        self._reading = Reading(Numbered(request.first, request.limit), request.skip)
        self._waiting: deque[EngineEvent] = deque()
        self._over = False
        self._failure: EngineFailed | None = None
        self._complete = False
        self._asked_s = self._first_s = trio.current_time()
        self._tokens = 0

    async def begin(self) -> None:
        """Read up to the first token (or the end), so that what fails before it fails on entering."""
        while not self._waiting:
            await self._read()
        self._first_s = trio.current_time()
        counts = self._reading.counts
        prompt = counts.prompt or 0
        opening = Opening(prompt, (), min(counts.cached, prompt), self._request.tool_syntax)
        self._waiting.appendleft(EngineStarted(opening))
        if not self._complete:
            self._events.begun()

    def __aiter__(self) -> AsyncIterator[EngineEvent]:
        return self

    async def __anext__(self) -> EngineEvent:
        while not self._waiting:
            if self._failure is not None:
                raise self._failure
            if self._over:
                raise StopAsyncIteration
            await self._read()
        return self._waiting.popleft()

    async def _read(self) -> None:
        """What came next, and all that waits behind it. A failure comes after the tokens that came before it."""
        try:
            while await self._read_one() and self._events.waiting and len(self._waiting) < FRAME_TOKENS:
                pass
        except EngineFailed as e:
            if not self._waiting:
                raise
            self._failure = e

    async def _read_one(self) -> bool:
        """Take the next event; whether there may be more."""
        event = await self._next()
        if event is None:
            self._end()
            return False
        tokens = self._reading.take(event)
        self._note(None)
        self._tokens += len(tokens)
        if tokens:
            self._waiting.append(EngineTokens(tuple(tokens)))
        if self._reading.finish is not None and not self._complete:
            self._complete = True
            self._events.hurry(AFTERWORD_S)
        return True

    async def _next(self) -> dict[str, Any] | None:
        try:
            return await self._events.next()
        except EngineFailed:
            if self._reading.finish is None:
                raise
            return None  # the answer is complete; only its token counts are missing

    def _end(self) -> None:
        tokens, finish = self._reading.close()
        self._over = True
        self._waiting.extend([*_told(tokens), EngineFinished(finish, self._reading.counts.prompt)])
        told = self._tokens + len(tokens)
        now_s, prompt = trio.current_time(), self._reading.counts.prompt or 0
        self._note(Pace(prompt, self._first_s - self._asked_s, told, now_s - self._first_s))
