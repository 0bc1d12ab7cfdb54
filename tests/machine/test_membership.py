"""Heard about, talked to, suspect, gone: each rule of the peer table."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from meshd.core import limits
from meshd.machine import membership_events as ev
from meshd.machine.membership import AD_LIFE_S, Membership, State
from meshd.machine.membership_events import Source
from meshd.policy.suspicion import Liveness
from tests.policy.make import FACTS, ad, node

ME, A, B = node(1), node(2), node(3)
WALL_S = 1_000_000.0


class Driver:
    """A membership machine, and one clock for both kinds of time."""

    def __init__(self, max_nodes: int = 100) -> None:
        self.machine = Membership(ME, max_nodes=max_nodes)
        self.now_s = 0.0
        self.calls = 0

    @property
    def wall_s(self) -> float:
        return WALL_S + self.now_s

    def __call__(self, event: ev.MembershipEvent) -> Sequence[ev.MembershipEffect]:
        self.calls += 1
        assert self.calls < 5_000, "no end in sight"
        effects = self.machine.handle(event, self.now_s)
        self.machine.check_invariants()
        return effects

    def heard(
        self, number: int = 2, seq: int = 1, age_s: float = 0.0, source: Source = Source.GOSSIP, boot: int = 1
    ) -> Sequence[ev.MembershipEffect]:
        issued_at = self.wall_s - age_s
        return self(ev.AdHeard(ad(number, boot=boot, seq=seq, issued_at=issued_at), FACTS, source, self.wall_s))

    def up(self, number: int = 2) -> Sequence[ev.MembershipEffect]:
        return self(ev.PeerUp(node(number), FACTS))

    def down(self, number: int = 2) -> Sequence[ev.MembershipEffect]:
        return self(ev.PeerDown(node(number), self.wall_s))

    def wait(self, seconds: float) -> list[ev.MembershipEffect]:
        """Let time pass, ticking when the machine wants it."""
        until_s = self.now_s + seconds
        effects: list[ev.MembershipEffect] = []
        while (due_s := self.machine.next_deadline()) is not None and due_s <= until_s:
            assert due_s >= self.now_s
            self.now_s = due_s
            effects += self(ev.Tick(self.wall_s))
        self.now_s = until_s
        return effects

    def liveness(self, number: int = 2) -> Liveness:
        return self.machine.liveness(node(number))


def probes(effects: Sequence[ev.MembershipEffect]) -> list[ev.Probe]:
    return [e for e in effects if isinstance(e, ev.Probe)]


def test_heard_about_is_a_candidate_until_the_ad_expires() -> None:
    d = Driver()
    assert d.liveness() is Liveness.GONE
    assert d.heard() == [ev.Changed(A, Liveness.GONE, Liveness.ALIVE, "heard about (gossip)"), ev.Updated(A)]
    candidate = d.machine.candidate(A)
    assert candidate is not None and candidate.facts == FACTS and candidate.liveness is Liveness.ALIVE
    assert d.wait(AD_LIFE_S - 0.1) == []
    gone = d.wait(0.2)
    assert [type(e) for e in gone] == [ev.Changed, ev.Updated, ev.Forget]
    assert d.liveness() is Liveness.GONE and d.machine.candidate(A) is None and d.machine.next_deadline() is None


def test_an_ad_counts_from_when_it_was_issued() -> None:
    d = Driver()
    d.heard(age_s=9.0)
    assert ev.Forget(A, "its last ad expired") in d.wait(AD_LIFE_S - 9.0)


@pytest.mark.parametrize("age_s", [limits.AD_TTL_S + limits.CLOCK_SKEW_S, -limits.CLOCK_SKEW_S - 0.1])
def test_expired_and_future_ads_are_ignored(age_s: float) -> None:
    d = Driver()
    assert d.heard(age_s=age_s) == [] and d.machine.peers() == ()


@pytest.mark.parametrize(("boot", "seq"), [(1, 5), (1, 4), (0, 9)])
def test_an_ad_that_is_not_newer_changes_nothing(boot: int, seq: int) -> None:
    d = Driver()
    d.heard(seq=5)
    d.wait(5.0)
    assert d.heard(boot=boot, seq=seq) == []
    assert ev.Forget(A, "its last ad expired") in d.wait(AD_LIFE_S - 5.0), "nor does it prolong anything"


def test_a_newer_ad_replaces_and_prolongs() -> None:
    d = Driver()
    d.heard(seq=5)
    d.wait(5.0)
    assert d.heard(boot=2, seq=1) == [ev.Updated(A)]
    assert d.wait(AD_LIFE_S - 0.1) == []


def test_facts_once_known_are_kept() -> None:
    d = Driver()
    d.heard()
    d(ev.AdHeard(ad(seq=2, number=2, issued_at=d.wall_s), None, Source.DIRECTORY, d.wall_s))
    candidate = d.machine.candidate(A)
    assert candidate is not None and candidate.facts == FACTS


def test_ad_without_certificate_is_no_ones_facts() -> None:
    d = Driver()
    d(ev.AdHeard(ad(2, issued_at=d.wall_s), None, Source.DIRECTORY, d.wall_s))
    candidate = d.machine.candidate(A)
    assert candidate is not None and candidate.facts is None


def test_own_news_is_ignored() -> None:
    d = Driver()
    assert d.heard(1) == [] and d.up(1) == [] and d.machine.peers() == ()


def test_silence_makes_suspect_within_two_seconds_of_being_talked_to() -> None:
    d = Driver()
    d.heard()
    d.up()
    d.wait(1.0)
    d(ev.HeartbeatAnswered(A))
    assert d.wait(limits.SUSPECT_AFTER_S - 0.01) == []
    effects = d.wait(0.02)
    assert effects[0] == ev.Changed(A, Liveness.ALIVE, Liveness.SUSPECT, "silent")
    assert probes(effects) == [], "its connection is the probe"
    candidate = d.machine.candidate(A)
    assert candidate is not None and candidate.liveness is Liveness.SUSPECT


def test_answering_again_clears_suspicion() -> None:
    d = Driver()
    d.up()
    d.wait(2.0)
    assert d(ev.HeartbeatAnswered(A))[0] == ev.Changed(A, Liveness.SUSPECT, Liveness.ALIVE, "answers again")
    assert d.wait(1.0) == [] and d.liveness() is Liveness.ALIVE


def test_a_lost_connection_is_suspect_at_once_and_dialled_again() -> None:
    d = Driver()
    d.heard()
    d.up()
    effects = d.down()
    assert effects[0] == ev.Changed(A, Liveness.ALIVE, Liveness.SUSPECT, "connection lost")
    assert probes(effects) == [ev.Probe(A, ad(2).addresses)]
    assert d.up()[0] == ev.Changed(A, Liveness.SUSPECT, Liveness.ALIVE, "connected")


def test_probes_back_off_until_the_ad_expires() -> None:
    d = Driver()
    d.heard()
    d.up()
    d.down()
    count = 0
    for _ in range(200):
        made = probes(d.wait(0.1))
        count += len(made)
        d(ev.DialFailed(A, d.wall_s))
    assert 3 <= count <= 8 and d.liveness() is Liveness.GONE


def test_gossip_does_not_resurrect() -> None:
    d = Driver()
    d.heard(seq=1)
    d.up()
    d.wait(1.0)
    d.down()
    assert d.heard(seq=1) == []
    d.heard(seq=2, age_s=0.5)
    assert d.liveness() is Liveness.SUSPECT, "newer, but issued before the loss"
    d.wait(0.5)
    d.heard(seq=3)
    assert d.liveness() is Liveness.ALIVE, "issued after the loss: it lives"


def test_an_ad_from_between_loss_and_failed_dial_is_proof_of_life() -> None:
    d = Driver()
    d.heard(seq=1)
    d.up()
    d.down()
    d.wait(1.0)
    d(ev.DialFailed(A, d.wall_s))
    d.heard(seq=2, age_s=0.5)
    assert d.liveness() is Liveness.ALIVE, "it was lost a second ago, not at the dial"


def test_a_silent_connection_is_judged_by_itself_whatever_gossip_says() -> None:
    d = Driver()
    d.heard(seq=1)
    d.up()
    d.wait(2.0)
    d.heard(seq=2)
    assert d.liveness() is Liveness.SUSPECT


def test_dead_node_is_gone_from_every_view_within_fifteen_seconds() -> None:
    """Whatever gossip still repeats: the newest ad was issued before the death."""
    d = Driver()
    d.heard(seq=1)
    d.up()
    d.wait(1.0)
    d.heard(seq=2)
    died_s = d.now_s
    d.down()
    while d.liveness() is not Liveness.GONE:
        d.wait(0.5)
        d.heard(seq=2, age_s=d.now_s - died_s)
    assert d.now_s - died_s <= 15
    assert d.heard(seq=2, age_s=d.now_s - died_s) == []


def test_failed_dial_makes_a_heard_node_suspect() -> None:
    d = Driver()
    d.heard()
    assert d(ev.DialFailed(A, d.wall_s))[0] == ev.Changed(A, Liveness.ALIVE, Liveness.SUSPECT, "cannot be reached")
    assert len(probes(d.wait(0.6))) == 1
    assert d(ev.DialFailed(B, d.wall_s)) == []


def test_failed_dial_does_not_judge_a_connected_node() -> None:
    d = Driver()
    d.heard()
    d.up()
    assert d(ev.DialFailed(A, d.wall_s)) == [] and d.liveness() is Liveness.ALIVE


def test_connected_without_ad_is_known_but_no_candidate() -> None:
    d = Driver()
    d.up()
    for _ in range(40):
        d.wait(1.0)
        d(ev.HeartbeatAnswered(A))
    assert d.liveness() is Liveness.ALIVE and d.machine.candidate(A) is None
    d.heard()
    assert d.machine.candidate(A) is not None
    for _ in range(20):
        d.wait(1.0)
        d(ev.HeartbeatAnswered(A))
    assert d.machine.candidate(A) is None and d.machine.peer(A) is not None, "its ad has expired"


def test_frozen_for_long_is_forgotten_and_its_connection_dropped() -> None:
    d = Driver()
    d.heard()
    d.up()
    effects = d.wait(20)
    assert [type(e) for e in effects if isinstance(e, ev.Forget | ev.Drop)] == [ev.Forget, ev.Drop]
    assert d(ev.HeartbeatAnswered(A)) == []


def test_goodbye_is_final_until_it_is_back() -> None:
    d = Driver()
    d.heard(seq=1)
    d.up()
    d.wait(1.0)
    assert d(ev.PeerLeft(A, d.wall_s)) == [
        ev.Changed(A, Liveness.ALIVE, Liveness.GONE, "left"),
        ev.Updated(A),
        ev.Forget(A, "it left"),
    ]
    assert d.down() == [] and d.machine.peers() == () and d.machine.peer(A) is None
    assert d.heard(seq=2, age_s=0.5) == [], "an ad from before the goodbye"
    d.wait(1.0)
    d.heard(boot=2, seq=1)
    assert d.liveness() is Liveness.ALIVE
    assert Driver()(ev.PeerLeft(A, WALL_S)) == []


def test_goodbyes_are_not_remembered_forever() -> None:
    d = Driver()
    d.heard()
    d(ev.PeerLeft(A, d.wall_s))
    assert d.wait(30) == [] and d.machine.next_deadline() is None


def test_late_heartbeat_of_a_broken_connection_is_ignored() -> None:
    d = Driver()
    d.heard()
    assert d(ev.HeartbeatAnswered(A)) == []
    d.up()
    d.down()
    assert d(ev.HeartbeatAnswered(A)) == [] and d.liveness() is Liveness.SUSPECT


def test_a_silent_connection_that_breaks_is_dialled() -> None:
    d = Driver()
    d.heard()
    d.up()
    d.wait(2.0)
    assert d.liveness() is Liveness.SUSPECT
    assert probes(d.down())
    assert d.down() == []


def test_the_stalest_unconnected_node_makes_room() -> None:
    d = Driver(max_nodes=2)
    d.heard(2, age_s=5)
    d.heard(3, age_s=1)
    effects = d.heard(4)
    assert ev.Forget(A, "no room") in effects and ev.Changed(A, Liveness.ALIVE, Liveness.GONE, "no room") in effects
    assert {p.node for p in d.machine.peers()} == {node(3), node(4)}
    d.up(3)
    d.up(4)
    assert d.heard(5) == [] and len(d.machine.peers()) == 2, "connected nodes stay"


def test_gossip_is_a_bounded_sample_of_what_is_fresh_and_alive() -> None:
    d = Driver()
    for n in range(2, 42):
        d.heard(n, age_s=0 if n < 22 else 6)
    d(ev.DialFailed(node(2), d.wall_s))
    chosen = {seed: d.machine.gossip(4, seed) for seed in range(30)}
    assert all(len(set(ads)) == 4 for ads in chosen.values())
    seen = {a.node for ads in chosen.values() for a in ads}
    assert node(2) not in seen and all(n in {node(x) for x in range(3, 22)} for n in seen)
    assert len(seen) > 10 and chosen == {seed: d.machine.gossip(4, seed) for seed in range(30)}
    assert len(d.machine.gossip(100, 1)) == 39


def test_next_deadline_is_quiet_when_many_talk() -> None:
    """Heartbeats must not grow the heap: one entry a node."""
    d = Driver()
    for n in range(2, 22):
        d.up(n)
    for _ in range(50):
        d.wait(0.5)
        for n in range(2, 22):
            d(ev.HeartbeatAnswered(node(n)))
    assert len(d.machine._heap) <= 2 * 20
    assert {p.state for p in d.machine.peers()} == {State.TALKING}
