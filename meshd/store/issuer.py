"""The issuer's desk: makes invites and answers enrolment requests. Present only where the issuer key is."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final

from meshd.core.errors import ClockWrong, HomeUnusable, InviteInvalid, MeshError
from meshd.core.ids import NodeId
from meshd.core.trust import Certificate, Delegation, Invite, InviteTerms, Organisation
from meshd.store.counters import next_serial
from meshd.store.db import Database
from meshd.store.files import read_private
from meshd.store.home import Home
from meshd.store.identity import Identity, Membership, save_membership
from meshd.store.invites import add_invite, admit
from meshd.store.keyfile import load_key
from meshd.wire.enrol import EnrolRequest, answer_admitted, answer_refused, open_request
from meshd.wire.invite import ID_BYTES, SECRET_BYTES, format_invite
from meshd.wire.keys import NodeKey
from meshd.wire.trust import issue_certificate, open_delegation

CERTIFICATE_LIFE_S: Final = 30 * 86_400.0
BACKDATE_S: Final = 60.0
"""A certificate begins a minute ago: it is of use at once on a machine whose clock is a little behind."""

MAX_ENROL_SKEW_S: Final = 30.0
"""How far the joining machine's clock may be off. It includes the time the request travels and tries addresses."""


class Issuer:
    """Answers for the organisation with the issuer key of one home."""

    def __init__(
        self, org: Organisation, key: NodeKey, delegation: bytes, database: Database, wall_clock: Callable[[], float]
    ) -> None:
        self._org = org
        self._key = key
        self._delegation = delegation
        self._granted: Delegation = open_delegation(delegation, org.root_key)
        self._database = database
        self._wall_clock = wall_clock

    def invite(self, terms: InviteTerms, enrol_addresses: Sequence[str], bootstrap: Sequence[str]) -> str:
        """The text of a new invite, kept on disk. ``enrol_addresses``: host:port of enrolment listeners.

        Raises BadInput when the terms go beyond what this issuer may grant, or the text gets too long.
        """
        invite = Invite(
            org=self._org,
            issuer_key=self._key.verify_key,
            enrol_addresses=tuple(enrol_addresses),
            bootstrap=tuple(bootstrap),
            id=os.urandom(ID_BYTES),
            secret=os.urandom(SECRET_BYTES),
            expires_at=terms.expires_at,
        )
        self._certify(self._key.node, "trial", terms, 0, ("member",))  # refuse here what enrolment would refuse
        text = format_invite(invite, self._key, self._delegation)
        add_invite(self._database, invite.id, invite.secret, terms)
        return text

    def answer(self, data: bytes) -> bytes:
        """The answer to an enrolment request's bytes: a certificate, or a sealed refusal.

        Raises ProtocolViolation, BadSignature, FrameTooLarge for bytes that deserve no answer; HomeUnusable.
        """
        request = open_request(data, self._key)
        try:
            proof = self._admit(request)
        except (InviteInvalid, ClockWrong) as e:
            return answer_refused(request, self._key, e)
        return answer_admitted(request, self._key, proof)

    def renew(self, identity: Identity, life_s: float = CERTIFICATE_LIFE_S) -> bytes:
        """A fresh proof with what ``identity``'s certificate attests already: the issuer renews itself."""
        old = identity.certificate
        terms = InviteTerms(old.site, old.region, old.clearance, self._wall_clock() + 1, labels=old.labels)
        return self._certify(old.node, old.name, terms, next_serial(self._database), old.roles, life_s)

    def _admit(self, request: EnrolRequest) -> bytes:
        now_s = self._wall_clock()
        ahead_s = request.wall_s - now_s
        if abs(ahead_s) > MAX_ENROL_SKEW_S:
            word = "ahead of" if ahead_s > 0 else "behind"
            raise ClockWrong(f"the joining machine's clock is {abs(ahead_s):.0f} s {word} the issuer's")

        def make_proof(terms: InviteTerms, serial: int) -> bytes:
            return self._certify(request.node, request.name, terms, serial, ("member",))

        return admit(self._database, request, now_s, make_proof)

    def _certify(
        self,
        node: NodeId,
        name: str,
        terms: InviteTerms,
        serial: int,
        roles: tuple[str, ...],
        life_s: float = CERTIFICATE_LIFE_S,
    ) -> bytes:
        now_s = self._wall_clock()
        certificate = Certificate(
            org=self._org.root_key,
            node=node,
            name=name,
            site=terms.site,
            region=terms.region,
            clearance=terms.clearance,
            labels=terms.labels,
            roles=roles,
            not_before=now_s - BACKDATE_S,
            not_after=min(now_s + life_s, self._granted.not_after),
            serial=serial,
        )
        return issue_certificate(certificate, self._key, self._delegation)


def load_issuer(home: Home, org: Organisation, database: Database, wall_clock: Callable[[], float]) -> Issuer | None:
    """The home's issuer; None where there is no issuer key. Raises HomeUnusable when its files are damaged."""
    key, delegation = load_key(home.issuer_key), read_private(home.delegation)
    if key is None or delegation is None:
        return None
    try:
        return Issuer(org, key, delegation, database, wall_clock)
    except MeshError:
        raise HomeUnusable(f"{home.delegation} is damaged", hint="restore it from a backup") from None


def renew_own(home: Home, identity: Identity, issuer: Issuer, now_s: float) -> Membership:
    """The issuer's own membership, renewed on disk once three quarters of its certificate's life are over."""
    certificate = identity.certificate
    due_s = certificate.not_before + 0.75 * (certificate.not_after - certificate.not_before)
    if now_s < due_s:
        return identity.membership
    renewed = Membership(identity.membership.org, issuer.renew(identity), identity.membership.bootstrap)
    save_membership(home, renewed)
    return renewed
