"""Each rule of a job's life at its submitter, one test a rule."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from meshd.core import limits
from meshd.core.generation import FinishReason, Opening, Token, Usage
from meshd.core.ids import AttemptId, NodeId
from meshd.core.job import TaskKind
from meshd.core.task import DeclineReason, EndReason, LossReason
from meshd.machine import submission_events as ev
from meshd.machine.exclusions import EXCLUDE_S
from meshd.machine.submission import MAX_OFFERS, OFFER_S, RECEIPT_S, State, Submission
from meshd.machine.waiting import PATIENCE_S, QUEUE_S, UNKNOWN_MODEL_S
from tests.policy.make import DIGEST, OTHER_DIGEST, job, job_id, node, token, tokens

W1, W2, W3 = node(11), node(12), node(13)


class Driver:
    """A submission, its clock, and everything it said."""

    def __init__(self, **of_job: object) -> None:
        self.machine = Submission(job(**of_job), seed=1)  # type: ignore[arg-type]
        self.now_s = 100.0
        self.calls = 0
        self.said: list[ev.SubmissionEffect] = []

    def __call__(self, event: ev.SubmissionEvent, after_s: float = 0.0) -> Sequence[ev.SubmissionEffect]:
        self.calls += 1
        assert self.calls < 5_000, "no end in sight"
        self.now_s += after_s
        effects = self.machine.handle(event, self.now_s)
        self.machine.check_invariants()
        self.said += effects
        return effects

    @property
    def attempt(self) -> AttemptId:
        assert self.machine.attempt is not None
        return self.machine.attempt

    def tick(self) -> Sequence[ev.SubmissionEffect]:
        """Let time pass until the machine wants to be woken."""
        due_s = self.machine.next_deadline()
        assert due_s is not None and due_s >= self.now_s
        self.now_s = due_s
        return self(ev.Tick())

    def placed(self, worker: NodeId = W1) -> AttemptId:
        if self.machine.state is State.NEW:
            self(ev.Submitted())
        self(ev.Placed(worker))
        return self.attempt

    def accepted(self, worker: NodeId = W1) -> AttemptId:
        attempt = self.placed(worker)
        self(ev.OfferAccepted(attempt))
        return attempt

    def running(self, worker: NodeId = W1) -> AttemptId:
        attempt = self.accepted(worker)
        self(ev.Started(attempt, Opening(7), DIGEST))
        return attempt

    def delivered(self) -> list[Token]:
        return [t for e in self.said if isinstance(e, ev.Deliver) for t in e.tokens]

    def ends(self) -> list[ev.SubmissionEffect]:
        return [e for e in self.said if isinstance(e, ev.Complete | ev.Fail | ev.Withdrawn)]


def only(effects: Sequence[ev.SubmissionEffect], kind: type) -> ev.SubmissionEffect | None:
    found = [e for e in effects if isinstance(e, kind)]
    assert len(found) <= 1
    return found[0] if found else None


def ask(effects: Sequence[ev.SubmissionEffect]) -> ev.AskPlacement:
    found = only(effects, ev.AskPlacement)
    assert isinstance(found, ev.AskPlacement)
    return found


def test_undisturbed() -> None:
    d = Driver(max_tokens=9)
    a = AttemptId(job_id(), 1)
    assert d(ev.Submitted()) == [ev.AskPlacement(a, frozenset(), None)]
    assert d(ev.Placed(W1)) == [ev.Offer(a, W1, (), None)]
    assert d(ev.OfferAccepted(a)) == []
    assert d(ev.Started(a, Opening(7, ("User:",)), DIGEST)) == [ev.Began(a, W1, Opening(7, ("User:",)), DIGEST)]
    assert d(ev.Tokens(a, tokens(0, 2))) == [ev.Deliver(a, tokens(0, 2))]
    assert d(ev.Heartbeat(a)) == []
    assert d(ev.Tokens(a, tokens(2, 1))) == [ev.Deliver(a, tokens(2, 1))]
    done = ev.Complete(job_id(), a, W1, FinishReason.STOP, Usage(7, 3), True)
    assert d(ev.Finished(a, FinishReason.STOP, True)) == [done]
    assert d.machine.state is State.ENDED and d.machine.next_deadline() is None
    assert [e.after for e in d.machine.story()][-1] == "ended"


def test_lost_in_mid_stream_goes_on_at_the_next_index_with_the_same_model() -> None:
    d = Driver(max_tokens=9)
    a = d.running()
    d(ev.Tokens(a, tokens(0, 3)))
    lost = d(ev.Lost(a, LossReason.CONNECTION_LOST))
    b = AttemptId(job_id(), 2)
    assert lost == [
        ev.ReportFault(a, W1, LossReason.CONNECTION_LOST),
        ev.AskPlacement(b, frozenset({W1}), DIGEST),
    ]
    assert d(ev.Placed(W2)) == [ev.Offer(b, W2, tokens(0, 3), DIGEST)]
    assert d(ev.OfferAccepted(b)) == [ev.Reroute(b, W2, W1, 3, LossReason.CONNECTION_LOST)]
    d(ev.Started(b, Opening(10, ("other",)), DIGEST))
    d(ev.Tokens(b, tokens(3, 2)))
    done = only(d(ev.Finished(b, FinishReason.STOP, True)), ev.Complete)
    assert done == ev.Complete(job_id(), b, W2, FinishReason.STOP, Usage(7, 5), True), "the prompt counts once"
    assert d.delivered() == list(tokens(0, 5))


def test_stops_are_those_of_the_first_attempt() -> None:
    d = Driver()
    a = d.accepted()
    d(ev.Started(a, Opening(7, ("one",)), DIGEST))
    d(ev.Lost(a, LossReason.CONNECTION_LOST))
    b = d.accepted(W2)
    began = only(d(ev.Started(b, Opening(9, ("two",)), DIGEST)), ev.Began)
    assert isinstance(began, ev.Began) and began.opening == Opening(7, ("one",))


def test_before_the_first_token_the_model_is_not_pinned() -> None:
    d = Driver()
    assert ask(d(ev.Lost(d.running(), LossReason.CONNECTION_LOST))).digest is None
    d(ev.OfferAccepted(d.placed(W2)))
    assert only(d(ev.Started(d.attempt, Opening(7), OTHER_DIGEST)), ev.Began) is not None


def test_another_model_file_may_not_go_on() -> None:
    d = Driver()
    d(ev.Tokens(d.running(), tokens(0, 1)))
    d(ev.Lost(d.attempt, LossReason.CONNECTION_LOST))
    b = d.accepted(W2)
    effects = d(ev.Started(b, Opening(7), OTHER_DIGEST))
    assert ev.ReportFault(b, W2, LossReason.PROTOCOL) in effects and only(effects, ev.Began) is None


def test_generation_without_a_digest_is_a_violation() -> None:
    d = Driver()
    a = d.accepted()
    assert ev.ReportFault(a, W1, LossReason.PROTOCOL) in d(ev.Started(a, Opening(7), None))


def test_earlier_attempts_are_fenced_off() -> None:
    d = Driver()
    a = d.running()
    d(ev.Tokens(a, tokens(0, 1)))
    d(ev.Lost(a, LossReason.SILENT))
    d.running(W2)
    late: list[ev.SubmissionEvent] = [
        ev.OfferAccepted(a),
        ev.OfferDeclined(a, DeclineReason.BUSY),
        ev.Started(a, Opening(7), OTHER_DIGEST),
        ev.Tokens(a, tokens(1, 1)),
        ev.Finished(a, FinishReason.STOP, True),
        ev.Ended(a, EndReason.BAD_INPUT),
        ev.Lost(a, LossReason.CONNECTION_LOST),
    ]
    for event in late:
        assert d(event) == [], event
    d(ev.Heartbeat(a), after_s=1.0)
    assert d.machine.next_deadline() == d.now_s + 0.5, "a late heartbeat keeps nobody alive"


def test_other_jobs_events_change_nothing() -> None:
    d = Driver()
    d.running()
    assert d(ev.Tokens(AttemptId(job_id(2), 1), tokens(0, 1))) == []


def test_delivered_tokens_are_dropped_when_repeated() -> None:
    d = Driver()
    a = d.running()
    d(ev.Tokens(a, tokens(0, 3)))
    assert d(ev.Tokens(a, tokens(0, 2))) == []
    assert d(ev.Tokens(a, tokens(1, 4))) == [ev.Deliver(a, tokens(3, 2))]


def test_a_gap_is_a_violation_but_what_came_before_counts() -> None:
    d = Driver()
    a = d.running()
    effects = d(ev.Tokens(a, (token(0), token(1), token(3))))
    assert list(effects)[:3] == [
        ev.Deliver(a, tokens(0, 2)),
        ev.CancelAttempt(a, W1, LossReason.PROTOCOL),
        ev.ReportFault(a, W1, LossReason.PROTOCOL),
    ]
    assert ask(effects).excluded == {W1}
    assert ask(
        d(
            ev.Lost(d.placed(W2), LossReason.UNREACHABLE),
        )
    ).excluded == {W1, W2}
    d(ev.NoCandidate())
    d.now_s += 4
    assert ask(d(ev.Tick())).excluded == {W1}, "who broke the protocol never comes back, others may"


def test_more_tokens_than_asked_for_are_a_violation() -> None:
    d = Driver(max_tokens=2)
    a = d.running()
    effects = d(ev.Tokens(a, tokens(0, 3)))
    assert d.delivered() == list(tokens(0, 2)) and ev.ReportFault(a, W1, LossReason.PROTOCOL) in effects
    assert isinstance(effects[-1], ev.Complete) and effects[-1].finish is FinishReason.LENGTH


def test_lost_after_the_last_token_completes_without_another_attempt() -> None:
    d = Driver(max_tokens=2)
    a = d.running()
    d(ev.Tokens(a, tokens(0, 2)))
    assert d.ends() == [], "the worker has the word: its receipt is on the way"
    effects = d(ev.Lost(a, LossReason.CONNECTION_LOST))
    assert effects[-1] == ev.Complete(job_id(), a, None, FinishReason.LENGTH, Usage(7, 2), False)


def test_resumed_with_everything_delivered_may_finish_at_once() -> None:
    d = Driver()
    d(ev.Tokens(d.running(), tokens(0, 2)))
    d(ev.Lost(d.attempt, LossReason.CONNECTION_LOST))
    b = d.running(W2)
    done = only(d(ev.Finished(b, FinishReason.STOP, True)), ev.Complete)
    assert isinstance(done, ev.Complete) and done.usage == Usage(7, 2)


@pytest.mark.parametrize("stage", ["accepted", "running"])
def test_silence_is_loss(stage: str) -> None:
    d = Driver()
    a: AttemptId = getattr(d, stage)()
    d(ev.Heartbeat(a), after_s=1.0)
    assert d.machine.next_deadline() == d.now_s + limits.SUSPECT_AFTER_S
    assert d(ev.Tick(), after_s=limits.SUSPECT_AFTER_S - 0.1) == []
    effects = d.tick()
    assert list(effects)[:2] == [
        ev.CancelAttempt(a, W1, LossReason.SILENT),
        ev.ReportFault(a, W1, LossReason.SILENT),
    ]
    assert ask(effects).excluded == {W1}


@pytest.mark.parametrize("event", [ev.Started, ev.Tokens, ev.OfferAccepted])
def test_every_frame_counts_as_a_sign_of_life(event: type) -> None:
    d = Driver()
    a = d.placed() if event is ev.OfferAccepted else d.accepted() if event is ev.Started else d.running()
    made = {
        ev.OfferAccepted: ev.OfferAccepted(a),
        ev.Started: ev.Started(a, Opening(7), DIGEST),
        ev.Tokens: ev.Tokens(a, ()),
    }[event]
    d(made, after_s=1.2)
    assert d.machine.next_deadline() == d.now_s + limits.SUSPECT_AFTER_S


def test_an_unanswered_offer_is_given_up() -> None:
    d = Driver()
    a = d.placed()
    assert d.machine.next_deadline() == d.now_s + OFFER_S
    effects = d.tick()
    assert effects[0] == ev.CancelAttempt(a, W1, LossReason.SILENT) and ask(effects).excluded == {W1}
    assert d.accepted(W2) and not [e for e in d.said if isinstance(e, ev.Reroute)], "nothing had begun"


def test_attempts_are_bounded() -> None:
    d = Driver()
    for n in range(limits.MAX_ATTEMPTS):
        assert d.ends() == []
        d(ev.Lost(d.running(node(20 + n)), LossReason.ENGINE_FAILED))
    (end,) = d.ends()
    assert isinstance(end, ev.Fail) and end.code == "mesh_no_worker"


def test_an_engine_without_room_is_a_busy_worker_and_no_fault() -> None:
    d = Driver()
    effects = d(ev.Ended(d.accepted(), EndReason.BUSY, "others are at work"))
    assert ask(effects).excluded == {W1} and only(effects, ev.ReportFault) is None
    d(ev.NoCandidate(("busy",)))
    assert d.machine.queued and d.machine.would_take(W1, d.now_s)


def test_a_job_whose_many_offers_met_busy_workers_fails_as_overloaded() -> None:
    d = Driver()
    while not d.ends():
        d(ev.OfferDeclined(d.placed(W1), DeclineReason.BUSY))
    (end,) = d.ends()
    assert isinstance(end, ev.Fail) and end.code == "mesh_overloaded" and d.attempt.number == MAX_OFFERS


def test_declines_do_not_count_as_attempts_but_end_as_well() -> None:
    d = Driver()
    for n in range(limits.MAX_ATTEMPTS + 1):
        d(ev.OfferDeclined(d.placed(node(20 + n)), DeclineReason.NOT_SHARING))
    assert d.ends() == []
    while not d.ends():
        d(ev.OfferDeclined(d.placed(W1), DeclineReason.NOT_SHARING))
    assert d.attempt.number == MAX_OFFERS


@pytest.mark.parametrize("reason", list(DeclineReason))
def test_who_declines_for_good_is_left_out_for_good(reason: DeclineReason) -> None:
    for_good = {
        DeclineReason.NOT_SHARING,
        DeclineReason.NO_MODEL,
        DeclineReason.NO_ABILITY,
        DeclineReason.CLEARANCE,
        DeclineReason.REGION,
        DeclineReason.BEYOND_LIMITS,
        DeclineReason.WRONG_RECIPIENT,
        DeclineReason.BAD_TASK,
    }
    d = Driver()
    effects = d(ev.OfferDeclined(d.placed(), reason))
    assert ask(effects).excluded == {W1} and only(effects, ev.ReportFault) is None
    d(ev.NoCandidate())
    d.now_s += 4
    assert ask(d(ev.Tick())).excluded == ({W1} if reason in for_good else frozenset())


def test_retry_after_is_obeyed() -> None:
    d = Driver()
    d(ev.OfferDeclined(d.placed(), DeclineReason.BUSY, 3.0))
    d(ev.NoCandidate())
    d.now_s += 2.9
    assert ask(d(ev.Tick())).excluded == {W1}
    d(ev.NoCandidate())
    d.now_s += 0.2
    assert ask(d(ev.Tick())).excluded == frozenset()


def wait_out(d: Driver, *reasons: str, **of_event: bool) -> ev.Fail:
    """Nobody can, for the same reasons, until the job fails; how it failed."""
    if d.machine.state is State.NEW:
        d(ev.Submitted())
    while not d.ends():
        assert d(ev.NoCandidate(reasons, **of_event)) == [] or d.ends()
        if not d.ends():
            assert ask(d.tick())
    (end,) = d.ends()
    assert isinstance(end, ev.Fail)
    return end


def test_no_candidate_waits_patiently_then_fails_typed() -> None:
    d = Driver()
    begun_s = d.now_s
    end = wait_out(d, "paused", "paused", "region")
    assert end.code == "mesh_no_worker" and "paused, region" in end.message
    assert d.now_s - begun_s == pytest.approx(PATIENCE_S) and 4 <= d.calls / 2 <= 20, "backed off"


def test_who_finds_everybody_busy_waits_in_the_queue_and_then_fails_as_overloaded() -> None:
    d = Driver()
    begun_s = d.now_s
    d(ev.Submitted())
    d(ev.NoCandidate(("busy", "region")))
    assert d.machine.queued
    end = wait_out_from_waiting(d, "busy", "region")
    assert end.code == "mesh_overloaded" and "busy, region" in end.message
    assert d.now_s - begun_s == pytest.approx(QUEUE_S) and not d.machine.queued


def wait_out_from_waiting(d: Driver, *reasons: str) -> ev.Fail:
    d.tick()
    return wait_out(d, *reasons)


def test_patience_starts_when_those_who_were_busy_are_gone() -> None:
    d = Driver()
    d(ev.Submitted())
    for _ in range(10):
        d(ev.NoCandidate(("busy",)))
        d.tick()
    gone_s = d.now_s
    d(ev.NoCandidate(("suspect",)))
    assert not d.machine.queued and not d.ends()
    assert wait_out_from_waiting(d, "suspect").code == "mesh_no_worker"
    assert d.now_s - gone_s <= PATIENCE_S


def test_a_full_queue_takes_nobody_new_but_keeps_who_is_in_it_or_in_the_middle_of_an_answer() -> None:
    d = Driver()
    d(ev.Submitted())
    (end,) = d(ev.NoCandidate(("busy",), queue_full=True))
    assert isinstance(end, ev.Fail) and end.code == "mesh_overloaded"
    d = Driver()
    d(ev.Submitted())
    d(ev.NoCandidate(("busy",)))
    d.tick()
    assert d(ev.NoCandidate(("busy",), queue_full=True)) == [] and d.machine.queued
    d = Driver()
    d(ev.Tokens(d.running(), tokens(0, 1)))
    d(ev.Lost(d.attempt, LossReason.CONNECTION_LOST))
    assert d(ev.NoCandidate(("busy",), queue_full=True)) == [] and d.machine.queued
    d = Driver()
    d(ev.Submitted())
    assert d(ev.NoCandidate(("paused",), queue_full=True)) == [], "it does not wait in that queue"


def test_a_worker_that_declined_as_busy_is_soon_asked_again_and_no_later_each_time() -> None:
    d = Driver()
    d(ev.Submitted())
    for _ in range(20):
        d(ev.Placed(W1))
        said_s = d.now_s
        assert ask(d(ev.OfferDeclined(d.attempt, DeclineReason.BUSY))).excluded == {W1}
        d(ev.NoCandidate(("excluded",)))
        assert d.machine.queued and d.machine.would_take(W1, d.now_s), "busy is why it waits"
        d.now_s = said_s + EXCLUDE_S
        assert ask(d(ev.CandidatesChanged())).excluded == frozenset()
    assert not d.ends()


def test_a_queued_job_would_not_take_a_worker_that_failed_it() -> None:
    d = Driver()
    d(ev.Lost(d.running(), LossReason.SILENT))
    d(ev.NoCandidate(("busy", "excluded")))
    assert not d.machine.would_take(W1, d.now_s) and d.machine.would_take(W2, d.now_s)
    d(ev.Cancelled())
    assert not d.machine.would_take(W2, d.now_s)


def test_waiting_in_mid_stream_fails_and_never_completes() -> None:
    d = Driver()
    d(ev.Tokens(d.running(), tokens(0, 2)))
    d(ev.Lost(d.attempt, LossReason.CONNECTION_LOST))
    while not d.ends():
        d(ev.NoCandidate())
        if not d.ends():
            d.tick()
    assert [type(e) for e in d.ends()] == [ev.Fail]


def test_patience_starts_anew_once_a_worker_ran() -> None:
    d = Driver()
    d(ev.Submitted())
    d(ev.NoCandidate())
    d.now_s += PATIENCE_S - 0.5
    d(ev.Tick())
    d(ev.Lost(d.running(), LossReason.CONNECTION_LOST))
    d.now_s += 1.0
    d(ev.NoCandidate())
    assert d.ends() == []


def test_declines_by_everyone_do_not_renew_the_wait() -> None:
    d = Driver()
    begun_s = d.now_s
    d(ev.Submitted())
    while not d.ends():
        if d.machine.state is State.PLACING:
            asked = d.said[-1]
            assert isinstance(asked, ev.AskPlacement)
            d(ev.NoCandidate(("busy",)) if W1 in asked.excluded else ev.Placed(W1))
        elif d.machine.state is State.OFFERING:
            d(ev.OfferDeclined(d.attempt, DeclineReason.BUSY))
        else:
            d.tick()
    assert d.now_s - begun_s <= QUEUE_S + EXCLUDE_S


def test_a_change_among_candidates_ends_the_wait_early_but_not_too_often() -> None:
    d = Driver()
    d(ev.Submitted())
    for _ in range(4):
        d(ev.NoCandidate())
        if d.machine.next_deadline() != d.now_s:
            d.tick()
    d(ev.NoCandidate())
    assert d(ev.CandidatesChanged()) == [] and d.machine.next_deadline() == pytest.approx(d.now_s + 0.05)
    assert ask(d(ev.CandidatesChanged(), after_s=0.06))


def test_unknown_model_fails_soon_but_only_before_the_first_offer() -> None:
    d = Driver()
    begun_s = d.now_s
    d(ev.Submitted())
    while not d.ends():
        d(ev.NoCandidate(("no_model",), model_known=False))
        if not d.ends():
            d.tick()
    (end,) = d.ends()
    assert isinstance(end, ev.Fail) and end.code == "model_not_found"
    assert d.now_s - begun_s == pytest.approx(UNKNOWN_MODEL_S), "time to get to know others, and no more"
    d = Driver()
    d(ev.Lost(d.running(), LossReason.CONNECTION_LOST))
    d(ev.NoCandidate(("no_model",), model_known=False))
    d.now_s += UNKNOWN_MODEL_S
    d(ev.Tick())
    assert d(ev.NoCandidate(("no_model",), model_known=False)) == [] and d.machine.state is State.WAITING


@pytest.mark.parametrize(
    ("reason", "code"),
    [(EndReason.BAD_INPUT, "invalid_request"), (EndReason.CONTEXT_OVERFLOW, "context_length_exceeded")],
)
def test_a_fault_of_the_request_fails_at_once(reason: EndReason, code: str) -> None:
    d = Driver()
    effects = d(ev.Ended(d.accepted(), reason, "because"))
    assert effects == [ev.Fail(job_id(), d.attempt, code, "because")]


def test_a_resumed_attempt_that_overflows_is_merely_too_small() -> None:
    d = Driver()
    d(ev.Tokens(d.running(), tokens(0, 1)))
    d(ev.Lost(d.attempt, LossReason.CONNECTION_LOST))
    effects = d(ev.Ended(d.accepted(W2), EndReason.CONTEXT_OVERFLOW))
    assert ask(effects).excluded == {W1, W2} and only(effects, ev.ReportFault) is None and d.ends() == []
    d(ev.NoCandidate())
    d.now_s += 4
    assert ask(d(ev.Tick())).excluded == {W2}


@pytest.mark.parametrize(
    ("reason", "fault"),
    [
        (EndReason.ENGINE_FAILED, LossReason.ENGINE_FAILED),
        (EndReason.LEASE_LAPSED, LossReason.LEASE_LAPSED),
        (EndReason.DRAINING, None),
        (EndReason.CANCELLED, None),
    ],
)
def test_the_workers_own_end_moves_the_job_on(reason: EndReason, fault: LossReason | None) -> None:
    d = Driver()
    a = d.running()
    effects = d(ev.Ended(a, reason))
    assert only(effects, ev.ReportFault) == (None if fault is None else ev.ReportFault(a, W1, fault))
    assert only(effects, ev.CancelAttempt) is None and ask(effects).excluded == {W1}


def test_suspicion_moves_a_quiet_attempt_off() -> None:
    d = Driver()
    a = d.running()
    assert d(ev.Suspected(W2), after_s=1.2) == []
    effects = d(ev.Suspected(W1))
    assert effects[0] == ev.CancelAttempt(a, W1, LossReason.SILENT) and ask(effects)


def test_suspicion_of_a_worker_that_just_spoke_is_wrong() -> None:
    d = Driver()
    a = d.running()
    d(ev.Tokens(a, tokens(0, 1)), after_s=1.2)
    assert d(ev.Suspected(W1), after_s=0.4) == []


def test_suspicion_ends_an_offer_at_once() -> None:
    d = Driver()
    d.placed()
    assert ask(d(ev.Suspected(W1)))


@pytest.mark.parametrize("stage", ["placed", "accepted", "running"])
def test_cancel_tells_the_worker(stage: str) -> None:
    d = Driver()
    a = getattr(d, stage)()
    effects = d(ev.Cancelled())
    assert effects == [ev.CancelAttempt(a, W1, "the app took the job back"), ev.Withdrawn(job_id(), a)]
    assert d(ev.Cancelled()) == [] and d(ev.Tokens(a, tokens(0, 1))) == []


def test_cancel_without_a_worker() -> None:
    d = Driver()
    d(ev.Submitted())
    d(ev.NoCandidate())
    assert d(ev.Cancelled()) == [ev.Withdrawn(job_id(), None)] and d.machine.next_deadline() is None
    assert Driver()(ev.Cancelled()) == [ev.Withdrawn(job_id(), None)]


def test_a_complete_text_waits_for_the_receipt_of_its_worker() -> None:
    d = Driver()
    a = d.running()
    d(ev.Tokens(a, tokens(0, 4)))
    assert d(ev.StoppedByText()) == []
    assert d(ev.Tokens(a, tokens(4, 2))) == [], "nothing after the stop is delivered"
    done = ev.Complete(job_id(), a, W1, FinishReason.STOP, Usage(7, 4), True)
    assert d(ev.Finished(a, FinishReason.LENGTH, True)) == [done]


@pytest.mark.parametrize("end", ["silence", "lost", "ended"])
def test_a_complete_text_is_complete_without_a_receipt_too(end: str) -> None:
    d = Driver()
    a = d.running()
    d(ev.Tokens(a, tokens(0, 4)))
    d(ev.StoppedByText())
    if end == "silence":
        due_s = d.machine.next_deadline()
        assert due_s is not None and due_s <= d.now_s + RECEIPT_S
        assert d(ev.Tick()) == [], "not yet due"
        d.now_s = due_s
    event = {
        "silence": ev.Tick(),
        "lost": ev.Lost(a, LossReason.CONNECTION_LOST),
        "ended": ev.Ended(a, EndReason.ENGINE_FAILED),
    }[end]
    assert d(event) == [
        ev.CancelAttempt(a, W1, "a stop string is complete"),
        ev.Complete(job_id(), a, None, FinishReason.STOP, Usage(7, 4), False),
    ]


def test_a_stop_string_completes_even_while_a_worker_is_sought() -> None:
    d = Driver()
    d(ev.Tokens(d.running(), tokens(0, 4)))
    d(ev.Lost(d.attempt, LossReason.CONNECTION_LOST))
    assert [type(e) for e in d(ev.StoppedByText())] == [ev.Complete]


def test_an_unverified_receipt_completes_and_is_held_against_the_worker() -> None:
    d = Driver()
    a = d.running()
    fault, done = d(ev.Finished(a, FinishReason.STOP, False))
    assert fault == ev.ReportFault(a, W1, LossReason.PROTOCOL)
    assert isinstance(done, ev.Complete) and not done.verified


def test_noop_finishes_without_starting() -> None:
    d = Driver(kind=TaskKind.NOOP)
    a = d.accepted()
    done = only(d(ev.Finished(a, FinishReason.STOP, True)), ev.Complete)
    assert done == ev.Complete(job_id(), a, W1, FinishReason.STOP, Usage(0, 0), True)


OUT_OF_TURN = [
    ("placed", lambda a: ev.Started(a, Opening(7), DIGEST)),
    ("placed", lambda a: ev.Tokens(a, tokens(0, 1))),
    ("placed", lambda a: ev.Heartbeat(a)),
    ("placed", lambda a: ev.Finished(a, FinishReason.STOP, True)),
    ("placed", lambda a: ev.Ended(a, EndReason.DRAINING)),
    ("accepted", lambda a: ev.OfferAccepted(a)),
    ("accepted", lambda a: ev.OfferDeclined(a, DeclineReason.BUSY)),
    ("accepted", lambda a: ev.Tokens(a, tokens(0, 1))),
    ("accepted", lambda a: ev.Finished(a, FinishReason.STOP, True)),
    ("running", lambda a: ev.OfferAccepted(a)),
    ("running", lambda a: ev.OfferDeclined(a, DeclineReason.BUSY)),
    ("running", lambda a: ev.Started(a, Opening(7), DIGEST)),
]


@pytest.mark.parametrize(("stage", "event"), OUT_OF_TURN)
def test_words_out_of_turn_lose_the_attempt(stage: str, event: object) -> None:
    d = Driver()
    a = getattr(d, stage)()
    effects = d(event(a))  # type: ignore[operator]
    assert ev.ReportFault(a, W1, LossReason.PROTOCOL) in effects and d.delivered() == [] and d.ends() == []


@pytest.mark.parametrize("event", [ev.Placed(W1), ev.NoCandidate(), ev.StoppedByText(), ev.CandidatesChanged()])
def test_nothing_happens_before_the_job_is_submitted(event: ev.SubmissionEvent) -> None:
    assert Driver()(event) == []


def test_unasked_placements_are_ignored() -> None:
    d = Driver()
    d.running()
    assert d(ev.Placed(W2)) == [] and d(ev.NoCandidate()) == [] and d.machine.worker == W1
