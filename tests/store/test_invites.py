"""Enrolment at the issuer's desk: a use is spent once, a lost answer costs nothing."""

from __future__ import annotations

import threading

import pytest

from meshd.core.classes import DataClass
from meshd.core.errors import (
    BadInput,
    ClockWrong,
    HomeUnusable,
    InviteExpired,
    InviteInvalid,
    InviteUsed,
    ProtocolViolation,
)
from meshd.core.trust import Invite
from meshd.store.db import Database
from meshd.store.home import Home
from meshd.store.identity import Identity, Membership, load_identity, save_membership
from meshd.store.invites import list_invites
from meshd.store.issuer import CERTIFICATE_LIFE_S, Issuer, load_issuer
from meshd.wire.enrol import EnrolClient
from meshd.wire.invite import parse_invite
from meshd.wire.keys import NodeKey
from tests.store.conftest import Clock, terms
from tests.wire.samples import DAY_S, NOW_S, STRANGER, SUBMITTER, WORKER


def invited(issuer: Issuer, uses: int = 1) -> Invite:
    text = issuer.invite(terms(uses), ("127.0.0.1:4002",), ("/ip4/127.0.0.1/tcp/4001",))
    return parse_invite(text, NOW_S)


def join(issuer: Issuer, invite: Invite, key: NodeKey = WORKER, name: str = "joiner", now_s: float = NOW_S) -> bytes:
    client = EnrolClient(invite, key, name, b"n" * 32)
    return client.finish(issuer.answer(client.request(now_s)), now_s)[0]


def test_joining_gives_what_the_invite_grants(issuer: Issuer, founded: Identity) -> None:
    invite = invited(issuer)
    client = EnrolClient(invite, WORKER, "joiner", b"n" * 32)
    proof, certificate = client.finish(issuer.answer(client.request(NOW_S)), NOW_S)
    assert invite.org == founded.membership.org
    assert (certificate.node, certificate.name) == (WORKER.node, "joiner")
    assert (certificate.site, certificate.region.path, certificate.clearance) == ("berlin", "eu/de", DataClass.INTERNAL)
    assert (certificate.roles, certificate.labels) == (("member",), ("desk",))
    assert certificate.not_after == NOW_S + CERTIFICATE_LIFE_S
    assert proof


def test_a_use_is_spent_once_and_a_lost_answer_costs_nothing(issuer: Issuer) -> None:
    invite = invited(issuer)
    first = join(issuer, invite)
    assert join(issuer, invite) == first
    with pytest.raises(InviteUsed):
        join(issuer, invite, SUBMITTER)
    assert join(issuer, invite) == first


def test_asking_again_under_another_name_spends_nothing(issuer: Issuer, database: Database) -> None:
    invite = invited(issuer, uses=2)
    assert join(issuer, invite) != join(issuer, invite, name="renamed")
    assert [i.uses_left for i in list_invites(database, NOW_S)] == [1]
    join(issuer, invite, SUBMITTER)
    with pytest.raises(InviteUsed):
        join(issuer, invite, STRANGER)


def test_serials_are_never_given_twice(issuer: Issuer, founded: Identity) -> None:
    invite = invited(issuer, uses=3)
    serials = [founded.certificate.serial]
    for key in (WORKER, SUBMITTER, STRANGER):
        client = EnrolClient(invite, key, "joiner", b"n" * 32)
        serials.append(client.finish(issuer.answer(client.request(NOW_S)), NOW_S)[1].serial)
    assert len(set(serials)) == 4


def test_an_expired_invite_also_for_those_it_admitted(issuer: Issuer, clock: Clock) -> None:
    invite = invited(issuer)
    join(issuer, invite)
    clock.now_s = NOW_S + DAY_S
    with pytest.raises(InviteExpired):
        join(issuer, invite, now_s=clock.now_s)


def test_a_wrong_clock_is_told_and_spends_nothing(issuer: Issuer) -> None:
    invite = invited(issuer)
    for off_s, word in ((3600, "ahead of"), (-3600, "behind")):
        with pytest.raises(ClockWrong, match=f"3600 s {word}"):
            join(issuer, invite, now_s=NOW_S + off_s)
    join(issuer, invite)


def test_a_guessed_secret_and_an_unknown_invite_look_the_same(issuer: Issuer) -> None:
    invite = invited(issuer)
    answers = []
    for change in ({"secret": b"x" * 32}, {"id": b"x" * 16}):
        fields = {name: getattr(invite, name) for name in Invite.__slots__}
        with pytest.raises(InviteInvalid) as caught:
            join(issuer, Invite(**{**fields, **change}))
        answers.append((type(caught.value), caught.value.message))
    assert answers[0] == answers[1]
    join(issuer, invite)


def test_garbage_gets_no_answer(issuer: Issuer) -> None:
    for data in (b"", b"x" * 300, bytes(100_000)):
        with pytest.raises(ProtocolViolation):
            issuer.answer(data)


def test_many_at_once_spend_exactly_the_uses(issuer: Issuer, database: Database) -> None:
    invite, keys = invited(issuer, uses=3), [NodeKey(bytes([50 + i]) * 32) for i in range(8)]
    outcomes: list[str] = []

    def one(key: NodeKey) -> None:
        try:
            join(issuer, invite, key)
            outcomes.append("in")
        except InviteUsed:
            outcomes.append("used")

    threads = [threading.Thread(target=one, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in"] * 3 + ["used"] * 5
    assert list_invites(database, NOW_S) == ()


def test_invites_outlive_the_daemon(home: Home, issuer: Issuer, founded: Identity, clock: Clock) -> None:
    invite = invited(issuer)
    with Database(home.database) as later:
        restarted = load_issuer(home, founded.membership.org, later, clock)
        assert restarted is not None
        proof = join(restarted, invite)
    assert join(issuer, invite) == proof


def test_a_joined_home_knows_itself(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> None:
    from meshd.store.home import create_home
    from meshd.store.keyfile import node_key

    home, invite = create_home(tmp_path_factory.mktemp("j") / "home"), invited(issuer)
    proof = join(issuer, invite, node_key(home))
    save_membership(home, Membership(invite.org, proof, invite.bootstrap))
    assert load_identity(home).membership.bootstrap == ("/ip4/127.0.0.1/tcp/4001",)


def test_terms_beyond_what_the_issuer_may_grant(issuer: Issuer) -> None:
    with pytest.raises(BadInput):
        issuer.invite(terms(), ("host:1",) * 200, ())


def test_no_issuer_key_no_issuer(tmp_path_factory: pytest.TempPathFactory, founded: Identity, clock: Clock) -> None:
    from meshd.store.home import create_home

    other = create_home(tmp_path_factory.mktemp("other") / "home")
    with Database(other.database) as database:
        assert load_issuer(other, founded.membership.org, database, clock) is None


def test_a_damaged_delegation(home: Home, founded: Identity, database: Database, clock: Clock) -> None:
    home.delegation.write_bytes(b"x")
    with pytest.raises(HomeUnusable):
        load_issuer(home, founded.membership.org, database, clock)
