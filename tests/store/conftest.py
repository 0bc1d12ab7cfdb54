"""A private home, a database in it, and an organisation that costs little to found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nacl.pwhash import argon2id

from meshd.core.classes import DataClass, Region
from meshd.core.trust import InviteTerms
from meshd.store.db import Database
from meshd.store.home import Home, create_home
from meshd.store.identity import Identity
from meshd.store.issuer import Issuer, load_issuer
from meshd.store.org import Founder, create_organisation
from meshd.store.rootkey import Cost
from tests.wire.samples import DAY_S, NOW_S

CHEAP = Cost(argon2id.OPSLIMIT_MIN, argon2id.MEMLIMIT_MIN)
FOUNDER = Founder("first", "berlin", Region("eu/de/berlin"))
PASSPHRASE = "correct horse battery"


class Clock:
    """Wall time under the test's control."""

    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


def terms(uses: int = 1, clearance: DataClass = DataClass.INTERNAL, expires_s: float = NOW_S + DAY_S) -> InviteTerms:
    return InviteTerms("berlin", Region("eu/de"), clearance, expires_s, uses, ("desk",))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return create_home(tmp_path / "node")


@pytest.fixture
def database(home: Home) -> Iterator[Database]:
    with Database(home.database) as database:
        yield database


@pytest.fixture
def founded(home: Home) -> Identity:
    return create_organisation(home, "Example Org", FOUNDER, PASSPHRASE, NOW_S, CHEAP)


@pytest.fixture
def issuer(home: Home, founded: Identity, database: Database, clock: Clock) -> Issuer:
    issuer = load_issuer(home, founded.membership.org, database, clock)
    assert issuer is not None
    return issuer
