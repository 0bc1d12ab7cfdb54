"""The submitting side: this node's own jobs, and the conversation of each of their attempts with its worker."""

from __future__ import annotations

import itertools
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from meshd.core import limits
from meshd.core.errors import BadInput, MeshError, NotMember, Overloaded, ProtocolViolation, Truncated, Unreachable
from meshd.core.ids import AttemptId, ModelDigest, NodeId
from meshd.core.job import Job, TaskKind
from meshd.core.task import DeclineReason, LossReason, Task, TaskHeader
from meshd.machine import submission_events as on
from meshd.node.answer import AnswerBuffer
from meshd.node.dialler import Dialler
from meshd.node.job_shell import JobShell
from meshd.node.ports import FrameStream
from meshd.node.receipts import ReceiptKeeper
from meshd.node.streams import TaskStreams
from meshd.node.timer import Alarms
from meshd.node.views import JobView
from meshd.policy.placement import PlacementView
from meshd.policy.prefixes import Prefixes
from meshd.wire import frames
from meshd.wire.keys import NodeKey
from meshd.wire.protocols import TaskFrame
from meshd.wire.receipt import OutputHash, open_receipt, request_hash
from meshd.wire.secretstream import StreamKeys, pull_stream, push_stream
from meshd.wire.task import seal_task

log = logging.getLogger("meshd.node.submitter")

RENEW_INTERVAL_S = 1.0
"""A worker's lease lasts LEASE_S; five words in that time can get lost in a busy loop before it lapses."""

GOODBYE_S = 1.0
"""How long a cancelled worker may take to end in order; then its stream is thrown away instead of reused."""


@dataclass(slots=True)
class Conversation:
    """One attempt, as the submitter talks about it with the worker."""

    offer: on.Offer
    shell: JobShell
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    stream: FrameStream | None = None
    push: frames.SealedWriter | None = None
    sending: trio.Lock = field(default_factory=trio.Lock)
    cancelled: bool = False
    renewed_at_s: float = 0.0
    request_hash: bytes = b""
    digest: ModelDigest | None = None

    @property
    def takes_slot(self) -> bool:
        """Whether the worker gives a slot to it."""
        return self.shell.job.kind is not TaskKind.NOOP


class Submitter:
    """Runs jobs. Works inside `running_parts`, whose nursery holds everything that a job starts."""

    def __init__(
        self,
        key: NodeKey,
        view: PlacementView,
        streams: TaskStreams,
        dialler: Dialler,
        receipts: ReceiptKeeper,
        name_of: Callable[[NodeId], str],
        wall: Callable[[], float],
        *,
        patience_s: float,
        queue_s: float,
        max_waiting: int,
        max_running: int,
        history: int,
        dial_timeout_s: float,
        random: Callable[[int], bytes],
    ) -> None:
        self._key = key
        self._view = view
        self._streams = streams
        self._dialler = dialler
        self._receipts = receipts
        self._name_of = name_of
        self._wall = wall
        self._patience_s = patience_s
        self._queue_s = queue_s
        self._max_waiting = max_waiting
        self._max_running = max_running
        self._dial_timeout_s = dial_timeout_s
        self._random = random
        self._running: dict[str, JobShell] = {}
        self._ended: deque[JobView] = deque(maxlen=history)
        self._talks: dict[AttemptId, Conversation] = {}
        self._alarms = Alarms()
        self._prefixes = Prefixes()
        self._nursery: trio.Nursery | None = None

    @asynccontextmanager
    async def running_parts(self) -> AsyncIterator[None]:
        """Run jobs while in the context; leaving it ends every conversation."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._alarms.run)
            nursery.start_soon(self._renew_leases, nursery)
            try:
                yield
            finally:
                self._nursery = None
                nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def submit(self, job: Job, only: NodeId | None = None) -> AsyncIterator[AnswerBuffer]:
        """Run ``job`` (on ``only`` that worker, if given) while in the context; leaving it early cancels the job
        everywhere.

        Raises Overloaded when too many jobs run already.
        """
        if self._nursery is None or len(self._running) >= self._max_running:
            raise Overloaded(f"{self._max_running} jobs run already", retry_after_s=1.0)
        shell = JobShell(
            job,
            me=self._key.node,
            view=self._view if only is None else self._view_of(only),
            attempts=self,
            alarms=self._alarms,
            name_of=self._name_of,
            wall=self._wall,
            patience_s=self._patience_s,
            queue_s=self._queue_s,
            seed=int.from_bytes(self._random(4), "big"),
            prefixes=self._prefixes,
        )
        self._running[job.id] = shell
        try:
            shell.start()
            yield shell.answer
        finally:
            shell.cancel()
            del self._running[job.id]
            self._ended.append(shell.view())

    def _view_of(self, worker: NodeId) -> PlacementView:
        """A view in which there is only ``worker``."""
        view = PlacementView(self._view.bans)
        candidate = self._view.get(worker)
        if candidate is not None:
            view.put(candidate)
        return view

    def candidates_changed(self) -> None:
        """Tell the jobs that wait that somebody may take them now, the oldest first."""
        for shell in [s for s in self._running.values() if s.waiting]:
            shell.feed(on.CandidatesChanged())

    # -- the queue

    def full(self, shell: JobShell) -> frozenset[NodeId]:
        """Workers all of whose free slots were offered jobs a moment ago: an ad does not know of offers on their way.
        A no-op needs no slot."""
        if shell.job.kind is TaskKind.NOOP:
            return frozenset()
        asked = Counter(t.offer.worker for t in self._talks.values() if t.push is None and t.takes_slot)
        slots = {worker: self._slots_free(worker) for worker in asked}
        return frozenset(worker for worker, offers in asked.items() if offers >= slots[worker])

    def _slots_free(self, worker: NodeId) -> int:
        candidate = self._view.get(worker)
        return candidate.ad.slots_free if candidate is not None else 0

    def spoken_for(self, shell: JobShell, worker: NodeId) -> bool:
        """Whether an older job waits for such a worker: first come, first served, among those that it would do for."""
        candidate = self._view.get(worker)
        if candidate is None or shell.job.kind is TaskKind.NOOP:
            return False
        older = itertools.takewhile(lambda other: other is not shell, self._running.values())
        return any(other.would_take(candidate) for other in older)

    def queue_full(self) -> bool:
        """Whether as many jobs wait for busy workers as may."""
        return sum(s.queued for s in self._running.values()) >= self._max_waiting

    def suspected(self, worker: NodeId) -> None:
        """Tell the jobs that run on ``worker`` that it is suspect."""
        for talk in [t for t in self._talks.values() if t.offer.worker == worker]:
            talk.shell.feed(on.Suspected(worker))

    def jobs(self) -> tuple[JobView, ...]:
        """Running and recent jobs, newest first."""
        views = [*self._ended, *(s.view() for s in self._running.values())]
        return tuple(reversed(views))

    @property
    def running(self) -> int:
        """Jobs that run now."""
        return len(self._running)

    # -- conversations

    def begin(self, offer: on.Offer, shell: JobShell) -> None:
        """Start the conversation of an attempt."""
        if self._nursery is None:
            raise RuntimeError("the submitter does not run")
        talk = Conversation(offer, shell)
        self._talks[offer.attempt] = talk
        self._nursery.start_soon(self._converse, talk)

    def cancel(self, attempt: AttemptId) -> None:
        """Tell the worker of ``attempt`` to stop, and wait for its last word only a little."""
        talk = self._talks.get(attempt)
        if talk is None or talk.cancelled or self._nursery is None:
            return
        talk.cancelled = True
        talk.scope.deadline = trio.current_time() + (GOODBYE_S if talk.push is not None else 0)
        if talk.push is not None:
            self._nursery.start_soon(self._say, talk, frames.Cancel())

    async def _converse(self, talk: Conversation) -> None:
        """Talk until the attempt is over; whatever goes wrong becomes an event of the job."""
        attempt, worker = talk.offer.attempt, talk.offer.worker
        in_order = False
        try:
            with talk.scope:
                in_order = await self._talk(talk)
        except (Truncated, Unreachable) as e:
            early = talk.stream is None
            talk.shell.feed(on.Lost(attempt, LossReason.UNREACHABLE if early else LossReason.CONNECTION_LOST))
            log.info("%s: lost %s: %s", attempt, self._name_of(worker), e.message)
        except Overloaded as e:
            talk.shell.feed(on.OfferDeclined(attempt, DeclineReason.BUSY, e.retry_after_s))
        except (ProtocolViolation, NotMember) as e:
            talk.shell.feed(on.Lost(attempt, LossReason.PROTOCOL))
            log.warning("%s: %s broke the protocol: %s", attempt, self._name_of(worker), e.message)
        except BadInput as e:  # our own task cannot be sent: too large with what was delivered
            talk.shell.declined(attempt, DeclineReason.BAD_TASK)
            talk.shell.feed(on.OfferDeclined(attempt, DeclineReason.BAD_TASK))
            log.warning("%s: cannot be sent: %s", attempt, e.message)
        finally:
            del self._talks[attempt]
            if talk.push is None and talk.takes_slot and self._nursery is not None:
                self.candidates_changed()  # the slot it was to have is free, and no ad will tell
            with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_S):
                await self._part(talk, in_order=in_order)

    async def _part(self, talk: Conversation, *, in_order: bool) -> None:
        """Give the stream back. One that ended in order is reused, so nothing of this attempt may be sent on it later:
        what is being said is waited for, and from then on there is nobody to say anything to."""
        stream, talk.stream = talk.stream, None
        if stream is None:
            return
        with trio.move_on_after(GOODBYE_S / 2) as said:
            async with talk.sending:
                pass
        if in_order and not said.cancelled_caught:
            await self._streams.release(talk.offer.worker, stream)
        else:
            await self._streams.discard(talk.offer.worker, stream)

    async def _talk(self, talk: Conversation) -> bool:
        """The conversation itself. True: it ended in order, the stream can carry another attempt."""
        worker = talk.offer.worker
        await self._dialler.reach(worker)
        talk.stream = await self._streams.acquire(worker, self._dial_timeout_s)
        keys = StreamKeys(down=self._random(32), up=self._random(32))
        sealed = seal_task(self._task(talk), self._key, keys)
        talk.request_hash = request_hash(sealed)
        await talk.stream.send(TaskFrame.OFFER, sealed)
        kind, payload = await talk.stream.receive(limits.MAX_TASK_FRAME_BYTES)
        if kind == TaskFrame.DECLINE:
            decline = frames.decode_decline(payload)
            talk.shell.declined(talk.offer.attempt, decline.reason)
            talk.shell.feed(on.OfferDeclined(talk.offer.attempt, decline.reason, decline.retry_after_s or None))
            return True
        if kind != TaskFrame.ACCEPT:
            raise ProtocolViolation(f"frame {kind} where an answer to the offer was due")
        talk.push = frames.SealedWriter(push_stream(keys.up))
        talk.renewed_at_s = trio.current_time()
        talk.shell.feed(on.OfferAccepted(talk.offer.attempt))
        return await self._listen(talk, talk.stream, frames.SealedReader(pull_stream(keys.down)))

    def _task(self, talk: Conversation) -> Task:
        offer, job = talk.offer, talk.shell.job
        header = TaskHeader(
            attempt=offer.attempt,
            submitter=self._key.node,
            worker=offer.worker,
            constraints=job.constraints,
            expires_at=self._wall() + limits.TASK_TTL_S,
        )
        return Task(header, job, offer.digest, offer.delivered)

    async def _listen(self, talk: Conversation, stream: FrameStream, reader: frames.SealedReader) -> bool:
        attempt, shell = talk.offer.attempt, talk.shell
        output = OutputHash()
        while True:
            kind, payload = await stream.receive(limits.MAX_TASK_FRAME_BYTES)
            if kind != TaskFrame.SEALED:
                raise ProtocolViolation(f"frame {kind} in a running attempt")
            match reader.open(payload):
                case frames.Tokens() as said:
                    output.add(said.tokens)
                    shell.feed(on.Tokens(attempt, said.tokens))
                case frames.Heartbeat():
                    shell.feed(on.Heartbeat(attempt))
                case frames.Loading() as said:
                    shell.loading(attempt, said.fraction)
                case frames.Started() as said:
                    talk.digest = said.digest
                    shell.feed(on.Started(attempt, said.opening, said.digest))
                case frames.Finished() as said:
                    good = self._account(talk, said.receipt, output)
                    shell.feed(on.Finished(attempt, said.reason, good))
                    return True
                case frames.Ended() as said:
                    if said.receipt is not None:
                        self._account(talk, said.receipt, output)
                    shell.feed(on.Ended(attempt, said.reason, said.detail, said.param))
                    return True
                case other:
                    raise ProtocolViolation(f"a worker does not say {type(other).__name__}")

    def _account(self, talk: Conversation, signed: bytes, output: OutputHash) -> bool:
        """Whether the worker's receipt is signed by it and agrees with what we saw; a good one is kept."""
        attempt, worker = talk.offer.attempt, talk.offer.worker
        try:
            receipt = open_receipt(signed, worker)
        except MeshError as e:
            log.warning("%s: bad receipt from %s: %s", attempt, self._name_of(worker), e.message)
            return False
        agrees = (
            receipt.attempt == attempt
            and receipt.submitter == self._key.node
            and receipt.request_hash == talk.request_hash
            and receipt.model == talk.shell.job.model
            and talk.digest in (None, receipt.digest)  # None: it ended before the engine started
            and receipt.first_index == len(talk.offer.delivered)
            and receipt.tokens == output.tokens
            and receipt.output_hash == output.digest()
        )
        if agrees:
            talk.shell.receipt(attempt, receipt, self._receipts.keep_soon(receipt, signed))
        return agrees

    # -- leases

    async def _renew_leases(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.sleep(RENEW_INTERVAL_S)
            due_s = trio.current_time() - RENEW_INTERVAL_S / 2
            for talk in list(self._talks.values()):
                if talk.push is None or talk.cancelled or talk.sending.locked():
                    continue
                if talk.renewed_at_s <= due_s:
                    talk.renewed_at_s = trio.current_time()
                    nursery.start_soon(self._say, talk, frames.Renew())

    async def _say(self, talk: Conversation, message: frames.FromSubmitter) -> None:
        """Say something to the worker, after what is being said; sealed and sent in one order. A worker that is gone
        shows in the conversation, not here."""
        async with talk.sending:
            if talk.push is None or talk.stream is None:
                return
            try:
                await talk.stream.send(TaskFrame.SEALED, talk.push.seal(message))
            except Truncated as e:
                log.debug("%s: %s", talk.offer.attempt, e.message)
