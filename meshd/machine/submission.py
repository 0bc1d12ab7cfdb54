"""One job at its submitter: from the app's request to exactly one end, whatever happens to the workers.

Theory
------
The submitter holds everything that the answer needs: the request, and the tokens that were delivered. A worker is
only ever lent the right to produce the next ones. So a job survives any worker: when an attempt is lost, the next
one is offered elsewhere, to go on after what was delivered.

    NEW -> PLACING -> OFFERING -> ACCEPTED -> RUNNING -> (STOPPING) -> ENDED
              ^  \\        |           |          |
              |   WAITING |           |          |
              +-----------+-----------+----------+   (declined, lost)

STOPPING has a complete text, by a stop string, and waits a moment for the worker's receipt.
PLACING asks for a worker (the answer comes at once, from a local table). OFFERING has an offer on the way. ACCEPTED
waits for the engine to take the prompt. RUNNING gets tokens. WAITING has found nobody and asks again, a little later
each time and as soon as a candidate appears, as long as `machine.waiting` says; then the job fails with
`mesh_no_worker`, with `mesh_overloaded` when everybody who could was busy (at once, when too many wait already), or
with `model_not_found` when no known node offers the model at all.

Four rules keep the answer whole.
1. Fencing. Attempts are numbered; what an earlier attempt still says is ignored, so two workers never both count.
2. Indices. A token is delivered when its index is the next one. One that was delivered is dropped; one beyond the
   next is a gap, which no correct worker makes: the attempt is lost by `protocol_violation`.
3. Pinning. Once a token was delivered, only the same model file may go on.
4. Silence is loss. A worker that says nothing (not even a heartbeat) for ``SUSPECT_AFTER_S`` is given up and
   told to stop; its lease ends by itself if it cannot hear us.

A refusal that the request itself causes (bad input, a prompt that does not fit) ends the job: no other worker would
do better. A worker that complains of its context only when asked to go on is merely too small; others are not.
A decline costs nothing but time: it does not count against ``MAX_ATTEMPTS``. A worker that declined for good, or
broke the protocol, is left out for the rest of the job; one that failed otherwise, for a moment that doubles; one
that was busy, only for the moment it asked for.

Every job ends by exactly one of `Complete`, `Fail`, `Withdrawn`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final

from meshd.core import errors, limits
from meshd.core.generation import FinishReason, Opening, Token, Usage
from meshd.core.ids import AttemptId, ModelDigest, NodeId
from meshd.core.job import Job, TaskKind
from meshd.core.task import DeclineReason, EndReason, LossReason
from meshd.machine import submission_events as ev
from meshd.machine.exclusions import Exclusions
from meshd.machine.submission_events import SubmissionEffect, SubmissionEvent
from meshd.machine.table import Ignored, Story, StoryEntry, row
from meshd.machine.waiting import PATIENCE_S, QUEUE_S, Waiting
from meshd.policy.backoff import backoff_s, loss_by, worth_retry, worth_return
from meshd.policy.feasible import Infeasible

OFFER_S: Final = 2.0
"""How long an offer may stay unanswered, a dial included."""

MAX_OFFERS: Final = 256
"""Offers of one job, declined ones included; attempt numbers end at 1,000."""

ENGINE_BUSY_S: Final = 1.0
"""How long a worker is left out whose engine had no room for the job after all."""

RECEIPT_S: Final = 0.5
"""How long a complete text waits for the last word of its worker, whose engine stops at the same token."""

ASK_AGAIN_S: Final = 0.05
"""Changes among the candidates make a waiting job ask at most so often."""


class State(StrEnum):
    """Where the job stands."""

    NEW = "new"
    PLACING = "placing"
    WAITING = "waiting"
    OFFERING = "offering"
    ACCEPTED = "accepted"
    RUNNING = "running"
    STOPPING = "stopping"
    ENDED = "ended"


_WITH_WORKER = frozenset({State.OFFERING, State.ACCEPTED, State.RUNNING, State.STOPPING})
_Effects = list[SubmissionEffect]


class Submission:
    """The state machine of one job. ``seed`` decides jitter. Times are monotonic seconds."""

    def __init__(
        self,
        job: Job,
        *,
        seed: int = 0,
        patience_s: float = PATIENCE_S,
        queue_s: float = QUEUE_S,
        offer_s: float = OFFER_S,
    ) -> None:
        self.job = job
        self.state = State.NEW
        self.worker: NodeId | None = None
        self.digest: ModelDigest | None = None
        self.delivered: list[Token] = []
        self.opening: Opening | None = None
        self._seed = seed
        self._waiting = Waiting(patience_s, queue_s)
        self._offer_s = offer_s
        self._number = 0
        self._losses = 0
        self._exclusions = Exclusions(seed)
        self._heard_at_s = 0.0
        self._asked_at_s = 0.0
        self._retry_at_s = 0.0
        self._rerouting: tuple[NodeId, LossReason] | None = None
        self._story = Story()

    @property
    def attempt(self) -> AttemptId | None:
        """The latest attempt; None before the first offer."""
        return AttemptId(self.job.id, self._number) if self._number else None

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        opening = self.opening or Opening(0)
        return Usage(opening.prompt_tokens, len(self.delivered), opening.cached_tokens)

    def handle(self, event: SubmissionEvent, now_s: float) -> Sequence[SubmissionEffect]:
        """What must be done now that ``event`` happened, in order."""
        before = self.state
        outcome = self._answer(event, now_s)
        self._story.record(now_s, self.job.id, before, event, self.state, outcome)
        return [] if isinstance(outcome, Ignored) else outcome

    def next_deadline(self) -> float | None:
        """When a `Tick` is due; None while time changes nothing."""
        if self.state is State.WAITING:
            return self._retry_at_s
        if self.state is State.OFFERING:
            return self._heard_at_s + self._offer_s
        if self.state in (State.ACCEPTED, State.RUNNING):
            return self._heard_at_s + limits.SUSPECT_AFTER_S
        if self.state is State.STOPPING:
            return self._heard_at_s + RECEIPT_S
        return None

    @property
    def queued(self) -> bool:
        """Whether the job waits for busy workers."""
        return self.state is State.WAITING and self._waiting.queued

    def would_take(self, worker: NodeId, now_s: float) -> bool:
        """Whether the job waits, and ``worker`` would do for all that happened to it so far."""
        return self.queued and self._exclusions.allow(worker, now_s)

    def story(self) -> tuple[StoryEntry, ...]:
        """How the job got where it is."""
        return self._story.of()

    def check_invariants(self) -> None:
        """Raise AssertionError when the state contradicts itself; for tests."""
        if [t.index for t in self.delivered] != list(range(len(self.delivered))):
            raise AssertionError("delivered tokens are not numbered without a gap")
        if len(self.delivered) > self._max_tokens:
            raise AssertionError("more tokens than were asked for")
        if (self.worker is not None) != (self.state in _WITH_WORKER):
            raise AssertionError(f"worker {self.worker} in state {self.state}")
        if self.delivered and self.digest is None:
            raise AssertionError("tokens were delivered but the model is not pinned")
        if self._losses > limits.MAX_ATTEMPTS or self._number > MAX_OFFERS:
            raise AssertionError("more attempts than allowed")

    # -- dispatch

    def _answer(self, event: SubmissionEvent, now_s: float) -> _Effects | Ignored:
        named = getattr(event, "attempt", None)
        if named is not None and named != self.attempt:
            return Ignored("of another attempt")
        rule = TABLE[self.state, type(event)]
        return rule if isinstance(rule, Ignored) else rule(self, event, now_s)

    @property
    def _max_tokens(self) -> int:
        if self.job.embedding is not None:
            return len(self.job.embedding.inputs)
        wanted = self.job.generation.max_tokens if self.job.generation is not None else None
        return limits.MAX_OUTPUT_TOKENS if wanted is None else wanted

    def _current(self) -> tuple[AttemptId, NodeId]:
        if self._number == 0 or self.worker is None:
            raise AssertionError("no attempt is running")
        return AttemptId(self.job.id, self._number), self.worker

    # -- finding a worker

    def _ask(self, event: object, now_s: float) -> _Effects:
        """Ask for a worker, unless there is nothing left to do or to try."""
        if len(self.delivered) >= self._max_tokens:
            return self._complete(FinishReason.LENGTH)
        if self._losses >= limits.MAX_ATTEMPTS or self._number >= MAX_OFFERS:
            kind = errors.Overloaded if self._exclusions.any_busy(now_s) else errors.NoWorker
            return self._fail(kind.code, f"given up after {self._number} attempts")
        self.state = State.PLACING
        self._waiting.asked()
        self._asked_at_s = now_s
        excluded = self._exclusions.now(now_s)
        return [ev.AskPlacement(AttemptId(self.job.id, self._number + 1), excluded, self._pinned)]

    @property
    def _pinned(self) -> ModelDigest | None:
        return self.digest if self.delivered else None

    def _placed(self, event: ev.Placed, now_s: float) -> _Effects:
        self.state = State.OFFERING
        self._number += 1
        self.worker = event.worker
        self._heard_at_s = now_s
        attempt, worker = self._current()
        return [ev.Offer(attempt, worker, tuple(self.delivered), self._pinned)]

    def _no_candidate(self, event: ev.NoCandidate, now_s: float) -> _Effects:
        busy = Infeasible.BUSY.value in event.reasons or self._exclusions.any_busy(now_s)
        nowhere = not event.model_known and self._number == 0
        if busy and event.queue_full and not self._waiting.queued and not self.delivered:
            return self._fail(errors.Overloaded.code, "every worker is busy, and many jobs wait for them already")
        give_up_at_s = self._waiting.give_up_s(now_s, busy=busy, nowhere=nowhere)
        if now_s >= give_up_at_s:
            return self._give_up(event, busy, nowhere)
        self.state = State.WAITING
        soonest_s = self._exclusions.soonest_s(now_s)
        wait_s = min(backoff_s(self._waiting.asks, self._seed), max(soonest_s - now_s, ASK_AGAIN_S))
        self._retry_at_s = min(now_s + wait_s, give_up_at_s)
        return []

    def _give_up(self, event: ev.NoCandidate, busy: bool, nowhere: bool) -> _Effects:
        if nowhere:
            return self._fail(errors.UnknownModel.code, f"no node offers the model {self.job.model!r}")
        why = ", ".join(sorted(set(event.reasons))) or "no node is known"
        if busy:
            return self._fail(errors.Overloaded.code, f"every worker that can run this job stayed busy ({why})")
        return self._fail(errors.NoWorker.code, f"no worker can run this job now ({why})")

    def _retry_when_due(self, event: ev.Tick, now_s: float) -> _Effects | Ignored:
        return self._ask(event, now_s) if now_s >= self._retry_at_s else Ignored("not yet")

    def _retry_now(self, event: ev.CandidatesChanged, now_s: float) -> _Effects | Ignored:
        if now_s >= self._asked_at_s + ASK_AGAIN_S:
            return self._ask(event, now_s)
        self._retry_at_s = min(self._retry_at_s, self._asked_at_s + ASK_AGAIN_S)
        return []

    # -- an offer's answer

    def _accepted(self, event: ev.OfferAccepted, now_s: float) -> _Effects:
        self.state = State.ACCEPTED
        self._heard_at_s = now_s
        attempt, worker = self._current()
        if self._rerouting is None:
            return []
        (lost_worker, reason), self._rerouting = self._rerouting, None
        return [ev.Reroute(attempt, worker, lost_worker, len(self.delivered), reason)]

    def _declined(self, event: ev.OfferDeclined, now_s: float) -> _Effects:
        _, worker = self._current()
        if event.reason is DeclineReason.BUSY:
            self._exclusions.busy(worker, now_s, event.retry_after_s or 0.0)
        elif worth_retry(event.reason):
            self._exclusions.for_a_while(worker, now_s, event.retry_after_s or 0.0)
        else:
            self._exclusions.for_good(worker)
        self.worker = None
        return self._ask(event, now_s)

    # -- a running attempt

    def _started(self, event: ev.Started, now_s: float) -> _Effects:
        if self._pinned is not None and event.digest != self._pinned:
            return self._lose(LossReason.PROTOCOL, now_s)
        if event.digest is None and self.job.kind is not TaskKind.NOOP:
            return self._lose(LossReason.PROTOCOL, now_s)
        self.state = State.RUNNING
        self._heard_at_s = now_s
        self._waiting.over()
        self.digest = event.digest
        if self.opening is None:
            self.opening = event.opening
        attempt, worker = self._current()
        return [ev.Began(attempt, worker, self.opening, self.digest)]

    def _tokens(self, event: ev.Tokens, now_s: float) -> _Effects:
        self._heard_at_s = now_s
        new, violated = self._in_order(event.tokens)
        self.delivered.extend(new)
        effects: _Effects = [ev.Deliver(event.attempt, tuple(new))] if new else []
        return effects + (self._lose(LossReason.PROTOCOL, now_s) if violated else [])

    def _in_order(self, tokens: Sequence[Token]) -> tuple[list[Token], bool]:
        """The tokens to deliver, and whether the worker left a gap or went beyond what was asked for."""
        new: list[Token] = []
        for token in tokens:
            expected = len(self.delivered) + len(new)
            if token.index > expected or (token.index == expected and expected >= self._max_tokens):
                return new, True
            if token.index == expected:
                new.append(token)
        return new, False

    def _heartbeat(self, event: ev.Heartbeat, now_s: float) -> _Effects:
        self._heard_at_s = now_s
        return []

    def _finished(self, event: ev.Finished, now_s: float) -> _Effects:
        attempt, worker = self._current()
        fault: _Effects = [] if event.verified else [ev.ReportFault(attempt, worker, LossReason.PROTOCOL)]
        return fault + self._complete(event.reason, worker=worker, verified=event.verified)

    def _finished_unstarted(self, event: ev.Finished, now_s: float) -> _Effects:
        """A no-op has nothing to start; anything else must have."""
        if self.job.kind is TaskKind.NOOP:
            return self._finished(event, now_s)
        return self._lose(LossReason.PROTOCOL, now_s)

    # -- losing an attempt

    def _ended(self, event: ev.Ended, now_s: float) -> _Effects:
        reason = event.reason
        if reason is EndReason.BAD_INPUT:
            message = event.message or "the worker cannot read the request"
            return self._fail(errors.BadInput.code, message, event.param)
        if reason is EndReason.CONTEXT_OVERFLOW:
            if self.delivered:
                return self._lose(LossReason.DECLINED, now_s, for_good=True, tell=False)
            message = event.message or "the prompt does not fit the context"
            return self._fail(errors.ContextOverflow.code, message, event.param)
        if reason is EndReason.BUSY:
            _, worker = self._current()
            self._exclusions.busy(worker, now_s, ENGINE_BUSY_S)
            self.worker = None
            return self._ask(event, now_s)
        return self._lose(loss_by(reason), now_s, tell=False)

    def _lost(self, event: ev.Lost, now_s: float) -> _Effects:
        return self._lose(event.reason, now_s, tell=event.reason is LossReason.PROTOCOL)

    def _violated(self, event: object, now_s: float) -> _Effects:
        return self._lose(LossReason.PROTOCOL, now_s)

    def _silent_when_due(self, event: ev.Tick, now_s: float) -> _Effects | Ignored:
        due_s = self.next_deadline()
        return self._lose(LossReason.SILENT, now_s) if due_s is not None and now_s >= due_s else Ignored("not yet")

    def _suspected(self, event: ev.Suspected, now_s: float) -> _Effects | Ignored:
        """Believe it, unless the attempt itself spoke a moment ago."""
        if event.worker != self.worker:
            return Ignored("another worker")
        if self.state is not State.OFFERING and now_s - self._heard_at_s < 2 * limits.HEARTBEAT_INTERVAL_S:
            return Ignored("the attempt itself is heard")
        return self._lose(LossReason.SILENT, now_s)

    def _lose(self, reason: LossReason, now_s: float, *, tell: bool = True, for_good: bool = False) -> _Effects:
        """The attempt is over, the job is not. ``tell`` the worker, when it may still be there."""
        attempt, worker = self._current()
        effects: _Effects = [ev.CancelAttempt(attempt, worker, reason)] if tell else []
        if reason not in (LossReason.DECLINED, LossReason.DRAINING):
            effects.append(ev.ReportFault(attempt, worker, reason))
        if for_good or not worth_return(reason):
            self._exclusions.for_good(worker)
        else:
            self._exclusions.for_a_while(worker, now_s)
        if self.state is not State.OFFERING:
            self._rerouting = (worker, reason)
        self._losses += 1
        self.worker = None
        return effects + self._ask(None, now_s)

    # -- the end

    def _stopped_by_text(self, event: ev.StoppedByText, now_s: float) -> _Effects:
        return self._complete(FinishReason.STOP)

    def _stopping(self, event: ev.StoppedByText, now_s: float) -> _Effects:
        """The text is complete. The worker's engine stops at the same token: its receipt is a moment away."""
        self.state = State.STOPPING
        self._heard_at_s = now_s
        return []

    def _receipt(self, event: ev.Finished, now_s: float) -> _Effects:
        attempt, worker = self._current()
        fault: _Effects = [] if event.verified else [ev.ReportFault(attempt, worker, LossReason.PROTOCOL)]
        return fault + self._complete(FinishReason.STOP, worker=worker, verified=event.verified)

    def _no_receipt(self, event: object, now_s: float) -> _Effects:
        return self._cancel_worker("a stop string is complete") + self._complete(FinishReason.STOP)

    def _no_receipt_when_due(self, event: ev.Tick, now_s: float) -> _Effects | Ignored:
        due_s = self.next_deadline()
        return self._no_receipt(event, now_s) if due_s is not None and now_s >= due_s else Ignored("not yet")

    def _withdrawn(self, event: ev.Cancelled, now_s: float) -> _Effects:
        effects = self._cancel_worker("the app took the job back")
        self.state, self.worker = State.ENDED, None
        return [*effects, ev.Withdrawn(self.job.id, self.attempt)]

    def _cancel_worker(self, reason: str) -> _Effects:
        if self.worker is None:
            return []
        attempt, worker = self._current()
        return [ev.CancelAttempt(attempt, worker, reason)]

    def _complete(self, finish: FinishReason, *, worker: NodeId | None = None, verified: bool = False) -> _Effects:
        self.state, self.worker = State.ENDED, None
        return [ev.Complete(self.job.id, self.attempt, worker, finish, self.usage, verified)]

    def _fail(self, code: str, message: str, param: str = "") -> _Effects:
        self.state, self.worker = State.ENDED, None
        return [ev.Fail(self.job.id, self.attempt, code, message, param)]


Rule = Callable[[Submission, Any, float], _Effects | Ignored] | Ignored

_S = Submission
_OVER = Ignored("the job has ended")
_NOT_YET = Ignored("the job was not submitted yet")
_NO_ATTEMPT = Ignored("that attempt is over")
_NOT_ASKED = Ignored("no placement was asked for")
_HAS_WORKER = Ignored("the job has a worker")
_ONCE = Ignored("submitted already")
_TEXT_COMPLETE = Ignored("the text is complete")
_TIMELESS = Ignored("time changes nothing here")


def _attempt_row(
    event: type, *, offering: Rule, accepted: Rule, running: Rule, stopping: Rule = _TEXT_COMPLETE
) -> dict[tuple[str, type], Rule]:
    """Events that name an attempt: in the other states there is none, or it is over."""
    over: dict[str, Rule] = {"new": _NOT_YET, "placing": _NO_ATTEMPT, "waiting": _NO_ATTEMPT, "ended": _OVER}
    return row(event, **over, offering=offering, accepted=accepted, running=running, stopping=stopping)


def _asked_row(event: type, placing: Rule) -> dict[tuple[str, type], Rule]:
    """Answers to `AskPlacement`."""
    others = dict.fromkeys(("waiting", "offering", "accepted", "running", "stopping"), _NOT_ASKED)
    return row(event, new=_NOT_YET, placing=placing, ended=_OVER, **others)


def _app_row(event: type, rule: Rule, new: Rule) -> dict[tuple[str, type], Rule]:
    """What the app or its text says counts whatever the worker does."""
    live = dict.fromkeys(("placing", "waiting", "offering", "accepted", "running", "stopping"), rule)
    return row(event, new=new, ended=_OVER, **live)


TABLE: Final[dict[tuple[str, type], Rule]] = {
    **_app_row(ev.Submitted, _ONCE, new=_S._ask),
    **_app_row(ev.Cancelled, _S._withdrawn, new=_S._withdrawn),
    **_app_row(ev.StoppedByText, _S._stopped_by_text, new=_NOT_YET),
    (State.RUNNING, ev.StoppedByText): _S._stopping,
    (State.STOPPING, ev.StoppedByText): _ONCE,
    **_asked_row(ev.Placed, _S._placed),
    **_asked_row(ev.NoCandidate, _S._no_candidate),
    **_attempt_row(ev.OfferAccepted, offering=_S._accepted, accepted=_S._violated, running=_S._violated),
    **_attempt_row(ev.OfferDeclined, offering=_S._declined, accepted=_S._violated, running=_S._violated),
    **_attempt_row(ev.Started, offering=_S._violated, accepted=_S._started, running=_S._violated),
    **_attempt_row(ev.Tokens, offering=_S._violated, accepted=_S._violated, running=_S._tokens),
    **_attempt_row(ev.Heartbeat, offering=_S._violated, accepted=_S._heartbeat, running=_S._heartbeat),
    **_attempt_row(
        ev.Finished, offering=_S._violated, accepted=_S._finished_unstarted, running=_S._finished, stopping=_S._receipt
    ),
    **_attempt_row(ev.Ended, offering=_S._violated, accepted=_S._ended, running=_S._ended, stopping=_S._no_receipt),
    **_attempt_row(ev.Lost, offering=_S._lost, accepted=_S._lost, running=_S._lost, stopping=_S._no_receipt),
    **_attempt_row(ev.Suspected, offering=_S._suspected, accepted=_S._suspected, running=_S._suspected),
    **row(
        ev.Tick,
        new=_TIMELESS,
        placing=_TIMELESS,
        waiting=_S._retry_when_due,
        offering=_S._silent_when_due,
        accepted=_S._silent_when_due,
        running=_S._silent_when_due,
        stopping=_S._no_receipt_when_due,
        ended=_TIMELESS,
    ),
    **row(
        ev.CandidatesChanged,
        new=_NOT_YET,
        placing=Ignored("the answer is on its way"),
        waiting=_S._retry_now,
        ended=_OVER,
        **dict.fromkeys(("offering", "accepted", "running", "stopping"), _HAS_WORKER),
    ),
}
