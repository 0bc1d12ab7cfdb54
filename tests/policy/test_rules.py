"""Bans, back-off, replays, suspicion: small rules with numbers in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.core import limits
from meshd.core.ids import AttemptId
from meshd.core.task import DeclineReason, LossReason
from meshd.policy.backoff import BASE_S, MAX_S, backoff_s, jitter, worth_retry, worth_return
from meshd.policy.bans import BASE_BAN_S, HALF_LIFE_S, MAX_BAN_S, Bans
from meshd.policy.replay import Replays
from meshd.policy.suspicion import silent_since
from tests.policy.make import job_id, node

A, B = node(1), node(2)


def test_bans_double_with_each_fault_and_end() -> None:
    bans = Bans()
    assert bans.fault(A, LossReason.SILENT, 0.0) == pytest.approx(BASE_BAN_S)
    assert bans.fault(A, LossReason.SILENT, 0.0) == pytest.approx(2 * BASE_BAN_S)
    assert bans.fault(A, LossReason.SILENT, 0.0) == pytest.approx(4 * BASE_BAN_S)
    assert bans.banned(3.9) == {A} and bans.banned(4.0) == frozenset() and bans.banned_until_s(B) == float("-inf")


def test_bans_are_bounded_in_time_and_number() -> None:
    bans = Bans(max_entries=3)
    for _ in range(50):
        last_s = bans.fault(A, LossReason.PROTOCOL, 0.0)
    assert last_s == MAX_BAN_S
    for n in range(2, 6):
        bans.fault(node(n), LossReason.SILENT, float(n))
    assert len(bans.banned(5.5)) <= 3 and A in bans.banned(5.5), "the ban that ends first makes room"


def test_time_and_success_forgive() -> None:
    bans = Bans()
    bans.fault(A, LossReason.SILENT, 0.0)
    assert bans.score(A, HALF_LIFE_S) == pytest.approx(0.5)
    assert bans.fault(A, LossReason.SILENT, 10 * HALF_LIFE_S) < 10 * HALF_LIFE_S + 1.1 * BASE_BAN_S
    bans.success(A)
    assert bans.score(A, 0.0) == 0 and bans.banned(0.0) == frozenset()


@pytest.mark.parametrize("reason", [LossReason.DECLINED, LossReason.DRAINING])
def test_saying_no_is_no_fault(reason: LossReason) -> None:
    bans = Bans()
    bans.fault(A, reason, 0.0)
    assert bans.banned(0.0) == frozenset() and bans.score(A, 0.0) == 0


def test_breaking_the_protocol_weighs_more() -> None:
    bans = Bans()
    assert bans.fault(A, LossReason.PROTOCOL, 0.0) > 4 * bans.fault(B, LossReason.SILENT, 0.0)


@given(st.integers(1, 10_000), st.integers(0, 2**32))
def test_backoff_is_bounded_and_repeats(tries: int, seed: int) -> None:
    wait_s = backoff_s(tries, seed)
    assert BASE_S / 2 <= wait_s <= MAX_S and wait_s == backoff_s(tries, seed)
    assert 0 <= jitter(seed, tries) < 1


def test_backoff_grows_and_is_spread() -> None:
    assert backoff_s(1, 1) < backoff_s(4, 1) < backoff_s(10, 1)
    assert len({backoff_s(3, seed) for seed in range(20)}) > 15


def test_what_is_worth_another_try() -> None:
    assert worth_retry(DeclineReason.BUSY) and not worth_retry(DeclineReason.CLEARANCE)
    assert worth_return(LossReason.SILENT) and not worth_return(LossReason.PROTOCOL)


def test_silence() -> None:
    assert not silent_since(None, 1e9)
    assert not silent_since(10.0, 10.0 + limits.SUSPECT_AFTER_S - 0.01)
    assert silent_since(10.0, 10.0 + limits.SUSPECT_AFTER_S)


def test_a_peer_that_fails_any_number_of_jobs_at_once_is_banned_for_the_longest_time() -> None:
    bans = Bans()
    for _ in range(2000):
        bans.fault(A, LossReason.PROTOCOL, 10.0)
    assert bans.banned_until_s(A) == 10.0 + MAX_BAN_S


def attempt(number: int, job: int = 1) -> AttemptId:
    return AttemptId(job_id(job), number)


def test_replays_by_submitter_and_job() -> None:
    seen = Replays()
    assert seen.check(A, attempt(2), 60.0, 0.0) is None
    assert seen.check(A, attempt(2), 60.0, 0.0) is DeclineReason.REPLAYED
    assert seen.check(A, attempt(1), 60.0, 0.0) is DeclineReason.WRONG_ATTEMPT
    assert seen.check(A, attempt(3), 60.0, 0.0) is None
    assert seen.check(B, attempt(1), 60.0, 0.0) is None
    assert seen.check(A, attempt(1, job=2), 60.0, 0.0) is None


def test_a_jobs_attempts_are_remembered_until_its_last_has_expired() -> None:
    seen = Replays()
    seen.check(A, attempt(1), 60.0, 0.0)
    seen.check(A, attempt(2), 100.0, 40.0)
    assert seen.check(A, attempt(1), 200.0, 70.0) is DeclineReason.REPLAYED
    assert len(seen) == 2
    assert seen.check(A, attempt(1), 200.0, 100.0) is None and len(seen) == 1


def test_one_submitter_cannot_fill_the_memory_of_all() -> None:
    seen = Replays(max_offers=4, max_of_one=3)
    answers = [seen.check(A, attempt(1, job=n), 60.0, 0.0) for n in range(5)]
    assert answers == [None, None, None, DeclineReason.BUSY, DeclineReason.BUSY]
    assert seen.check(B, attempt(1), 60.0, 0.0) is None
    assert seen.check(B, attempt(1, job=2), 60.0, 0.0) is DeclineReason.BUSY
    assert [seen.check(A, attempt(1, job=n), 120.0, 60.0) for n in range(3)] == [None] * 3


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.floats(0, 5), st.floats(0.1, 20))))
def test_no_offer_is_taken_twice_within_its_life_and_memory_stays_bounded(
    offers: list[tuple[int, int, float, float]],
) -> None:
    seen = Replays(max_offers=5)
    taken: dict[AttemptId, float] = {}
    now_s = 0.0
    for job, number, wait_s, life_s in offers:
        now_s += wait_s
        made = attempt(number, job)
        answer = seen.check(A, made, now_s + life_s, now_s)
        if answer is None:
            assert taken.get(made, 0.0) <= now_s, "taken before and not expired yet"
            taken[made] = now_s + life_s
        assert 0 <= len(seen) <= 5
        assert answer is not DeclineReason.BUSY or len(seen) == 5
