"""The working side of a simulated node: the execution machine, its conversations, and an engine in virtual time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshd.core.errors import ProtocolViolation
from meshd.core.generation import Opening
from meshd.core.ids import AttemptId, NodeId
from meshd.core.receipt import Receipt
from meshd.core.task import EndReason, Task
from meshd.machine import execution_events as ex
from meshd.testing.plan import engine_tokens
from meshd.wire import frames
from meshd.wire.protocols import TaskFrame
from meshd.wire.receipt import output_hash, sign_receipt
from meshd.wire.secretstream import pull_stream, push_stream
from meshd.wire.task import OpenedTask, open_task

if TYPE_CHECKING:
    from meshd.testing.simnode import SimNode

_Key = tuple[NodeId, AttemptId]
_Said = ex.SendLoading | ex.SendStarted | ex.SendTokens | ex.SendHeartbeat | ex.SendFinished | ex.SendEnded


@dataclass(slots=True)
class _Hosted:
    """An attempt here: how to speak about it."""

    writer: frames.SealedWriter
    reader: frames.SealedReader
    request_hash: bytes


class Work:
    """Takes offers, runs them on a simulated engine, and says what the execution machine wants said."""

    def __init__(self, node: SimNode) -> None:
        self._node = node
        self._hosted: dict[_Key, _Hosted] = {}
        self._at_engine: dict[_Key, int] = {}

    def feed(self, event: ex.ExecutionEvent) -> None:
        """Let the machine see ``event`` and do what it says."""
        before = self._node.execution.running
        for effect in self._node.execution.handle(event, self._node.clock.now_s):
            self._carry_out(effect)
        self._node.execution.check_invariants()
        if self._node.execution.running != before:
            self._node.update_self()

    # -- conversations

    def offered(self, submitter: NodeId, sealed: bytes) -> None:
        """An OFFER frame came."""
        try:
            opened = open_task(sealed, self._node.key, self._node.wall_s)
        except ProtocolViolation as error:
            self._node.problem(error, "offer")
            return
        self._host(submitter, opened, local=False)

    def offered_locally(self, task: Task) -> None:
        """An app on this machine offers; nothing is sealed, there is no network between."""
        from meshd.testing.simapp import stream_keys

        keys = stream_keys(task.header.attempt)
        self._host(self._node.me, OpenedTask(task, keys, bytes(32)), local=True)

    def _host(self, submitter: NodeId, opened: OpenedTask, *, local: bool) -> None:
        key = (submitter, opened.task.header.attempt)
        writer = frames.SealedWriter(push_stream(opened.keys.down))
        reader = frames.SealedReader(pull_stream(opened.keys.up))
        self._hosted[key] = _Hosted(writer, reader, opened.request_hash)
        self.feed(ex.OfferReceived(submitter, opened.task, self._node.host(), self._node.wall_s, local))

    def heard(self, submitter: NodeId, attempt: AttemptId, payload: bytes) -> None:
        """A sealed frame of the submitter came."""
        hosted = self._hosted.get((submitter, attempt))
        if hosted is None:
            return
        match hosted.reader.open(payload):
            case frames.Renew():
                self.feed(ex.Renewed(submitter, attempt))
            case frames.Cancel():
                self.feed(ex.CancelReceived(submitter, attempt))

    def _carry_out(self, effect: ex.ExecutionEffect) -> None:
        match effect:
            case ex.Accept():
                self._leased((effect.submitter, effect.attempt))
                self._send(effect, TaskFrame.ACCEPT, b"")
            case ex.Decline():
                decline = frames.Decline(effect.reason, effect.retry_after_s or 0.0)
                self._send(effect, TaskFrame.DECLINE, frames.encode_decline(decline))
            case ex.StartEngine():
                self._start((effect.submitter, effect.attempt), effect.task)
            case ex.StopEngine():
                self._free((effect.submitter, effect.attempt))
            case ex.Violation():
                self._node.shared.watch.problems.append(f"{effect.attempt}: {effect.message}")
            case ex.Drained() | ex.KeepReceipt():
                pass
            case _:
                self._tell(effect)

    def _tell(self, effect: _Said) -> None:
        key = (effect.submitter, effect.attempt)
        hosted = self._hosted[key]
        message: frames.FromWorker
        match effect:
            case ex.SendStarted():
                message = frames.Started(effect.opening, effect.digest, "sim")
            case ex.SendLoading():
                message = frames.Loading(effect.fraction)
            case ex.SendTokens():
                message = frames.Tokens(effect.tokens)
            case ex.SendHeartbeat():
                message = frames.Heartbeat()
            case ex.SendFinished():
                message = frames.Finished(effect.reason, self._receipt(effect.receipt, hosted))
            case ex.SendEnded():
                message = frames.Ended(effect.reason, effect.message, self._receipt(effect.receipt, hosted))
        self._send(effect, TaskFrame.SEALED, hosted.writer.seal(message))

    def _send(self, effect: ex.ExecutionEffect, kind: TaskFrame, payload: bytes) -> None:
        if isinstance(effect, ex.Drained):
            return
        submitter, attempt = effect.submitter, effect.attempt
        if submitter == self._node.me:
            clock, node = self._node.clock, self._node
            clock.at(clock.now_s, lambda: node.do(lambda: _hear(node, attempt, kind, payload)))
        else:
            there = self._node.net.nodes[submitter]
            self._node.net.send(self._node.me, submitter, lambda: _hear(there, attempt, kind, payload))

    def _receipt(self, facts: ex.ReceiptFacts, hosted: _Hosted) -> bytes:
        ago_s = self._node.wall_s - self._node.clock.now_s
        receipt = Receipt(
            facts.attempt, facts.submitter, self._node.me, facts.model, facts.digest, facts.prompt_tokens,
            facts.first_index, facts.tokens, hosted.request_hash, output_hash(facts.output),
            facts.started_s + ago_s, facts.ended_s + ago_s, facts.finish, 1,
        )  # fmt: skip
        return sign_receipt(receipt, self._node.key)

    def _leased(self, key: _Key) -> None:
        """At most one lease ever for an attempt."""
        watch = self._node.shared.watch
        if key in watch.leases:
            watch.problems.append(f"{key[1]} is leased twice: {watch.leases[key][-4:]} and {self._node.me[-4:]}")
        watch.leases[key] = self._node.me

    # -- the engine

    def _start(self, key: _Key, task: Task) -> None:
        self._at_engine[key] = len(task.delivered)
        prefill_s = (5 + len(task.delivered)) / (10 * self._node.member.tokens_per_s)
        self._later(prefill_s, lambda: self._began(key, task))

    def _later(self, after_s: float, todo: object) -> None:
        clock, node = self._node.clock, self._node
        clock.at(clock.now_s + after_s, lambda: node.do(todo))  # type: ignore[arg-type]

    def _began(self, key: _Key, task: Task) -> None:
        if key in self._at_engine:
            self.feed(ex.EngineBegan(*key, Opening(5)))
            self._later(1 / self._node.member.tokens_per_s, lambda: self._step(key, task))

    def _step(self, key: _Key, task: Task) -> None:
        if key not in self._at_engine:
            return
        tokens, reason = engine_tokens(task.job)
        index = self._at_engine[key]
        if index >= len(tokens):
            self.feed(ex.EngineEnded(*key, reason))
            self._free(key)
            return
        self._at_engine[key] = index + 1
        self.feed(ex.EngineProduced(*key, (tokens[index],)))
        self._later(1 / self._node.member.tokens_per_s, lambda: self._step(key, task))

    def _free(self, key: _Key) -> None:
        """The sequence comes back after one decode step."""
        if self._at_engine.pop(key, None) is not None:
            self._later(0.02, lambda: self.feed(ex.EngineFreed(*key)))

    def crash(self) -> None:
        """The engine process dies: everything that runs on it fails."""
        for key in list(self._at_engine):
            self.feed(ex.EngineBroke(*key, EndReason.ENGINE_FAILED, "the engine crashed"))
            self._free(key)


def _hear(node: SimNode, attempt: AttemptId, kind: TaskFrame, payload: bytes) -> None:
    app = node.apps.get(attempt.job)
    if app is not None:
        app.hear(attempt, kind, payload)
