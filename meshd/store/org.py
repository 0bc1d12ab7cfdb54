"""Creating an organisation: root key, issuer, and the first member, which is also the first admin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from meshd.core.classes import DataClass, Region
from meshd.core.errors import AlreadyDone
from meshd.core.trust import Certificate, Delegation, Organisation, parse_name
from meshd.store.counters import next_serial
from meshd.store.db import Database
from meshd.store.files import write_atomic
from meshd.store.home import Home
from meshd.store.identity import Identity, Membership, load_identity, load_membership, save_membership
from meshd.store.issuer import BACKDATE_S, CERTIFICATE_LIFE_S
from meshd.store.keyfile import create_key, load_key, node_key
from meshd.store.rootkey import Cost, create_root_key
from meshd.wire.trust import issue_certificate, issue_delegation

DELEGATION_LIFE_S: Final = 365 * 86_400.0
"""The root key comes out of its envelope once a year."""


@dataclass(frozen=True, slots=True)
class Founder:
    """What the first machine is called and attested to be."""

    name: str
    site: str
    region: Region
    clearance: DataClass = DataClass.RESTRICTED

    def __post_init__(self) -> None:
        parse_name(self.name)
        parse_name(self.site, param="site")


def create_organisation(
    home: Home, name: str, founder: Founder, passphrase: str, now_s: float, cost: Cost | None = None
) -> Identity:
    """Make organisation ``name`` in ``home`` and make the home its first member and issuer; wall time ``now_s``.

    The membership is written last: a crash in between leaves a home that has joined nothing. Raises AlreadyDone
    (the home has an organisation, or a root key from an attempt that broke off), BadInput, HomeUnusable. Slow: the
    passphrase is stretched for about a second.
    """
    if load_membership(home) is not None:
        raise AlreadyDone(f"{home.path} belongs to an organisation", hint="use another --home DIR")
    Organisation(name, bytes(32))  # refuse a bad name before anything is written
    root = create_root_key(home.root_key, passphrase, cost)
    issuer = load_key(home.issuer_key) or create_key(home.issuer_key)
    delegation = issue_delegation(
        Delegation(
            org=root.verify_key,
            issuer_key=issuer.verify_key,
            max_clearance=DataClass.RESTRICTED,
            not_before=now_s - BACKDATE_S,
            not_after=now_s + DELEGATION_LIFE_S,
            serial=1,
        ),
        root,
    )
    write_atomic(home.delegation, delegation)
    certificate = _first_certificate(home, root.verify_key, founder, now_s)
    proof = issue_certificate(certificate, issuer, delegation)
    save_membership(home, Membership(Organisation(name, root.verify_key), proof))
    return load_identity(home)


def _first_certificate(home: Home, org: bytes, founder: Founder, now_s: float) -> Certificate:
    with Database(home.database) as database:
        serial = next_serial(database)
    return Certificate(
        org=org,
        node=node_key(home).node,
        name=founder.name,
        site=founder.site,
        region=founder.region,
        clearance=founder.clearance,
        labels=(),
        roles=("member", "admin"),
        not_before=now_s - BACKDATE_S,
        not_after=now_s + CERTIFICATE_LIFE_S,
        serial=serial,
    )
