"""A job at its submitter in the simulated world: the submission machine, its conversation with workers, its text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from meshd.core import limits
from meshd.core.errors import ProtocolViolation
from meshd.core.generation import FinishReason, Token
from meshd.core.ids import AttemptId, NodeId
from meshd.core.job import Job
from meshd.core.task import LossReason, Task, TaskHeader
from meshd.machine import submission_events as sub
from meshd.machine.submission import Submission
from meshd.policy.text import TextAssembler
from meshd.wire import frames
from meshd.wire.protocols import TaskFrame
from meshd.wire.receipt import OutputHash, open_receipt
from meshd.wire.secretstream import StreamKeys, pull_stream, push_stream
from meshd.wire.task import seal_task

if TYPE_CHECKING:
    from meshd.testing.simnode import SimNode


@dataclass(slots=True)
class _Talk:
    """The conversation about one attempt."""

    attempt: AttemptId
    worker: NodeId
    writer: frames.SealedWriter
    reader: frames.SealedReader
    output: OutputHash = field(default_factory=OutputHash)
    accepted: bool = False


def stream_keys(attempt: AttemptId) -> StreamKeys:
    """Keys that differ by attempt and direction; a simulated world has no secrets."""
    seed = f"{attempt}".encode().ljust(64, b".")[-31:]
    return StreamKeys(up=b"u" + seed, down=b"d" + seed)


class App:
    """One job, and what its app has seen of the answer."""

    def __init__(self, node: SimNode, job: Job, seed: int) -> None:
        self.job = job
        self.machine = Submission(job, seed=seed)
        self.tokens: list[Token] = []
        self.text = ""
        self.end: sub.Complete | sub.Fail | sub.Withdrawn | None = None
        self.ended_s = 0.0
        self.on_end: Callable[[], None] = lambda: None
        self._node = node
        self._assembler = TextAssembler(job.generation.stop if job.generation is not None else ())
        self._talk: _Talk | None = None

    @property
    def submitter(self) -> NodeId:
        return self._node.me

    @property
    def alive(self) -> bool:
        """Whether the node it runs on still lives the same life."""
        return self._node.alive

    @property
    def running(self) -> bool:
        return self.end is None

    def feed(self, event: sub.SubmissionEvent) -> None:
        """Let the machine see ``event`` and do what it says."""
        for effect in self.machine.handle(event, self._node.clock.now_s):
            self._carry_out(effect)
        self.machine.check_invariants()

    def _carry_out(self, effect: sub.SubmissionEffect) -> None:
        match effect:
            case sub.AskPlacement():
                self.feed(self._node.place(self.job, effect))
            case sub.Offer():
                self._offer(effect)
            case sub.CancelAttempt():
                self._say(frames.Cancel(), effect.attempt)
            case sub.Deliver():
                self._deliver(effect)
            case sub.ReportFault():
                self._node.view.bans.fault(effect.worker, effect.reason, self._node.clock.now_s)
            case sub.Reroute():
                self._node.shared.watch.reroutes += 1
            case sub.Complete() | sub.Fail() | sub.Withdrawn():
                self._finish(effect)
            case sub.Began():
                pass

    def _finish(self, end: sub.Complete | sub.Fail | sub.Withdrawn) -> None:
        if self.end is not None:
            self._node.shared.watch.problems.append(f"{self.job.id} ended twice: {self.end} and {end}")
        self.end, self.ended_s = end, self._node.clock.now_s
        if isinstance(end, sub.Complete):
            self.text += self._assembler.flush()
        self.on_end()

    def _deliver(self, effect: sub.Deliver) -> None:
        for token in effect.tokens:
            self.tokens.append(token)
            self.text += self._assembler.feed(token.piece)
        if self._assembler.stopped and self.end is None:
            self.feed(sub.StoppedByText())

    # -- the worker

    def _offer(self, offer: sub.Offer) -> None:
        self._node.shared.watch.attempts += 1
        keys = stream_keys(offer.attempt)
        reader, writer = frames.SealedReader(pull_stream(keys.down)), frames.SealedWriter(push_stream(keys.up))
        self._talk = _Talk(offer.attempt, offer.worker, writer, reader)
        expires_at = self._node.wall_s + limits.TASK_TTL_S / 2
        header = TaskHeader(offer.attempt, self._node.me, offer.worker, self.job.constraints, expires_at)
        task = Task(header, self.job, offer.digest, offer.delivered)
        if offer.worker == self._node.me:
            self._node.work.offered_locally(task)
            return
        sealed = seal_task(task, self._node.key, keys)
        self._node.net.dial(self._node.me, offer.worker, lambda good: self._dialled(good, offer, sealed))

    def _dialled(self, good: bool, offer: sub.Offer, sealed: bytes) -> None:
        if self._talk is None or self._talk.attempt != offer.attempt or not self.running:
            return
        worker = self._node.net.nodes[offer.worker]
        me = self._node.me
        sent = good and self._node.net.send(me, offer.worker, lambda: worker.work.offered(me, sealed))
        if not sent:
            self.feed(sub.Lost(offer.attempt, LossReason.UNREACHABLE))

    def _say(self, message: frames.FromSubmitter, attempt: AttemptId) -> None:
        talk = self._talk
        if talk is None or talk.attempt != attempt:
            return
        me, worker = self._node.me, self._node.net.nodes[talk.worker]
        payload = talk.writer.seal(message)
        if talk.worker == me:
            worker.work.heard(me, attempt, payload)
        else:
            self._node.net.send(me, talk.worker, lambda: worker.work.heard(me, attempt, payload))

    def renew(self) -> None:
        """Tell the worker that somebody still waits."""
        if self._talk is not None and self._talk.accepted and self.machine.worker == self._talk.worker:
            self._say(frames.Renew(), self._talk.attempt)

    def lost(self, worker: NodeId, reason: LossReason) -> None:
        """The connection to ``worker`` is gone."""
        if self.running and self._talk is not None and self._talk.worker == worker and self.machine.worker == worker:
            self.feed(sub.Lost(self._talk.attempt, reason))

    def hear(self, attempt: AttemptId, kind: TaskFrame, payload: bytes) -> None:
        """A frame about an attempt; of an earlier one, the stream is closed already."""
        talk = self._talk
        if talk is None or talk.attempt != attempt:
            return
        try:
            self._hear(talk, kind, payload)
        except ProtocolViolation as error:
            self._node.problem(error, f"{attempt}")

    def _hear(self, talk: _Talk, kind: TaskFrame, payload: bytes) -> None:
        attempt = talk.attempt
        if kind is TaskFrame.ACCEPT:
            talk.accepted = True
            self.feed(sub.OfferAccepted(attempt))
            return
        if kind is TaskFrame.DECLINE:
            decline = frames.decode_decline(payload)
            self.feed(sub.OfferDeclined(attempt, decline.reason, decline.retry_after_s))
            return
        match talk.reader.open(payload):
            case frames.Started(opening, digest):
                self.feed(sub.Started(attempt, opening, digest))
            case frames.Tokens(tokens):
                talk.output.add(tokens)
                self.feed(sub.Tokens(attempt, tokens))
            case frames.Heartbeat() | frames.Loading():
                self.feed(sub.Heartbeat(attempt))
            case frames.Finished(reason, receipt):
                self.feed(sub.Finished(attempt, reason, self._verified(talk, receipt, reason)))
            case frames.Ended(reason, detail, _, param):
                self.feed(sub.Ended(attempt, reason, detail, param))

    def _verified(self, talk: _Talk, signed: bytes, reason: FinishReason) -> bool:
        receipt = open_receipt(signed, talk.worker)
        return (
            receipt.attempt == talk.attempt
            and receipt.submitter == self._node.me
            and receipt.tokens == talk.output.tokens
            and receipt.output_hash == talk.output.digest()
            and receipt.first_index + receipt.tokens == len(self.tokens)
            and receipt.finish == reason
        )
