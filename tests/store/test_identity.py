"""Founding, joining, and loading who we are."""

from __future__ import annotations

import json

import pytest

from meshd.core.classes import DataClass
from meshd.core.errors import AlreadyDone, BadInput, HomeUnusable, NotEnrolled
from meshd.core.trust import Organisation
from meshd.store.db import Database
from meshd.store.home import Home
from meshd.store.identity import Identity, Membership, load_identity, load_membership, save_membership
from meshd.store.issuer import CERTIFICATE_LIFE_S, Issuer, renew_own
from meshd.store.keyfile import node_key
from meshd.store.org import Founder, create_organisation
from meshd.store.rootkey import open_root_key
from meshd.wire.trust import verify_chain
from tests.store.conftest import CHEAP, FOUNDER, PASSPHRASE, Clock
from tests.wire.samples import NOW_S, ROOT, WORKER, proof_of


def test_the_founder_is_a_member_and_admin(home: Home, founded: Identity) -> None:
    again = load_identity(home)
    assert again.certificate == founded.certificate
    assert again.key.node == node_key(home).node
    certificate = verify_chain(again.membership.proof, founded.membership.org.root_key, again.key.node, NOW_S)
    assert certificate.roles == ("member", "admin")
    assert (certificate.name, certificate.site, certificate.clearance) == ("first", "berlin", DataClass.RESTRICTED)
    assert open_root_key(home.root_key, PASSPHRASE).verify_key == founded.membership.org.root_key


def test_founding_twice_changes_nothing(home: Home, founded: Identity) -> None:
    with pytest.raises(AlreadyDone):
        create_organisation(home, "Other Org", FOUNDER, PASSPHRASE, NOW_S, CHEAP)
    assert load_identity(home).membership == founded.membership


def test_bad_names_are_refused_before_anything_is_written(home: Home) -> None:
    with pytest.raises(BadInput):
        create_organisation(home, "bad/name", FOUNDER, PASSPHRASE, NOW_S, CHEAP)
    with pytest.raises(BadInput):
        Founder("bad/name", "berlin", FOUNDER.region)
    assert list(home.path.iterdir()) == []


def test_an_empty_home_has_joined_nothing(home: Home) -> None:
    assert load_membership(home) is None
    with pytest.raises(NotEnrolled):
        load_identity(home)


def test_joining_and_another_organisation(home: Home, founded: Identity) -> None:
    foreign = Membership(Organisation("Example Org", ROOT.verify_key), proof_of(WORKER))
    with pytest.raises(AlreadyDone):
        save_membership(home, foreign)
    renewed = Membership(founded.membership.org, founded.membership.proof, ("/ip4/10.0.0.1/tcp/1",))
    save_membership(home, renewed)
    assert load_identity(home).membership == renewed


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"organisation": 1}', "\xff", "null"])
def test_a_damaged_membership(home: Home, founded: Identity, text: str) -> None:
    home.membership.write_bytes(text.encode("latin-1"))
    with pytest.raises(HomeUnusable, match="damaged"):
        load_identity(home)


def test_a_changed_certificate_or_foreign_key(home: Home, founded: Identity) -> None:
    good = json.loads(home.membership.read_text())
    home.membership.write_text(json.dumps({**good, "root_key": ROOT.verify_key.hex()}))
    with pytest.raises(HomeUnusable, match="damaged"):
        load_identity(home)
    home.membership.write_text(json.dumps(good))
    home.node_key.write_bytes(WORKER.seed)
    with pytest.raises(HomeUnusable, match="different nodes"):
        load_identity(home)
    home.node_key.unlink()
    with pytest.raises(HomeUnusable, match="missing"):
        load_identity(home)


def test_the_issuer_renews_itself_in_time(home: Home, founded: Identity, issuer: Issuer, clock: Clock) -> None:
    assert renew_own(home, founded, issuer, NOW_S + 0.5 * CERTIFICATE_LIFE_S) == founded.membership
    clock.now_s = NOW_S + 0.8 * CERTIFICATE_LIFE_S
    renew_own(home, founded, issuer, clock.now_s)
    new = load_identity(home).certificate
    assert new.not_after > founded.certificate.not_after
    assert new.serial > founded.certificate.serial
    kept = ("node", "name", "site", "region", "clearance", "labels", "roles")
    assert [getattr(new, f) for f in kept] == [getattr(founded.certificate, f) for f in kept]


def test_a_database_in_use_elsewhere_does_not_keep_from_founding(home: Home, database: Database) -> None:
    assert create_organisation(home, "Example Org", FOUNDER, PASSPHRASE, NOW_S, CHEAP).certificate.serial == 1
