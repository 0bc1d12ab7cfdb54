"""All attempts at one worker: who may run, for how long, and what the submitter is told.

Theory
------
A worker runs an attempt only while somebody wants it. That right is a lease: it begins when the offer is accepted,
any frame from the submitter renews it, and it ends when the submitter cancels, when its stream or connection goes,
when a later attempt of the same job arrives (fencing), when draining comes to its deadline, or when nothing was
heard for ``LEASE_S``. So an attempt whose submitter died, froze or moved on never runs on as an orphan.

    ABSENT -> QUEUED -> STARTING -> RUNNING -> STOPPING -> ABSENT
                 \\         \\           \\_________^
                  \\         \\____________________^
                   +-> ABSENT

An accepted attempt is QUEUED until the engine has a sequence for it: usually for no time at all, but a fenced
attempt's successor waits for the sequence that its predecessor is giving back. STARTING has asked the engine, RUNNING
gets tokens, STOPPING has said its last word and waits for the engine to let go. Two counts never exceed the slots:
attempts accepted and not ended (QUEUED, STARTING, RUNNING), and sequences at the engine (all but QUEUED).

An offer is checked in this order: addressed to us, by its sender, for now; never seen before and not fenced off
(`policy.replay`); then, after it has fenced off its predecessors, admitted by `policy.admission`. An accepted attempt
says something at least every ``HEARTBEAT_INTERVAL_S``, and its last frame is either finished or ended, with what the
receipt states. Attempts of this machine's own apps (local) run under the same rules, but need no lease (submitter
and worker live and die together) and are none of the business of sharing, pause or drain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from meshd.core import limits
from meshd.core.generation import FinishReason
from meshd.core.ids import AttemptId, JobId, ModelDigest, NodeId
from meshd.core.task import DeclineReason, EndReason, Task
from meshd.machine import execution_events as ev
from meshd.machine.execution_events import ExecutionEffect, ExecutionEvent, RunEvent
from meshd.machine.table import Ignored, Story, StoryEntry, row
from meshd.policy.admission import BUSY_RETRY_S, Refusal, addressed, admit
from meshd.policy.replay import Replays

QUEUE_S: Final = 5.0
"""How long an accepted attempt waits for a sequence that is being given back; an engine takes one decode step."""

_NEVER = float("inf")


class State(StrEnum):
    """Where an attempt stands."""

    ABSENT = "absent"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


_ACTIVE = frozenset({State.QUEUED, State.STARTING, State.RUNNING})
_AT_ENGINE = frozenset({State.STARTING, State.RUNNING, State.STOPPING})
_Effects = list[ExecutionEffect]
_Key = tuple[NodeId, AttemptId]


@dataclass(slots=True)
class Run:
    """One accepted attempt."""

    submitter: NodeId
    attempt: AttemptId
    task: Task
    digest: ModelDigest | None
    local: bool
    accepted_s: float
    lease_until_s: float
    sent_s: float
    state: State = State.QUEUED
    prompt_tokens: int = 0
    tokens: int = 0
    output: bytearray = field(default_factory=bytearray)

    @property
    def next_index(self) -> int:
        """The index that the engine's next token must have."""
        return len(self.task.delivered) + self.tokens

    def facts(self, finish: str, now_s: float) -> ev.ReceiptFacts:
        """What the receipt of this attempt states."""
        return ev.ReceiptFacts(
            self.submitter,
            self.attempt,
            self.task.job.model,
            self.digest,
            self.prompt_tokens,
            len(self.task.delivered),
            self.tokens,
            bytes(self.output),
            self.accepted_s,
            now_s,
            finish,
            self.task.job.kind,
        )


class Execution:
    """The state machine of node ``me``, which runs up to ``slots`` attempts. Times are monotonic seconds."""

    def __init__(self, me: NodeId, slots: int, replays: Replays | None = None) -> None:
        self.me = me
        self.slots = slots
        self._runs: dict[_Key, Run] = {}
        self._replays = Replays() if replays is None else replays
        self._drain_at_s: float | None = None
        self._drained_told = False
        self._story = Story(4096)

    @property
    def running(self) -> int:
        """Attempts accepted and not ended."""
        return sum(r.state in _ACTIVE for r in self._runs.values())

    @property
    def draining(self) -> bool:
        return self._drain_at_s is not None

    def runs(self) -> tuple[Run, ...]:
        """The attempts accepted and not ended, oldest first; to look at, not to change."""
        return tuple(r for r in self._runs.values() if r.state in _ACTIVE)

    def state_of(self, submitter: NodeId, attempt: AttemptId) -> State:
        """Where that attempt stands."""
        run = self._runs.get((submitter, attempt))
        return State.ABSENT if run is None else run.state

    def handle(self, event: ExecutionEvent, now_s: float) -> Sequence[ExecutionEffect]:
        """What must be done now that ``event`` happened, in order."""
        match event:
            case ev.Tick():
                effects = self._tick(now_s)
            case ev.ConnectionLost(submitter):
                gone = [r.attempt for r in self._runs.values() if r.submitter == submitter]
                effects = [e for a in gone for e in self._on_run(ev.StreamLost(submitter, a), now_s)]
            case ev.Drain(deadline_s):
                self._drain_at_s, self._drained_told = deadline_s, False
                effects = []
            case ev.Undrain():
                self._drain_at_s = None
                effects = []
            case _:
                effects = self._on_run(event, now_s)
        return effects + self._start_queued(now_s) + self._tell_drained()

    def next_deadline(self) -> float | None:
        """When a `Tick` is due; None while time changes nothing."""
        due_s = [self._due_s(r) for r in self._runs.values() if r.state in _ACTIVE]
        if self._drain_at_s is not None and self._remote_active():
            due_s.append(self._drain_at_s)
        return min(due_s, default=None)

    def story(self, job: JobId | None = None) -> tuple[StoryEntry, ...]:
        """How the attempts of ``job`` (of every job, for None) got where they are."""
        return self._story.of(job)

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself; for tests."""
        states = [r.state for r in self._runs.values()]
        if sum(s in _ACTIVE for s in states) > self.slots or sum(s in _AT_ENGINE for s in states) > self.slots:
            raise AssertionError("more attempts than slots")
        active = [(r.submitter, r.attempt.job) for r in self._runs.values() if r.state in _ACTIVE]
        if len(set(active)) != len(active):
            raise AssertionError("two live attempts of one job")
        if State.ABSENT in states:
            raise AssertionError("an absent attempt is kept")

    # -- dispatch

    def _on_run(self, event: RunEvent, now_s: float) -> _Effects:
        run = self._runs.get((event.submitter, event.attempt))
        before = State.ABSENT if run is None else run.state
        rule = TABLE[before, type(event)]
        outcome = rule if isinstance(rule, Ignored) else rule(self, run, event, now_s)
        after = self.state_of(event.submitter, event.attempt)
        self._story.record(now_s, event.attempt.job, before, event, after, outcome)
        return [] if isinstance(outcome, Ignored) else outcome

    # -- offers

    def _offered(self, _: None, event: ev.OfferReceived, now_s: float) -> _Effects:
        header = event.task.header
        wrong = addressed(header, self.me, event.submitter, event.wall_s)
        if wrong is not None:
            return [ev.Decline(event.submitter, event.attempt, wrong)]
        until_s = now_s + header.expires_at - event.wall_s + 2 * limits.CLOCK_SKEW_S
        known = self._replays.check(event.submitter, event.attempt, until_s, now_s)
        if known is not None:
            retry_after_s = BUSY_RETRY_S if known is DeclineReason.BUSY else None
            return [ev.Decline(event.submitter, event.attempt, known, retry_after_s)]
        return self._fence(event, now_s) + self._admit(event, now_s)

    def _fence(self, event: ev.OfferReceived, now_s: float) -> _Effects:
        """End every earlier attempt of the job: its submitter has moved on."""
        job = (event.submitter, event.attempt.job)
        earlier = [r for r in self._runs.values() if (r.submitter, r.attempt.job) == job and r.state in _ACTIVE]
        return [e for run in earlier for e in self._end(run, EndReason.CANCELLED, now_s, "a later attempt came")]

    def _admit(self, event: ev.OfferReceived, now_s: float) -> _Effects:
        answer = admit(event.task, event.host, self.slots - self.running, local=event.local)
        if not isinstance(answer, Refusal) and self.draining and not event.local:
            answer = Refusal(DeclineReason.DRAINING)
        if isinstance(answer, Refusal):
            return [ev.Decline(event.submitter, event.attempt, answer.reason, answer.retry_after_s)]
        accept = ev.Accept(event.submitter, event.attempt, answer)
        lease_until_s = _NEVER if event.local else now_s + limits.LEASE_S
        run = Run(event.submitter, event.attempt, event.task, answer, event.local, now_s, lease_until_s, now_s)
        if answer is None:
            facts = run.facts(FinishReason.STOP, now_s)
            return [accept, ev.SendFinished(event.submitter, event.attempt, FinishReason.STOP, facts)]
        self._runs[event.submitter, event.attempt] = run
        return [accept]

    def _refused(self, _: Run | None, event: ev.OfferRefused, now_s: float) -> _Effects:
        return [ev.Decline(event.submitter, event.attempt, event.reason)]

    def _replayed(self, _: Run, event: ev.OfferReceived, now_s: float) -> _Effects:
        return [ev.Decline(event.submitter, event.attempt, DeclineReason.REPLAYED)]

    def _start_queued(self, now_s: float) -> _Effects:
        """Hand queued attempts to the engine while it has sequences free, oldest first."""
        free = self.slots - sum(r.state in _AT_ENGINE for r in self._runs.values())
        queued = [r for r in self._runs.values() if r.state is State.QUEUED]
        effects: _Effects = []
        for run in queued[: max(free, 0)]:
            if run.digest is None:
                raise AssertionError("a no-op never queues")
            run.state = State.STARTING
            start = ev.StartEngine(run.submitter, run.attempt, run.task, run.digest)
            self._story.record(now_s, run.attempt.job, State.QUEUED, start, run.state, [])
            effects.append(start)
        return effects

    # -- the lease

    def _renewed(self, run: Run, event: ev.Renewed, now_s: float) -> _Effects:
        if not run.local:
            run.lease_until_s = now_s + limits.LEASE_S
        return []

    def _cancelled(self, run: Run, event: ev.CancelReceived, now_s: float) -> _Effects:
        return self._end(run, EndReason.CANCELLED, now_s, "cancelled by the submitter")

    def _stream_lost(self, run: Run, event: ev.StreamLost, now_s: float) -> _Effects:
        facts = run.facts(EndReason.CANCELLED, now_s)
        return [*self._stop(run, EndReason.CANCELLED), ev.KeepReceipt(run.submitter, run.attempt, facts)]

    def _end(self, run: Run, reason: EndReason, now_s: float, message: str) -> _Effects:
        facts = run.facts(reason, now_s)
        return [*self._stop(run, reason), ev.SendEnded(run.submitter, run.attempt, reason, message, facts)]

    def _stop(self, run: Run, reason: EndReason) -> _Effects:
        if run.state is State.QUEUED:
            del self._runs[run.submitter, run.attempt]
            return []
        run.state = State.STOPPING
        return [ev.StopEngine(run.submitter, run.attempt, reason)]

    # -- the engine

    def _loads(self, run: Run, event: ev.EngineLoads, now_s: float) -> _Effects:
        run.sent_s = now_s
        return [ev.SendLoading(run.submitter, run.attempt, event.fraction)]

    def _began(self, run: Run, event: ev.EngineBegan, now_s: float) -> _Effects:
        run.state = State.RUNNING
        run.prompt_tokens, run.sent_s = event.opening.prompt_tokens, now_s
        return [ev.SendStarted(run.submitter, run.attempt, event.opening, run.digest)]

    def _produced(self, run: Run, event: ev.EngineProduced, now_s: float) -> _Effects:
        for offset, token in enumerate(event.tokens):
            if token.index != run.next_index + offset:
                return self._engine_wrong(run, event, now_s)
        run.tokens += len(event.tokens)
        for token in event.tokens:
            run.output += (token.id & 0xFFFFFFFF).to_bytes(4, "big")
        run.sent_s = now_s
        return [ev.SendTokens(run.submitter, run.attempt, event.tokens)] if event.tokens else []

    def _engine_ended(self, run: Run, event: ev.EngineEnded, now_s: float) -> _Effects:
        run.state = State.STOPPING
        if event.prompt_tokens is not None:
            run.prompt_tokens = event.prompt_tokens
        return [ev.SendFinished(run.submitter, run.attempt, event.reason, run.facts(event.reason, now_s))]

    def _engine_broke(self, run: Run, event: ev.EngineBroke, now_s: float) -> _Effects:
        run.state = State.STOPPING
        facts = run.facts(event.reason, now_s)
        return [ev.SendEnded(run.submitter, run.attempt, event.reason, event.message, facts, event.param)]

    def _engine_wrong(self, run: Run, event: RunEvent, now_s: float) -> _Effects:
        message = f"the engine said {type(event).__name__} out of turn"
        violation = ev.Violation(run.submitter, run.attempt, message)
        return [violation, *self._end(run, EndReason.ENGINE_FAILED, now_s, message)]

    def _freed_early(self, run: Run, event: ev.EngineFreed, now_s: float) -> _Effects:
        message = "the engine let go without a word"
        facts = run.facts(EndReason.ENGINE_FAILED, now_s)
        ended = ev.SendEnded(run.submitter, run.attempt, EndReason.ENGINE_FAILED, message, facts)
        return [ev.Violation(run.submitter, run.attempt, message), *self._freed(run, event, now_s), ended]

    def _freed(self, run: Run, event: ev.EngineFreed, now_s: float) -> _Effects:
        del self._runs[run.submitter, run.attempt]
        return []

    # -- time

    def _due_s(self, run: Run) -> float:
        queue_s = run.accepted_s + QUEUE_S if run.state is State.QUEUED else _NEVER
        return min(run.lease_until_s, run.sent_s + limits.HEARTBEAT_INTERVAL_S, queue_s)

    def _tick(self, now_s: float) -> _Effects:
        effects: _Effects = []
        drain_due = self._drain_at_s is not None and now_s >= self._drain_at_s
        for run in self.runs():
            before = run.state
            more = self._tick_run(run, drain_due, now_s)
            if more:
                after = self.state_of(run.submitter, run.attempt)
                self._story.record(now_s, run.attempt.job, before, ev.Tick(), after, more)
            effects += more
        return effects

    def _tick_run(self, run: Run, drain_due: bool, now_s: float) -> _Effects:
        if now_s >= run.lease_until_s:
            return self._end(run, EndReason.LEASE_LAPSED, now_s, "nothing heard of the submitter")
        if drain_due and not run.local:
            return self._end(run, EndReason.DRAINING, now_s, "this machine is draining")
        if run.state is State.QUEUED and now_s >= run.accepted_s + QUEUE_S:
            return self._end(run, EndReason.ENGINE_FAILED, now_s, "the engine gives no sequence back")
        if now_s >= run.sent_s + limits.HEARTBEAT_INTERVAL_S:
            run.sent_s = now_s
            return [ev.SendHeartbeat(run.submitter, run.attempt)]
        return []

    def _remote_active(self) -> bool:
        return any(not r.local and r.state in _ACTIVE for r in self._runs.values())

    def _tell_drained(self) -> _Effects:
        if not self.draining or self._drained_told or self._remote_active():
            return []
        self._drained_told = True
        return [ev.Drained()]


Rule = Callable[[Execution, Any, Any, float], _Effects] | Ignored

_E = Execution
_UNKNOWN = Ignored("no such attempt here")
_SAID = Ignored("the attempt has ended; the engine is letting go")
_NOT_AT_ENGINE = Ignored("the engine was not asked yet")


def _line(
    event: type, *, absent: Rule = _UNKNOWN, queued: Rule, starting: Rule, running: Rule, stopping: Rule = _SAID
) -> dict[tuple[str, type], Rule]:
    return row(event, absent=absent, queued=queued, starting=starting, running=running, stopping=stopping)


def _live(event: type, rule: Rule, absent: Rule = _UNKNOWN, stopping: Rule = _SAID) -> dict[tuple[str, type], Rule]:
    return _line(event, absent=absent, queued=rule, starting=rule, running=rule, stopping=stopping)


def _engine(event: type, starting: Rule, running: Rule, stopping: Rule = _SAID) -> dict[tuple[str, type], Rule]:
    return _line(event, queued=_NOT_AT_ENGINE, starting=starting, running=running, stopping=stopping)


TABLE: Final[dict[tuple[str, type], Rule]] = {
    **_live(ev.OfferReceived, _E._replayed, absent=_E._offered, stopping=_E._replayed),
    **_live(ev.OfferRefused, _E._refused, absent=_E._refused, stopping=_E._refused),
    **_live(ev.Renewed, _E._renewed),
    **_live(ev.CancelReceived, _E._cancelled),
    **_live(ev.StreamLost, _E._stream_lost),
    **_engine(ev.EngineLoads, starting=_E._loads, running=_E._engine_wrong),
    **_engine(ev.EngineBegan, starting=_E._began, running=_E._engine_wrong),
    **_engine(ev.EngineProduced, starting=_E._engine_wrong, running=_E._produced),
    **_engine(ev.EngineEnded, starting=_E._engine_wrong, running=_E._engine_ended),
    **_engine(ev.EngineBroke, starting=_E._engine_broke, running=_E._engine_broke),
    **_engine(ev.EngineFreed, starting=_E._freed_early, running=_E._freed_early, stopping=_E._freed),
}
