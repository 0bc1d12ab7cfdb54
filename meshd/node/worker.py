"""The working side: offers from any member, this node's own apps included, run on the local engine.

One execution machine decides about all attempts; this shell feeds it and carries out its effects. Every stream
carries one attempt at a time; what the machine wants said waits in the attempt's outbox, so that a slow reader
holds up nobody else and tokens that wait together leave in one frame.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext

import trio

from meshd.core import limits
from meshd.core.engine import EngineEvent, EngineFinished, EngineLoading, EngineStarted, EngineTokens
from meshd.core.errors import (
    BadInput,
    BadSignature,
    BeyondLimits,
    ContextOverflow,
    EngineFailed,
    MeshError,
    ModelInvalid,
    Overloaded,
    ProtocolViolation,
    TaskExpired,
    Truncated,
    WrongRecipient,
)
from meshd.core.ids import AttemptId, NodeId
from meshd.core.receipt import Receipt
from meshd.core.task import DeclineReason, EndReason
from meshd.machine import execution_events as on
from meshd.machine.execution import Execution
from meshd.machine.table import StoryEntry
from meshd.node.hosting import Hosting
from meshd.node.models import Models
from meshd.node.ports import Engine, FrameStream
from meshd.node.receipts import ReceiptKeeper
from meshd.node.timer import Timer
from meshd.node.views import AttemptView, JobView
from meshd.policy.admission import Host
from meshd.wire import frames
from meshd.wire.keys import NodeKey
from meshd.wire.protocols import TaskFrame
from meshd.wire.receipt import output_hash, sign_receipt
from meshd.wire.secretstream import pull_stream, push_stream
from meshd.wire.task import open_task

log = logging.getLogger("meshd.node.worker")

HISTORY = 200
"""Ended attempts that `mesh jobs` can still show."""

UNFORESEEN = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a slip in an engine raises when a task or a server brings what nobody thought of. It costs the attempt: tasks
come from other machines, and must not end this daemon."""

_REFUSALS: dict[type[MeshError], DeclineReason] = {
    TaskExpired: DeclineReason.EXPIRED,
    WrongRecipient: DeclineReason.WRONG_RECIPIENT,
}


Said = on.SendLoading | on.SendStarted | on.SendTokens | on.SendHeartbeat | on.SendFinished | on.SendEnded


class Worker:
    """Takes offers and runs them. Works inside `running_parts`."""

    def __init__(
        self,
        key: NodeKey,
        slots: int,
        engine: Engine,
        models: Models,
        host: Callable[[], Host],
        receipts: ReceiptKeeper,
        serial: Callable[[], int],
        name_of: Callable[[NodeId], str],
        wall: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self._key = key
        self._machine = Execution(key.node, slots)
        self._engine = engine
        self._models = models
        self._host = host
        self._receipts = receipts
        self._serial = serial
        self._name_of = name_of
        self._wall = wall
        self._changed = changed
        self._timer = Timer(self._machine.next_deadline, lambda: self.feed(on.Tick()))
        self._hosted: dict[tuple[NodeId, AttemptId], Hosting] = {}
        self._offering: Hosting | None = None
        self._nursery: trio.Nursery | None = None
        self._history: deque[JobView] = deque(maxlen=HISTORY)
        self._drained = trio.Event()
        self._parted = trio.Event()

    @asynccontextmanager
    async def running_parts(self) -> AsyncIterator[None]:
        """Take offers while in the context; leaving it ends every attempt."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._timer.run)
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    @property
    def running(self) -> int:
        """Attempts accepted and not ended."""
        return self._machine.running

    def story(self) -> tuple[StoryEntry, ...]:
        """How the attempts got where they are."""
        return self._machine.story()

    async def drain(self, deadline_s: float) -> None:
        """Take nothing new; return when nothing runs for others, at the latest soon after ``deadline_s``
        (monotonic), when what still runs is handed over. Cancelling the wait does not end the drain."""
        if self._drained.is_set():
            self._drained = trio.Event()
        self.feed(on.Drain(deadline_s))
        await self._drained.wait()
        while any(node != self._key.node for node, _ in self._hosted):
            await self._parted.wait()  # the last words are written: whoever stops now would cut them off

    def undrain(self) -> None:
        """Take work again; who waits for the drain waits no longer."""
        self.feed(on.Undrain())
        self._drained.set()

    def connection_lost(self, peer: NodeId) -> None:
        """The peer is gone: so is the right of its attempts to run."""
        self.feed(on.ConnectionLost(peer))

    def serve_local(self, stream: FrameStream) -> None:
        """Serve a stream of this node's own submitter."""
        if self._nursery is None:
            raise RuntimeError("the worker does not run")
        self._nursery.start_soon(self.serve, stream)

    async def serve(self, stream: FrameStream) -> None:
        """Host the attempts that come on one stream, one after the other, until it ends."""
        try:
            while True:
                kind, payload = await stream.receive(limits.MAX_TASK_BYTES)
                if kind == TaskFrame.SEALED:
                    continue  # a late word about the attempt that has just ended
                if kind != TaskFrame.OFFER:
                    raise ProtocolViolation(f"frame {kind} where an offer was due")
                await self._host_one(stream, payload)
        except Truncated:
            await stream.close()
        except ProtocolViolation as e:
            log.warning("%s broke the task protocol: %s", self._name_of(stream.peer), e.message)
            await stream.abort()

    # -- one attempt

    async def _host_one(self, stream: FrameStream, payload: bytes) -> None:
        try:
            opened = open_task(payload, self._key, self._wall())
            if opened.task.header.submitter != stream.peer:
                raise BadSignature("a task from somebody else than its sender")
        except (TaskExpired, WrongRecipient, ProtocolViolation, BadInput) as e:
            reason = _REFUSALS.get(type(e), DeclineReason.BAD_TASK)
            log.warning("refused a task of %s: %s", self._name_of(stream.peer), e.message)
            await stream.send(TaskFrame.DECLINE, frames.encode_decline(frames.Decline(reason, 0.0, e.message[:500])))
            return
        hosting = Hosting(stream, opened, frames.SealedWriter(push_stream(opened.keys.down)))
        self._offer(hosting, local=stream.peer == self._key.node)
        try:
            await self._converse(hosting)
        finally:
            self._part(hosting)

    def _part(self, hosting: Hosting) -> None:
        """The conversation is over. A declined one may have been a replay: what it repeated goes on untouched."""
        key = (hosting.submitter, hosting.attempt)
        if self._hosted.get(key) is not hosting:
            return
        if not hosting.over:
            self.feed(on.StreamLost(*key))
        del self._hosted[key]
        self._parted.set()
        self._parted = trio.Event()
        for unsaid in hosting.outbox:
            if isinstance(unsaid, on.SendFinished | on.SendEnded):
                self._keep_now(hosting, unsaid.receipt)

    def _offer(self, hosting: Hosting, *, local: bool) -> None:
        task = hosting.opened.task
        self._offering = hosting
        try:
            self.feed(on.OfferReceived(hosting.submitter, task, self._host(), self._wall(), local))
        finally:
            self._offering = None

    async def _converse(self, hosting: Hosting) -> None:
        """Say what there is to say until the last word; hear cancels and renewals meanwhile."""
        if hosting.over:
            await self._write(hosting)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, hosting)
            try:
                await self._write(hosting)
            except Truncated as e:
                hosting.fault = e
            nursery.cancel_scope.cancel()
        if hosting.fault is not None:
            raise hosting.fault

    async def _listen(self, hosting: Hosting) -> None:
        reader = frames.SealedReader(pull_stream(hosting.opened.keys.up))
        try:
            while True:
                kind, payload = await hosting.stream.receive(limits.MAX_TASK_FRAME_BYTES)
                if kind != TaskFrame.SEALED:
                    raise ProtocolViolation(f"frame {kind} in a running attempt")
                match reader.open(payload):
                    case frames.Renew():
                        self.feed(on.Renewed(hosting.submitter, hosting.attempt))
                    case frames.Cancel():
                        self.feed(on.CancelReceived(hosting.submitter, hosting.attempt))
                    case other:
                        raise ProtocolViolation(f"a submitter does not say {type(other).__name__}")
        except (Truncated, ProtocolViolation) as e:
            hosting.fault = e
            self.feed(on.StreamLost(hosting.submitter, hosting.attempt))
            hosting.end()

    async def _write(self, hosting: Hosting) -> None:
        while True:
            while hosting.outbox:
                await self._say(hosting, hosting.outbox.popleft())
            if hosting.over:
                return
            if hosting.news.is_set():
                hosting.news = trio.Event()
            await hosting.news.wait()

    async def _say(self, hosting: Hosting, message: object) -> None:
        match message:
            case on.Accept():
                await hosting.stream.send(TaskFrame.ACCEPT, b"")
            case on.Decline():
                decline = frames.Decline(message.reason, message.retry_after_s or 0.0)
                await hosting.stream.send(TaskFrame.DECLINE, frames.encode_decline(decline))
            case on.SendFinished():
                signed = await self._keep(hosting, message.receipt)
                await self._send(hosting, frames.Finished(message.reason, signed))
            case on.SendEnded():
                signed = await self._keep(hosting, message.receipt)
                ended = frames.Ended(message.reason, message.message[:500], signed, message.param[:100])
                await self._send(hosting, ended)
            case on.SendTokens():
                await self._send(hosting, frames.Tokens(hosting.joined(message)))
            case on.SendStarted():
                model = hosting.opened.task.job.model
                await self._send(hosting, frames.Started(message.opening, message.digest, model))
            case on.SendLoading():
                await self._send(hosting, frames.Loading(message.fraction))
            case on.SendHeartbeat():
                await self._send(hosting, frames.Heartbeat())

    async def _send(self, hosting: Hosting, message: frames.FromWorker) -> None:
        await hosting.stream.send(TaskFrame.SEALED, hosting.writer.seal(message))

    # -- receipts and history

    async def _keep(self, hosting: Hosting, facts: on.ReceiptFacts) -> bytes:
        """The signed receipt, once the ledger has it: persisted before it is sent. Not so for a no-op, which did
        nothing that anybody would account for, and is there to be quick."""
        receipt = self._receipt(hosting, facts)
        signed = sign_receipt(receipt, self._key)
        if facts.digest is None:
            self._receipts.keep_soon(receipt, signed)
        else:
            await self._receipts.keep(receipt, signed)
        return signed

    def _receipt(self, hosting: Hosting, facts: on.ReceiptFacts) -> Receipt:
        ago_s = self._wall() - trio.current_time()
        return Receipt(
            attempt=facts.attempt,
            submitter=facts.submitter,
            worker=self._key.node,
            model=facts.model,
            digest=facts.digest,
            prompt_tokens=facts.prompt_tokens,
            first_index=facts.first_index,
            tokens=facts.tokens,
            request_hash=hosting.opened.request_hash,
            output_hash=output_hash(facts.output),
            started_at=facts.started_s + ago_s,
            ended_at=facts.ended_s + ago_s,
            finish=facts.finish,
            certificate_serial=self._serial(),
        )

    def jobs(self) -> tuple[JobView, ...]:
        """What runs and ran here for others, newest first."""
        now_s, wall_s = trio.current_time(), self._wall()
        running = [
            _view(run.facts("", now_s), self._name_of(run.submitter), wall_s - now_s, ended=False)
            for run in self._machine.runs()
            if run.submitter != self._key.node
        ]
        return (*reversed(running), *reversed(self._history))

    def _remember(self, facts: on.ReceiptFacts) -> None:
        if facts.submitter != self._key.node:
            ago_s = self._wall() - trio.current_time()
            self._history.append(_view(facts, self._name_of(facts.submitter), ago_s, ended=True))

    # -- the machine

    def feed(self, event: on.ExecutionEvent) -> None:
        """Let the machine see ``event`` and carry out what follows."""
        running = self._machine.running
        for effect in self._machine.handle(event, trio.current_time()):
            self._carry_out(effect)
        self._timer.poke()
        if self._machine.running != running:
            self._changed()

    def _carry_out(self, effect: on.ExecutionEffect) -> None:
        match effect:
            case on.Accept():
                if self._offering is not None:
                    self._hosted[effect.submitter, effect.attempt] = self._offering
                    self._offering.say(effect)
            case on.Decline():
                if self._offering is not None:
                    self._offering.say(effect)
                    self._offering.end()
            case on.StartEngine():
                self._start_engine(effect)
            case on.StopEngine():
                if hosting := self._hosted.get((effect.submitter, effect.attempt)):
                    hosting.engine.cancel()
            case on.KeepReceipt():
                self._keep_unsaid(effect)
            case on.Violation():
                log.error("%s: %s", effect.attempt, effect.message)
            case on.Drained():
                self._drained.set()
            case on.SendFinished() | on.SendEnded():
                self._remember(effect.receipt)
                self._tell(effect, last=True)
            case on.SendLoading() | on.SendStarted() | on.SendTokens() | on.SendHeartbeat():
                self._tell(effect, last=False)

    def _tell(self, effect: Said, *, last: bool) -> None:
        if hosting := self._hosted.get((effect.submitter, effect.attempt)):
            hosting.say(effect)
            if last:
                hosting.end()

    def _keep_unsaid(self, effect: on.KeepReceipt) -> None:
        self._remember(effect.receipt)
        if hosting := self._hosted.get((effect.submitter, effect.attempt)):
            self._keep_now(hosting, effect.receipt)

    def _keep_now(self, hosting: Hosting, facts: on.ReceiptFacts) -> None:
        """Keep the receipt of an attempt that nobody listens to any more."""
        receipt = self._receipt(hosting, facts)
        self._receipts.keep_soon(receipt, sign_receipt(receipt, self._key))

    # -- the engine

    def _start_engine(self, start: on.StartEngine) -> None:
        hosting = self._hosted.get((start.submitter, start.attempt))
        if hosting is None or self._nursery is None:
            raise RuntimeError("an engine start for an attempt that is not hosted")
        self._nursery.start_soon(self._run_engine, hosting, start)

    async def _run_engine(self, hosting: Hosting, start: on.StartEngine) -> None:
        key = (start.submitter, start.attempt)
        with hosting.engine:
            try:
                await self._generate(start)
            except ContextOverflow as e:
                self.feed(on.EngineBroke(*key, EndReason.CONTEXT_OVERFLOW, e.message, e.param or ""))
            except BadInput as e:
                self.feed(on.EngineBroke(*key, EndReason.BAD_INPUT, e.message, e.param or ""))
            except Overloaded as e:
                self.feed(on.EngineBroke(*key, EndReason.BUSY, e.message))
            except BeyondLimits as e:
                log.warning("%s: no room: %s", start.attempt, e.message)
                self.feed(on.EngineBroke(*key, EndReason.BUSY if e.crowded else EndReason.ENGINE_FAILED, e.message))
            except (EngineFailed, ModelInvalid) as e:
                log.warning("%s: the engine failed: %s", start.attempt, e.message)
                self._models.attempt_failed(start.digest, e)
                self.feed(on.EngineBroke(*key, EndReason.ENGINE_FAILED, e.message))
            except UNFORESEEN as e:
                log.exception("%s: unexpected error", start.attempt)
                self.feed(on.EngineBroke(*key, EndReason.ENGINE_FAILED, f"unexpected: {type(e).__name__}"))
        self.feed(on.EngineFreed(*key))

    async def _generate(self, start: on.StartEngine) -> None:
        key = (start.submitter, start.attempt)
        work = start.task.job.work
        if work is None:
            raise BadInput("nothing to do")

        def loads(fraction: float) -> None:
            self.feed(on.EngineLoads(*key, fraction))

        loaded = self._models.using(start.digest, loads) if self._models.is_file(start.digest) else nullcontext()
        async with (
            loaded,
            self._engine.generate(start.digest, work, start.task.delivered, start.submitter) as events,
        ):
            await self._relay(key, events)

    async def _relay(self, key: tuple[NodeId, AttemptId], events: AsyncIterator[EngineEvent]) -> None:
        async for event in events:
            match event:
                case EngineTokens(tokens):
                    self.feed(on.EngineProduced(*key, tokens))
                case EngineLoading(fraction):
                    self.feed(on.EngineLoads(*key, fraction))
                case EngineStarted(opening):
                    self.feed(on.EngineBegan(*key, opening))
                case EngineFinished(reason, prompt_tokens):
                    self.feed(on.EngineEnded(*key, reason, prompt_tokens))


def _view(facts: on.ReceiptFacts, submitter_name: str, ago_s: float, *, ended: bool) -> JobView:
    """An attempt for another node, as `mesh jobs` shows it."""
    attempt = AttemptView(facts.attempt.number, "", "here", facts.tokens, facts.finish, None)
    return JobView(
        id=facts.attempt.job,
        role="worker",
        kind=facts.kind,
        model=facts.model,
        state="ended" if ended else "running",
        submitter=submitter_name or facts.submitter,
        attempts=(attempt,),
        prompt_tokens=facts.prompt_tokens,
        completion_tokens=facts.tokens,
        started_at=facts.started_s + ago_s,
        ended_at=facts.ended_s + ago_s if ended else None,
        finish=facts.finish,
    )
