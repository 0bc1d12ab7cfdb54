"""The enrolment exchange, both ends, and everyone in between."""

from __future__ import annotations

import pytest

from meshd.core.errors import (
    BadInput,
    ClockWrong,
    FrameTooLarge,
    InviteExpired,
    InviteInvalid,
    InviteUsed,
    MeshError,
    NotMember,
    ProtocolViolation,
)
from meshd.core.limits import MAX_ENROL_BYTES
from meshd.wire.enrol import EnrolClient, answer_admitted, answer_refused, open_request
from meshd.wire.keys import seal
from meshd.wire.signing import Domain
from tests.wire.samples import ISSUER, NOW_S, STRANGER, WORKER, certificate_of, invite_of, proof_of

NONCE = b"n" * 32


def client() -> EnrolClient:
    return EnrolClient(invite_of(), WORKER, "laptop-7", NONCE)


def test_admitted() -> None:
    joining = client()
    request = open_request(joining.request(NOW_S), ISSUER)
    assert (request.node, request.name, request.invite) == (WORKER.node, "laptop-7", invite_of().id)
    assert request.knows(invite_of().secret)
    answer = answer_admitted(request, ISSUER, proof_of(WORKER))
    assert joining.finish(answer, NOW_S) == (proof_of(WORKER), certificate_of(WORKER))


@pytest.mark.parametrize("error", [InviteInvalid, InviteExpired, InviteUsed, ClockWrong])
def test_refused_with_the_same_class(error: type[InviteInvalid | ClockWrong]) -> None:
    joining = client()
    request = open_request(joining.request(NOW_S), ISSUER)
    with pytest.raises(error, match="because") as caught:
        joining.finish(answer_refused(request, ISSUER, error("because")), NOW_S)
    assert type(caught.value) is error


def test_the_secret_is_proven_and_not_shown() -> None:
    request = open_request(client().request(NOW_S), ISSUER)
    assert not request.knows(b"t" * 32)
    assert invite_of().secret not in ISSUER.unseal(client().request(NOW_S))


def test_the_proof_holds_for_one_node_and_nonce_only() -> None:
    own = open_request(client().request(NOW_S), ISSUER)
    other = open_request(EnrolClient(invite_of(), STRANGER, "x", NONCE).request(NOW_S), ISSUER)
    again = open_request(EnrolClient(invite_of(), WORKER, "x", b"m" * 32).request(NOW_S), ISSUER)
    assert len({own.proof, other.proof, again.proof}) == 3


def test_only_the_issuer_reads_the_request() -> None:
    data = client().request(NOW_S)
    assert b"laptop-7" not in data
    with pytest.raises(ProtocolViolation):
        open_request(data, STRANGER)


def test_a_request_signed_by_another_key() -> None:
    payload = WORKER.sign(Domain.ENROL_REQUEST, b"").payload
    signed = STRANGER.sign(Domain.ENROL_REQUEST, payload)
    with pytest.raises(ProtocolViolation):
        open_request(seal(ISSUER.verify_key, signed.encode()), ISSUER)


def test_an_answer_of_somebody_else_or_to_another_request() -> None:
    joining = client()
    request = open_request(joining.request(NOW_S), ISSUER)
    with pytest.raises(ProtocolViolation):
        joining.finish(answer_admitted(request, STRANGER, proof_of(WORKER)), NOW_S)
    other = EnrolClient(invite_of(), WORKER, "laptop-7", b"o" * 32)
    with pytest.raises(ProtocolViolation, match="another request"):
        other.finish(answer_admitted(request, ISSUER, proof_of(WORKER)), NOW_S)


def test_a_certificate_that_is_not_ours_or_not_good_now() -> None:
    joining = client()
    request = open_request(joining.request(NOW_S), ISSUER)
    with pytest.raises(NotMember):
        joining.finish(answer_admitted(request, ISSUER, proof_of(STRANGER)), NOW_S)
    with pytest.raises(ClockWrong):
        joining.finish(answer_admitted(request, ISSUER, proof_of(WORKER)), NOW_S - 9000)


def test_changed_and_oversize_messages() -> None:
    joining = client()
    data = joining.request(NOW_S)
    request = open_request(data, ISSUER)
    answer = answer_admitted(request, ISSUER, proof_of(WORKER))
    assert max(len(data), len(answer)) < MAX_ENROL_BYTES
    for at in range(0, len(data), 7):
        with pytest.raises(MeshError):
            open_request(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], ISSUER)
    for at in range(0, len(answer), 7):
        with pytest.raises(MeshError):
            joining.finish(answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :], NOW_S)
    for oversize in (bytes(MAX_ENROL_BYTES + 1),):
        with pytest.raises(FrameTooLarge):
            open_request(oversize, ISSUER)
        with pytest.raises(FrameTooLarge):
            joining.finish(oversize, NOW_S)


def test_a_bad_name_is_told_before_anything_is_sent() -> None:
    with pytest.raises(BadInput):
        EnrolClient(invite_of(), WORKER, "bad/name", NONCE)
