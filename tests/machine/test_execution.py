"""Each rule of an attempt's life at its worker, one test a rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from meshd.core import limits
from meshd.core.ad import ModelOffer
from meshd.core.classes import DataClass, Region
from meshd.core.generation import FinishReason, Opening, Token
from meshd.core.ids import AttemptId, ModelDigest, NodeId
from meshd.core.job import TaskKind
from meshd.core.share import Share
from meshd.core.task import DeclineReason, EndReason, Task, TaskHeader
from meshd.machine import execution_events as ev
from meshd.machine.execution import QUEUE_S, Execution, State
from meshd.policy.admission import BUSY_RETRY_S, Host
from meshd.policy.feasible import Facts
from meshd.policy.replay import Replays
from tests.policy.make import DIGEST, FACTS, OTHER_DIGEST, job, job_id, node, offer, tokens

ME, SUB, OTHER = node(1), node(2), node(3)
WALL_S = 1_000_000.0
HOST = Host(FACTS, Share(enabled=True), (offer(),))


def task(
    number: int = 1,
    attempt: int = 1,
    *,
    submitter: NodeId = SUB,
    worker: NodeId = ME,
    expires_at: float = WALL_S + 30,
    delivered: tuple[Token, ...] = (),
    digest: ModelDigest | None = None,
    **of_job: object,
) -> Task:
    wanted = job(number, **of_job)  # type: ignore[arg-type]
    header = TaskHeader(AttemptId(wanted.id, attempt), submitter, worker, wanted.constraints, expires_at)
    return Task(header, wanted, DIGEST if delivered and digest is None else digest, delivered)


class Driver:
    """An execution machine with a clock, whose engine takes and frees at the test's word."""

    def __init__(self, slots: int = 2, replays: Replays | None = None) -> None:
        self.machine = Execution(ME, slots, replays)
        self.now_s = 50.0
        self.calls = 0

    def __call__(self, event: ev.ExecutionEvent, after_s: float = 0.0) -> Sequence[ev.ExecutionEffect]:
        self.calls += 1
        assert self.calls < 5_000, "no end in sight"
        self.now_s += after_s
        effects = self.machine.handle(event, self.now_s)
        self.machine.check_invariants()
        return effects

    def tick(self) -> Sequence[ev.ExecutionEffect]:
        due_s = self.machine.next_deadline()
        assert due_s is not None
        self.now_s = max(self.now_s, due_s)
        return self(ev.Tick())

    def offer(self, made: Task, host: Host = HOST, *, local: bool = False) -> Sequence[ev.ExecutionEffect]:
        wall_s = WALL_S + self.now_s - 50
        return self(ev.OfferReceived(made.header.submitter, made, host, wall_s, local))

    def running(self, made: Task, *, local: bool = False) -> AttemptId:
        attempt = made.header.attempt
        assert isinstance(self.offer(made, local=local)[-1], ev.StartEngine)
        self(ev.EngineBegan(made.header.submitter, attempt, Opening(5)))
        return attempt


def declined(effects: Sequence[ev.ExecutionEffect]) -> DeclineReason | None:
    found = [e.reason for e in effects if isinstance(e, ev.Decline)]
    return found[0] if found else None


def kinds(effects: Sequence[ev.ExecutionEffect]) -> list[type]:
    return [type(e) for e in effects]


def test_undisturbed() -> None:
    d = Driver()
    made = task(delivered=tokens(0, 2), max_tokens=9)
    a = made.header.attempt
    assert d.offer(made) == [ev.Accept(SUB, a, DIGEST), ev.StartEngine(SUB, a, made, DIGEST)]
    assert d(ev.EngineBegan(SUB, a, Opening(5, ("x",)))) == [ev.SendStarted(SUB, a, Opening(5, ("x",)), DIGEST)]
    assert d(ev.EngineProduced(SUB, a, tokens(2, 3))) == [ev.SendTokens(SUB, a, tokens(2, 3))]
    d.now_s += 1
    facts = ev.ReceiptFacts(
        SUB,
        a,
        "tiny",
        DIGEST,
        5,
        2,
        3,
        b"\0\0\0\x66\0\0\0\x67\0\0\0\x68",
        50.0,
        51.0,
        FinishReason.STOP,
        TaskKind.GENERATE,
    )
    assert d(ev.EngineEnded(SUB, a, FinishReason.STOP)) == [ev.SendFinished(SUB, a, FinishReason.STOP, facts)]
    assert d.machine.running == 0 and d.machine.state_of(SUB, a) is State.STOPPING
    assert d(ev.EngineFreed(SUB, a)) == []
    assert d.machine.state_of(SUB, a) is State.ABSENT and d.machine.next_deadline() is None
    assert [e.after for e in d.machine.story(a.job)] == [
        "queued",
        "starting",
        "running",
        "running",
        "stopping",
        "absent",
    ]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (task(worker=OTHER), DeclineReason.WRONG_RECIPIENT),
        (task(expires_at=WALL_S - limits.CLOCK_SKEW_S - 0.1), DeclineReason.EXPIRED),
        (task(expires_at=WALL_S + limits.TASK_TTL_S + limits.CLOCK_SKEW_S + 0.1), DeclineReason.EXPIRED),
        (task(expires_at=WALL_S - limits.CLOCK_SKEW_S + 0.1), None),
        (task(expires_at=WALL_S + limits.TASK_TTL_S), None),
        (task(model="other"), DeclineReason.NO_MODEL),
        (task(delivered=tokens(0, 1), digest=OTHER_DIGEST), DeclineReason.NO_MODEL),
        (task(data_class=DataClass.RESTRICTED), DeclineReason.CLEARANCE),
        (task(regions=("us",)), DeclineReason.REGION),
    ],
)
def test_offers_that_are_wrong(made: Task, reason: DeclineReason | None) -> None:
    assert declined(Driver().offer(made)) is reason


def test_task_of_another_submitter_is_refused() -> None:
    d = Driver()
    effects = d(ev.OfferReceived(OTHER, task(submitter=SUB), HOST, WALL_S))
    assert declined(effects) is DeclineReason.BAD_TASK


def test_header_that_hides_the_bodys_constraints_is_refused() -> None:
    made = task(regions=("us",))
    lying = Task(replace(made.header, constraints=job().constraints), made.job)
    assert declined(Driver().offer(lying)) is DeclineReason.BAD_TASK


@pytest.mark.parametrize(
    ("host", "reason", "local_too"),
    [
        (replace(HOST, share=Share()), DeclineReason.NOT_SHARING, False),
        (replace(HOST, share=Share(enabled=True, paused=True)), DeclineReason.PAUSED, False),
        (replace(HOST, draining=True), DeclineReason.DRAINING, False),
        (replace(HOST, resting={DIGEST: 3.0}), DeclineReason.ENGINE_UNAVAILABLE, True),
        (replace(HOST, resting={DIGEST: math.inf}), DeclineReason.NO_MODEL, True),
        (replace(HOST, models=()), DeclineReason.NO_MODEL, True),
        (replace(HOST, facts=None), DeclineReason.CLEARANCE, True),
        (replace(HOST, facts=Facts(Region("eu"), DataClass.PUBLIC)), DeclineReason.CLEARANCE, True),
    ],
)
def test_the_owners_will_is_about_others_the_rest_about_all(host: Host, reason: DeclineReason, local_too: bool) -> None:
    assert declined(Driver().offer(task(), host)) is reason
    own = task(submitter=ME)
    assert declined(Driver().offer(own, host, local=True)) is (reason if local_too else None)


def test_pinned_digest_chooses_the_file() -> None:
    host = replace(HOST, models=(ModelOffer("tiny", OTHER_DIGEST, 10), offer()))
    effects = Driver().offer(task(delivered=tokens(0, 1), digest=DIGEST), host)
    assert effects[0] == ev.Accept(SUB, AttemptId(job_id(), 1), DIGEST)


def test_an_engine_may_know_the_prompts_tokens_only_at_the_end() -> None:
    d = Driver()
    a = d.running(task())
    (sent,) = d(ev.EngineEnded(SUB, a, FinishReason.STOP, 77))
    assert isinstance(sent, ev.SendFinished) and sent.receipt.prompt_tokens == 77


def test_slots_are_counted_and_come_back() -> None:
    d = Driver(slots=1)
    a = d.running(task(1))
    assert d.offer(task(2)) == [ev.Decline(SUB, AttemptId(job_id(2), 1), DeclineReason.BUSY, BUSY_RETRY_S)]
    assert declined(d.offer(task(3, submitter=ME), local=True)) is DeclineReason.BUSY
    d(ev.EngineEnded(SUB, a, FinishReason.STOP))
    assert kinds(d.offer(task(4))) == [ev.Accept], "accepted, but the engine has not let go yet"
    assert kinds(d(ev.EngineFreed(SUB, a))) == [ev.StartEngine]


def test_a_replay_is_refused_as_long_as_it_could_be_valid() -> None:
    d = Driver()
    made = task(expires_at=WALL_S + 30)
    a = d.running(made)
    assert declined(d.offer(made)) is DeclineReason.REPLAYED, "while it runs"
    d(ev.EngineEnded(SUB, a, FinishReason.STOP))
    assert declined(d.offer(made)) is DeclineReason.REPLAYED, "while the engine lets go"
    d(ev.EngineFreed(SUB, a))
    d.now_s += 29
    assert declined(d.offer(made)) is DeclineReason.REPLAYED, "when it is over"
    d.now_s += 3.9
    assert declined(d.offer(made)) is DeclineReason.REPLAYED, "within the skew"
    d.now_s += 10
    assert declined(d.offer(made)) is DeclineReason.EXPIRED


def test_a_declined_offer_cannot_be_replayed_either() -> None:
    d = Driver()
    d.offer(task(), replace(HOST, share=Share()))
    assert declined(d.offer(task())) is DeclineReason.REPLAYED


def test_a_later_attempt_fences_off_the_earlier_and_inherits_its_slot() -> None:
    d = Driver(slots=1)
    a = d.running(task(attempt=2))
    effects = d.offer(task(attempt=3))
    assert kinds(effects) == [ev.StopEngine, ev.SendEnded, ev.Accept]
    assert isinstance(effects[1], ev.SendEnded) and effects[1].reason is EndReason.CANCELLED
    assert effects[1].attempt == a and effects[2].attempt.number == 3  # type: ignore[union-attr]
    assert d(ev.EngineProduced(SUB, a, tokens(0, 1))) == [], "its late tokens go nowhere"
    assert kinds(d(ev.EngineFreed(SUB, a))) == [ev.StartEngine]
    assert declined(d.offer(task(attempt=1))) is DeclineReason.WRONG_ATTEMPT
    assert declined(d.offer(task(attempt=2))) is DeclineReason.REPLAYED


def test_a_later_attempt_fences_off_even_when_it_is_declined() -> None:
    d = Driver()
    d.running(task(attempt=1))
    effects = d.offer(task(attempt=2), replace(HOST, share=Share()))
    assert kinds(effects) == [ev.StopEngine, ev.SendEnded, ev.Decline] and d.machine.running == 0


def test_nobody_fences_off_anothers_job_by_its_id() -> None:
    d = Driver()
    a = d.running(task(submitter=SUB))
    assert kinds(d.offer(task(attempt=2, submitter=OTHER))) == [ev.Accept, ev.StartEngine]
    assert d.machine.state_of(SUB, a) is State.RUNNING
    assert d(ev.CancelReceived(OTHER, a)) == [] and d.machine.state_of(SUB, a) is State.RUNNING


def test_a_full_replay_cache_declines_and_recovers() -> None:
    d = Driver(replays=Replays(max_offers=2))
    d.offer(task(1), replace(HOST, share=Share()))
    d.offer(task(2), replace(HOST, share=Share()))
    effects = d.offer(task(3))
    assert declined(effects) is DeclineReason.BUSY
    assert declined(d.offer(task(1))) is DeclineReason.REPLAYED, "nothing was forgotten"
    d.now_s += 60
    assert declined(d.offer(task(4, expires_at=WALL_S + 80))) is None


def test_wire_errors_become_declines() -> None:
    d = Driver()
    a = AttemptId(job_id(), 1)
    assert d(ev.OfferRefused(SUB, a, DeclineReason.BAD_TASK)) == [ev.Decline(SUB, a, DeclineReason.BAD_TASK)]


def test_a_lease_lapses_unless_renewed() -> None:
    d = Driver()
    a = d.running(task())
    d(ev.Renewed(SUB, a), after_s=3.0)
    lapse_s = d.now_s + limits.LEASE_S
    ended: list[ev.ExecutionEffect] = []
    while not ended:
        ended = [e for e in d.tick() if not isinstance(e, ev.SendHeartbeat)]
    assert d.now_s == lapse_s and ended[0] == ev.StopEngine(SUB, a, EndReason.LEASE_LAPSED)
    assert isinstance(ended[1], ev.SendEnded) and ended[1].reason is EndReason.LEASE_LAPSED
    assert d(ev.Renewed(SUB, a)) == []


def test_local_attempts_have_no_lease() -> None:
    d = Driver()
    a = d.running(task(submitter=ME), local=True)
    d(ev.Renewed(ME, a))
    for _ in range(100):
        assert kinds(d.tick()) == [ev.SendHeartbeat]


def test_heartbeats_fill_silence_only() -> None:
    d = Driver()
    a = d.running(task())
    d(ev.EngineProduced(SUB, a, tokens(0, 1)), after_s=0.4)
    assert d.machine.next_deadline() == d.now_s + limits.HEARTBEAT_INTERVAL_S
    assert d(ev.Tick(), after_s=0.4) == []
    assert d.tick() == [ev.SendHeartbeat(SUB, a)]
    assert d.machine.next_deadline() == d.now_s + limits.HEARTBEAT_INTERVAL_S


def test_heartbeats_flow_before_the_engine_begins() -> None:
    d = Driver()
    d.offer(task())
    assert kinds(d.tick()) == [ev.SendHeartbeat]


def test_cancel_stops_and_answers() -> None:
    d = Driver()
    a = d.running(task())
    d(ev.EngineProduced(SUB, a, tokens(0, 2)))
    stop, ended = d(ev.CancelReceived(SUB, a))
    assert stop == ev.StopEngine(SUB, a, EndReason.CANCELLED)
    assert isinstance(ended, ev.SendEnded) and ended.receipt.tokens == 2 and ended.receipt.finish == "cancelled"


def test_lost_stream_cancels_at_once_and_keeps_the_receipt() -> None:
    d = Driver()
    a = d.running(task())
    assert kinds(d(ev.StreamLost(SUB, a))) == [ev.StopEngine, ev.KeepReceipt]


def test_lost_connection_cancels_everything_of_that_submitter() -> None:
    d = Driver(slots=3)
    d.running(task(1))
    d.running(task(2))
    kept = d.running(task(3, submitter=OTHER))
    effects = d(ev.ConnectionLost(SUB))
    assert kinds(effects) == [ev.StopEngine, ev.KeepReceipt] * 2
    assert [r.attempt for r in d.machine.runs()] == [kept]


def test_engine_failure_ends_the_attempt() -> None:
    d = Driver()
    a = d.running(task())
    (ended,) = d(ev.EngineBroke(SUB, a, EndReason.ENGINE_FAILED, "aborted"))
    assert isinstance(ended, ev.SendEnded) and (ended.reason, ended.message) == (EndReason.ENGINE_FAILED, "aborted")
    assert d(ev.EngineFreed(SUB, a)) == []


def test_bad_input_is_said_before_the_engine_begins() -> None:
    d = Driver()
    made = task()
    d.offer(made)
    (ended,) = d(ev.EngineBroke(SUB, made.header.attempt, EndReason.CONTEXT_OVERFLOW, "too long"))
    assert isinstance(ended, ev.SendEnded) and ended.reason is EndReason.CONTEXT_OVERFLOW


@pytest.mark.parametrize(
    "event",
    [
        ev.EngineProduced(SUB, AttemptId(job_id(), 1), tokens(1, 1)),
        ev.EngineProduced(SUB, AttemptId(job_id(), 1), (*tokens(0, 1), *tokens(0, 1))),
        ev.EngineBegan(SUB, AttemptId(job_id(), 1), Opening(5)),
        ev.EngineFreed(SUB, AttemptId(job_id(), 1)),
    ],
)
def test_an_engine_out_of_turn_never_reaches_the_submitter_as_tokens(event: ev.ExecutionEvent) -> None:
    d = Driver()
    d.running(task())
    effects = d(event)
    assert isinstance(effects[0], ev.Violation) and not [e for e in effects if isinstance(e, ev.SendTokens)]
    (ended,) = [e for e in effects if isinstance(e, ev.SendEnded)]
    assert ended.reason is EndReason.ENGINE_FAILED and d.machine.running == 0


@pytest.mark.parametrize(
    "event",
    [
        ev.EngineProduced(SUB, AttemptId(job_id(), 1), tokens(0, 1)),
        ev.EngineEnded(SUB, AttemptId(job_id(), 1), FinishReason.STOP),
        ev.EngineFreed(SUB, AttemptId(job_id(), 1)),
    ],
)
def test_an_engine_that_did_not_begin_has_nothing_to_say(event: ev.ExecutionEvent) -> None:
    d = Driver()
    d.offer(task())
    assert isinstance(d(event)[0], ev.Violation)


def test_an_engine_that_never_lets_go_does_not_hold_its_successor_forever() -> None:
    d = Driver(slots=1)
    d.running(task(attempt=1))
    d.offer(task(attempt=2))
    begun_s = d.now_s
    ended: list[ev.SendEnded] = []
    while not ended:
        d(ev.Renewed(SUB, AttemptId(job_id(), 2)))
        ended = [e for e in d.tick() if isinstance(e, ev.SendEnded)]
    assert d.now_s == begun_s + QUEUE_S and ended[0].reason is EndReason.ENGINE_FAILED


def test_drain_takes_nothing_new_and_hands_over_at_its_deadline() -> None:
    d = Driver(slots=3)
    a = d.running(task(1))
    own = d.running(task(2, submitter=ME), local=True)
    assert d(ev.Drain(d.now_s + 2.0)) == [] and d.machine.draining
    assert declined(d.offer(task(3))) is DeclineReason.DRAINING
    assert declined(d.offer(task(4, submitter=ME), local=True)) is None
    effects: Sequence[ev.ExecutionEffect] = ()
    while not [e for e in effects if isinstance(e, ev.SendEnded)]:
        d(ev.Renewed(SUB, a))
        effects = d.tick()
    (ended,) = [e for e in effects if isinstance(e, ev.SendEnded)]
    assert ended.attempt == a and ended.reason is EndReason.DRAINING and d.now_s == 52.0
    assert effects[-1] == ev.Drained() and d.machine.state_of(ME, own) is State.RUNNING


def test_drained_is_said_once_as_soon_as_nothing_runs_for_others() -> None:
    d = Driver()
    a = d.running(task())
    d(ev.Drain(d.now_s + 100))
    assert d(ev.EngineEnded(SUB, a, FinishReason.STOP))[-1] == ev.Drained()
    assert d(ev.EngineFreed(SUB, a)) == []
    assert d(ev.Drain(d.now_s + 100)) == [ev.Drained()]
    d(ev.Undrain())
    assert declined(d.offer(task(2))) is None and not d.machine.draining


def test_noop_is_answered_at_once_and_needs_no_slot_but_the_owners_will() -> None:
    d = Driver(slots=0)
    made = task(kind=TaskKind.NOOP, model="")
    effects = d.offer(made)
    assert kinds(effects) == [ev.Accept, ev.SendFinished] and d.machine.running == 0
    again = task(2, kind=TaskKind.NOOP, model="")
    assert declined(d.offer(again, replace(HOST, share=Share()))) is DeclineReason.NOT_SHARING
    assert declined(d.offer(made)) is DeclineReason.REPLAYED
