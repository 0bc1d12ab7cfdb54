"""Delegations, certificates and the chain that proves membership: root key -> issuer key -> node key.

A *proof* is what a node shows: its certificate with the issuer's signature, and the issuer's delegation with the
root's. Whoever knows the organisation's root key can check it alone, offline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from meshd.core import limits
from meshd.core.errors import BadInput, BadSignature, ClockWrong, NotMember, ProtocolViolation
from meshd.core.ids import NodeId
from meshd.core.trust import Certificate, Delegation
from meshd.wire.codec import decode, encode
from meshd.wire.keys import NodeKey
from meshd.wire.signing import Domain, Signed
from meshd.wire.typed import from_wire, to_wire


@dataclass(frozen=True, slots=True)
class Chain:
    """A proof whose signatures verified under the organisation's root key; its times are not judged yet."""

    delegation: Delegation
    certificate: Certificate


def issue_delegation(delegation: Delegation, root: NodeKey) -> bytes:
    """The signed delegation, by the root key that it names as the organisation. BadInput for another key."""
    if root.verify_key != delegation.org:
        raise BadInput("this is not the root key of that organisation", param="org")
    return root.sign(Domain.DELEGATION, encode(to_wire(delegation))).encode()


def open_delegation(data: bytes, org_root: bytes) -> Delegation:
    """The delegation in ``data``, signed by ``org_root``. Raises ProtocolViolation, BadSignature, NotMember
    (of another organisation). Times are not judged."""
    signed = Signed.decode(data, limits.MAX_CERTIFICATE_BYTES)
    claimed = from_wire(Delegation, decode(signed.payload, limits.MAX_CERTIFICATE_BYTES))
    if claimed.org != org_root:
        raise NotMember("the issuer belongs to another organisation")
    signed.verify(org_root, Domain.DELEGATION)
    return claimed


def issue_certificate(certificate: Certificate, issuer: NodeKey, delegation: bytes) -> bytes:
    """The proof: ``certificate`` signed by ``issuer``, with the issuer's own signed ``delegation``.

    Raises BadInput when the issuer may not make that statement (other organisation, clearance too high, key is
    not the delegated one) or the certificate is too large.
    """
    granted = open_delegation(delegation, certificate.org)
    if granted.issuer_key != issuer.verify_key:
        raise BadInput("this is not the delegated issuer key", param="issuer")
    if certificate.clearance > granted.max_clearance:
        raise BadInput(f"this issuer may grant at most {granted.max_clearance}", param="clearance")
    signed = issuer.sign(Domain.CERTIFICATE, encode(to_wire(certificate)))
    proof = encode([delegation, signed.encode()])
    if len(proof) > limits.MAX_CERTIFICATE_BYTES:
        raise BadInput(f"a certificate has at most {limits.MAX_CERTIFICATE_BYTES} bytes", param="labels")
    return proof


@lru_cache(maxsize=4096)
def open_chain(proof: bytes, org_root: bytes) -> Chain:
    """The chain in ``proof``, all signatures verified; whose it is and when it holds is not judged.

    Raises NotMember, by the fault of whoever showed it: malformed, of another organisation, not signed.
    """
    try:
        match decode(proof, limits.MAX_CERTIFICATE_BYTES):
            case [bytes() as delegation_bytes, bytes() as certificate_bytes]:
                delegation = open_delegation(delegation_bytes, org_root)
                signed = Signed.decode(certificate_bytes, limits.MAX_CERTIFICATE_BYTES)
                payload = signed.verify(delegation.issuer_key, Domain.CERTIFICATE)
            case _:
                raise ProtocolViolation("not a pair of delegation and certificate")
        certificate = from_wire(Certificate, decode(payload, limits.MAX_CERTIFICATE_BYTES))
    except BadSignature:
        raise NotMember("the certificate is not signed by this organisation") from None
    except ProtocolViolation as e:
        raise NotMember(f"the certificate is malformed ({e.message})") from None
    if certificate.org != org_root:
        raise NotMember("the certificate is of another organisation")
    if certificate.clearance > delegation.max_clearance:
        raise NotMember("the certificate grants more than its issuer may")
    return Chain(delegation, certificate)


def verify_chain(proof: bytes, org_root: bytes, node: NodeId, now_s: float) -> Certificate:
    """The certificate of ``node``, when ``proof`` shows that it is a member of ``org_root`` at wall time ``now_s``.

    Raises NotMember with the reason in words (malformed, other organisation, not signed, belongs to another node,
    expired), or ClockWrong when it begins in the future by more than CLOCK_SKEW_S.
    """
    chain = open_chain(proof, org_root)
    if chain.certificate.node != node:
        raise NotMember("the certificate belongs to another node")
    check_times(chain, now_s)
    return chain.certificate


def check_times(chain: Chain, now_s: float) -> None:
    """Return when certificate and delegation both hold at ``now_s``; NotMember (expired) or ClockWrong otherwise."""
    begins = max(chain.certificate.not_before, chain.delegation.not_before)
    if begins - now_s > limits.CLOCK_SKEW_S:
        raise ClockWrong(
            f"the certificate begins {begins - now_s:.0f} s in the future",
            hint="set this machine's clock (or the other one's), then try again",
        )
    if now_s >= chain.certificate.not_after:
        raise NotMember(f"the certificate expired {now_s - chain.certificate.not_after:.0f} s ago")
    if now_s >= chain.delegation.not_after:
        raise NotMember(f"its issuer's delegation expired {now_s - chain.delegation.not_after:.0f} s ago")


class MemberGate:
    """Decides who is a member, for the network's security upgrade: shows our proof and checks the other's."""

    def __init__(self, org_root: bytes, own_proof: Callable[[], bytes], wall_clock: Callable[[], float]) -> None:
        self._org_root = org_root
        self._own_proof = own_proof
        self._wall_clock = wall_clock

    def own_proof(self) -> bytes:
        """This node's proof, as it is now (it changes when the certificate is renewed)."""
        return self._own_proof()

    def check(self, proof: bytes, node: NodeId) -> Certificate:
        """The certificate of ``node``; NotMember or ClockWrong when ``proof`` does not make it a member now."""
        return verify_chain(proof, self._org_root, node, self._wall_clock())
