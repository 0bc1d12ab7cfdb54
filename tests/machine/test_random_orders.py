"""Submission and execution under any order of events, honest or not."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshd.core import limits
from meshd.core.generation import FinishReason, Opening, Token
from meshd.core.ids import AttemptId, NodeId
from meshd.core.share import Share
from meshd.core.task import DeclineReason, EndReason, LossReason
from meshd.machine import execution_events as ex
from meshd.machine import submission_events as sub
from meshd.machine.execution import Execution
from meshd.machine.submission import State, Submission
from meshd.policy.admission import Host
from tests.machine.test_execution import ME, task
from tests.policy.make import DIGEST, FACTS, OTHER_DIGEST, job, node, offer, tokens

MAX_TOKENS = 12
workers = st.sampled_from([node(n) for n in range(11, 16)])
losses = st.sampled_from([r for r in LossReason if r is not LossReason.DECLINED])
waits = st.floats(0, 3)


class SubmissionMachine(RuleBasedStateMachine):
    """Workers that may say anything, late, twice, or never; an app that may leave; time that passes."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Submission(job(max_tokens=MAX_TOKENS), seed=3)
        self.now_s = 0.0
        self.got: list[Token] = []
        self.ends: list[Any] = []
        self.offers: list[sub.Offer] = []
        self.asked = False
        self.feed(sub.Submitted())

    def feed(self, event: sub.SubmissionEvent) -> None:
        was_over = bool(self.ends)
        effects = self.machine.handle(event, self.now_s)
        assert not (was_over and effects), f"{effects} after the end"
        for effect in effects:
            match effect:
                case sub.Deliver(tokens=new):
                    self.got += new
                case sub.Complete() | sub.Fail() | sub.Withdrawn():
                    self.ends.append(effect)
                case sub.Offer():
                    assert effect.delivered == tuple(self.got) and (effect.digest is None) == (not self.got)
                    assert not self.offers or effect.attempt > self.offers[-1].attempt
                    self.offers.append(effect)
                case sub.AskPlacement():
                    self.asked = True
                    assert effect.digest == (DIGEST if self.got else None)
                case _:
                    pass
        self.asked = self.asked and self.machine.state is State.PLACING

    def any_attempt(self, data: st.DataObject) -> AttemptId:
        """Usually the current one, sometimes one that is over."""
        assert self.machine.attempt is not None
        number = self.machine.attempt.number
        return AttemptId(self.machine.job.id, data.draw(st.sampled_from([number, number, number, max(1, number - 1)])))

    @rule(worker=workers)
    def placed(self, worker: NodeId) -> None:
        self.feed(sub.Placed(worker))

    @rule(reason=st.sampled_from(["busy", "excluded", "suspect"]), full=st.booleans())
    def nobody(self, reason: str, full: bool) -> None:
        self.feed(sub.NoCandidate((reason,), queue_full=full))

    @rule(wait_s=waits)
    def time_passes(self, wait_s: float) -> None:
        due_s = self.machine.next_deadline()
        self.now_s = min(self.now_s + wait_s, max(self.now_s, due_s)) if due_s is not None else self.now_s + wait_s
        self.feed(sub.Tick())

    @precondition(lambda self: self.machine.attempt is not None)
    @rule(data=st.data())
    def accepted(self, data: st.DataObject) -> None:
        self.feed(sub.OfferAccepted(self.any_attempt(data)))

    @precondition(lambda self: self.machine.state is State.OFFERING)
    @rule()
    def goes_well(self) -> None:
        """Accepted and begun: the usual way, so that most runs get far."""
        assert self.machine.attempt is not None
        self.feed(sub.OfferAccepted(self.machine.attempt))
        self.feed(sub.Started(self.machine.attempt, Opening(7), DIGEST))

    @precondition(lambda self: self.machine.attempt is not None)
    @rule(data=st.data(), reason=st.sampled_from(list(DeclineReason)))
    def declined(self, data: st.DataObject, reason: DeclineReason) -> None:
        self.feed(sub.OfferDeclined(self.any_attempt(data), reason, 0.1))

    @precondition(lambda self: self.machine.attempt is not None)
    @rule(data=st.data(), digest=st.sampled_from([DIGEST, DIGEST, OTHER_DIGEST]))
    def started(self, data: st.DataObject, digest: Any) -> None:
        if self.got or digest == DIGEST:
            self.feed(sub.Started(self.any_attempt(data), Opening(7), digest))

    @precondition(lambda self: self.machine.state is State.RUNNING)
    @rule(data=st.data(), skip=st.sampled_from([0, 0, 0, -2, -1, 1]), count=st.integers(1, 4))
    def some_tokens(self, data: st.DataObject, skip: int, count: int) -> None:
        first = max(0, len(self.got) + skip)
        self.feed(sub.Tokens(self.any_attempt(data), tokens(first, count)))

    @precondition(lambda self: self.machine.attempt is not None)
    @rule(data=st.data(), reason=losses)
    def lost(self, data: st.DataObject, reason: LossReason) -> None:
        self.feed(sub.Lost(self.any_attempt(data), reason))

    @precondition(lambda self: self.machine.attempt is not None)
    @rule(data=st.data(), reason=st.sampled_from([EndReason.ENGINE_FAILED, EndReason.DRAINING]))
    def ended(self, data: st.DataObject, reason: EndReason) -> None:
        self.feed(sub.Ended(self.any_attempt(data), reason))

    @rule(worker=workers)
    def suspected(self, worker: NodeId) -> None:
        self.feed(sub.Suspected(worker))

    @rule()
    def candidates_changed(self) -> None:
        self.feed(sub.CandidatesChanged())

    @precondition(lambda self: self.machine.state is State.RUNNING and len(self.got) >= 3)
    @rule(data=st.data())
    def finished(self, data: st.DataObject) -> None:
        self.feed(sub.Finished(self.any_attempt(data), FinishReason.STOP, True))

    @precondition(lambda self: len(self.got) >= 6)
    @rule()
    def stopped_by_text(self) -> None:
        self.feed(sub.StoppedByText())

    @precondition(lambda self: len(self.offers) >= 4)
    @rule()
    def cancelled(self) -> None:
        self.feed(sub.Cancelled())

    @invariant()
    def the_answer_is_whole(self) -> None:
        self.machine.check_invariants()
        assert self.got == list(tokens(0, len(self.got))) and len(self.got) <= MAX_TOKENS

    @invariant()
    def it_ends_once_or_something_is_due(self) -> None:
        """A job that has not ended waits for an answer it asked for, or for a deadline. Never for nothing."""
        over = self.machine.state is State.ENDED
        assert len(self.ends) == (1 if over else 0)
        if over:
            assert self.machine.next_deadline() is None
        elif self.machine.state is State.PLACING:
            assert self.asked
        else:
            assert self.machine.next_deadline() is not None

    def teardown(self) -> None:
        """Left alone, with nobody to place it on, every job ends within its bounds."""
        for _ in range(10 * limits.MAX_ATTEMPTS):
            if self.machine.state is State.PLACING:
                self.feed(sub.NoCandidate())
            due_s = self.machine.next_deadline()
            if due_s is not None:
                self.now_s = max(self.now_s, due_s)
                self.feed(sub.Tick())
        assert len(self.ends) == 1
        if isinstance(self.ends[0], sub.Complete):
            assert self.ends[0].usage.completion_tokens == len(self.got)


submitters = st.sampled_from([node(2), node(3)])
hosts = st.sampled_from([Host(FACTS, Share(enabled=True), (offer(),)), Host(FACTS, Share(), (offer(),))])


class ExecutionMachine(RuleBasedStateMachine):
    """Submitters and an engine that may do anything in any order."""

    SLOTS = 2

    def __init__(self) -> None:
        super().__init__()
        self.machine = Execution(ME, self.SLOTS)
        self.now_s = 50.0
        self.accepted: dict[tuple[NodeId, AttemptId], int] = {}
        self.over: set[tuple[NodeId, AttemptId]] = set()
        self.engine: set[tuple[NodeId, AttemptId]] = set()
        self.sent: dict[tuple[NodeId, AttemptId], int] = {}

    def feed(self, event: ex.ExecutionEvent) -> None:
        for effect in self.machine.handle(event, self.now_s):
            if isinstance(effect, ex.Drained | ex.Violation):
                continue
            key = (effect.submitter, effect.attempt)
            assert key not in self.over or isinstance(effect, ex.Decline), f"{effect} after the last word"
            match effect:
                case ex.Accept():
                    assert key not in self.accepted, "accepted twice"
                    self.accepted[key] = 0
                    self.sent[key] = 0
                case ex.StartEngine():
                    assert key not in self.engine
                    self.engine.add(key)
                    assert len(self.engine) <= self.SLOTS
                case ex.SendTokens(tokens=new):
                    assert [t.index for t in new] == list(range(self.sent[key], self.sent[key] + len(new)))
                    self.sent[key] += len(new)
                case ex.SendFinished() | ex.SendEnded() | ex.KeepReceipt():
                    assert key in self.accepted and effect.receipt.tokens == self.sent[key]
                    self.over.add(key)
                case _:
                    pass

    def some_key(self, data: st.DataObject) -> tuple[NodeId, AttemptId]:
        return data.draw(st.sampled_from(sorted(self.accepted)))

    @rule(submitter=submitters, number=st.integers(1, 3), attempt=st.integers(1, 4), host=hosts, local=st.booleans())
    def offered(self, submitter: NodeId, number: int, attempt: int, host: Host, local: bool) -> None:
        who = ME if local else submitter
        wall_s = 1_000_000.0 + self.now_s - 50
        made = task(number, attempt, submitter=who, expires_at=wall_s + 30)
        self.feed(ex.OfferReceived(who, made, host, wall_s, local))

    @precondition(lambda self: self.engine)
    @rule(data=st.data())
    def engine_works(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.engine)))
        self.feed(ex.EngineBegan(*key, Opening(3)))
        self.feed(ex.EngineProduced(*key, tokens(self.sent[key], 2)))

    @precondition(lambda self: self.engine)
    @rule(data=st.data(), first=st.integers(0, 5))
    def engine_errs(self, data: st.DataObject, first: int) -> None:
        self.feed(ex.EngineProduced(*data.draw(st.sampled_from(sorted(self.engine))), tokens(first, 1)))

    @precondition(lambda self: self.engine)
    @rule(data=st.data(), broke=st.booleans())
    def engine_ends(self, data: st.DataObject, broke: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.engine)))
        self.feed(ex.EngineBroke(*key, EndReason.ENGINE_FAILED) if broke else ex.EngineEnded(*key, FinishReason.STOP))

    @precondition(lambda self: self.engine)
    @rule(data=st.data())
    def engine_frees(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.engine)))
        self.engine.discard(key)
        self.feed(ex.EngineFreed(*key))

    @precondition(lambda self: self.accepted)
    @rule(data=st.data(), kind=st.sampled_from([ex.Renewed, ex.CancelReceived, ex.StreamLost]))
    def submitter_says(self, data: st.DataObject, kind: Any) -> None:
        self.feed(kind(*self.some_key(data)))

    @rule(submitter=submitters)
    def connection_lost(self, submitter: NodeId) -> None:
        self.feed(ex.ConnectionLost(submitter))
        assert all(r.submitter != submitter for r in self.machine.runs())

    @rule(wait_s=st.floats(0, 6))
    def time_passes(self, wait_s: float) -> None:
        self.now_s += wait_s
        self.feed(ex.Tick())
        due_s = self.machine.next_deadline()
        assert due_s is None or due_s > self.now_s

    @rule(drain=st.booleans())
    def drain(self, drain: bool) -> None:
        self.feed(ex.Drain(self.now_s + 2) if drain else ex.Undrain())

    @invariant()
    def it_adds_up(self) -> None:
        self.machine.check_invariants()
        live = {(r.submitter, r.attempt) for r in self.machine.runs()}
        assert live == set(self.accepted) - self.over
        assert all(r.local or r.lease_until_s <= self.now_s + limits.LEASE_S for r in self.machine.runs())

    def teardown(self) -> None:
        """With every submitter silent, nothing runs on."""
        self.now_s += limits.LEASE_S + 0.1
        self.feed(ex.Tick())
        assert all(r.local for r in self.machine.runs())


BOUNDS = settings(max_examples=80, stateful_step_count=40, deadline=None)
SubmissionMachine.TestCase.settings = BOUNDS
ExecutionMachine.TestCase.settings = BOUNDS
TestSubmission = SubmissionMachine.TestCase
TestExecution = ExecutionMachine.TestCase
