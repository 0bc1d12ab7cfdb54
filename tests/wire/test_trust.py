"""Chains: who is a member, and every way not to be one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshd.core.classes import DataClass, Region
from meshd.core.errors import BadInput, ClockWrong, NotMember
from meshd.core.limits import CLOCK_SKEW_S, MAX_CERTIFICATE_BYTES
from meshd.wire.codec import decode, encode
from meshd.wire.keys import NodeKey
from meshd.wire.signing import Domain
from meshd.wire.trust import MemberGate, issue_certificate, issue_delegation, verify_chain
from meshd.wire.typed import to_wire
from tests.wire.samples import (
    DAY_S,
    DELEGATION,
    ISSUER,
    NOW_S,
    ROOT,
    STRANGER,
    SUBMITTER,
    WORKER,
    certificate_of,
    delegation_of,
    proof_of,
)

PROOF = proof_of(WORKER)


def check(proof: bytes, node: NodeKey = WORKER, now_s: float = NOW_S, root: NodeKey = ROOT) -> None:
    verify_chain(proof, root.verify_key, node.node, now_s)


def forged(certificate: object, issuer: NodeKey = ISSUER, delegation: bytes = DELEGATION) -> bytes:
    """A proof made without the checks that `issue_certificate` makes."""
    return encode([delegation, issuer.sign(Domain.CERTIFICATE, encode(to_wire(certificate))).encode()])


def test_a_good_chain_gives_the_certificate() -> None:
    assert verify_chain(PROOF, ROOT.verify_key, WORKER.node, NOW_S) == certificate_of(WORKER)


def test_the_largest_certificate_fits_its_bound() -> None:
    region = Region("/".join(["a" * 32] * 8))
    full = replace(
        certificate_of(WORKER), name="n" * 63, site="s" * 63, region=region, labels=tuple("x" * 64 for _ in range(16))
    )
    proof = issue_certificate(full, ISSUER, DELEGATION)
    assert len(proof) <= MAX_CERTIFICATE_BYTES
    assert verify_chain(proof, ROOT.verify_key, WORKER.node, NOW_S) == full
    with pytest.raises(BadInput):  # 64 characters may be 256 bytes
        issue_certificate(replace(full, labels=("\U0001f600" * 64,) * 16), ISSUER, DELEGATION)


def test_another_organisation_is_named() -> None:
    with pytest.raises(NotMember, match="other organisation"):
        check(PROOF, root=STRANGER)


def test_a_certificate_of_another_organisation_under_our_delegation() -> None:
    with pytest.raises(NotMember, match="another organisation"):
        check(forged(certificate_of(WORKER, org=STRANGER.verify_key)))


def test_another_nodes_certificate() -> None:
    with pytest.raises(NotMember, match="another node"):
        check(PROOF, node=SUBMITTER)


def test_a_self_made_issuer() -> None:
    with pytest.raises(NotMember, match="not signed"):
        check(forged(certificate_of(WORKER), issuer=STRANGER))


def test_a_delegation_that_the_root_did_not_sign() -> None:
    signed = STRANGER.sign(Domain.DELEGATION, encode(to_wire(delegation_of())))
    with pytest.raises(NotMember, match="not signed"):
        check(forged(certificate_of(WORKER), delegation=signed.encode()))


def test_more_clearance_than_the_issuer_may_grant() -> None:
    low = issue_delegation(delegation_of(max_clearance=DataClass.INTERNAL), ROOT)
    with pytest.raises(NotMember, match="more than its issuer"):
        check(forged(certificate_of(WORKER, clearance=DataClass.CONFIDENTIAL), delegation=low))
    with pytest.raises(BadInput):
        issue_certificate(certificate_of(WORKER, clearance=DataClass.CONFIDENTIAL), ISSUER, low)


def test_expired() -> None:
    check(PROOF, now_s=NOW_S + 7 * DAY_S - 1)
    with pytest.raises(NotMember, match="expired") as caught:
        check(PROOF, now_s=NOW_S + 7 * DAY_S)
    assert not isinstance(caught.value, ClockWrong)


def test_an_expired_issuer_takes_its_certificates_with_it() -> None:
    short = issue_delegation(delegation_of(ends_s=NOW_S + 10), ROOT)
    with pytest.raises(NotMember, match="issuer"):
        check(issue_certificate(certificate_of(WORKER), ISSUER, short), now_s=NOW_S + 11)


def test_not_yet_valid_says_by_how_much() -> None:
    check(PROOF, now_s=NOW_S - 60 - CLOCK_SKEW_S)
    with pytest.raises(ClockWrong, match="540 s"):
        check(PROOF, now_s=NOW_S - 600)


def test_every_changed_byte_is_noticed() -> None:
    for at in range(len(PROOF)):
        changed = bytearray(PROOF)
        changed[at] ^= 0x01
        with pytest.raises(NotMember):
            check(bytes(changed))


@pytest.mark.parametrize("proof", [b"", b"\x90", encode([b"", b""]), encode("x"), PROOF[:-1], bytes(5000)])
def test_garbage_is_no_membership(proof: bytes) -> None:
    with pytest.raises(NotMember):
        check(proof)


def test_a_delegation_is_signed_by_its_own_root_only() -> None:
    with pytest.raises(BadInput):
        issue_delegation(delegation_of(), STRANGER)


def test_only_the_delegated_key_issues() -> None:
    with pytest.raises(BadInput):
        issue_certificate(certificate_of(WORKER), STRANGER, DELEGATION)


def test_the_gate_shows_ours_and_checks_theirs() -> None:
    now = [NOW_S]
    gate = MemberGate(ROOT.verify_key, lambda: PROOF, lambda: now[0])
    assert gate.own_proof() == PROOF
    assert gate.check(proof_of(SUBMITTER), SUBMITTER.node).node == SUBMITTER.node
    now[0] = NOW_S + 8 * DAY_S
    with pytest.raises(NotMember):
        gate.check(proof_of(SUBMITTER), SUBMITTER.node)


def test_a_delegation_is_no_certificate() -> None:
    inner = decode(DELEGATION, 4096)
    with pytest.raises(NotMember):
        check(encode([DELEGATION, encode(inner)]))
