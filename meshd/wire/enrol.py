"""The enrolment exchange: the one thing a stranger may say. One request, one answer, each in one bounded message.

The request is signed by the node's key and sealed to the issuer's; it proves knowledge of the invite's secret without
showing it (a keyed hash over node key, invite and nonce). The answer is signed by the issuer, names the request, and
is sealed to the node. So a bystander learns neither names nor secret, and cannot answer in the issuer's place.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from meshd.core import limits
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
from meshd.core.ids import NodeId
from meshd.core.trust import Certificate, Invite, parse_name
from meshd.wire.codec import decode, encode
from meshd.wire.keys import NodeKey, seal, verify_key_of
from meshd.wire.signing import Domain, Signed
from meshd.wire.trust import verify_chain
from meshd.wire.typed import from_wire, to_wire

NONCE_BYTES: Final = 32
REFUSALS: Final[dict[str, type[MeshError]]] = {
    cls.code: cls for cls in (InviteInvalid, InviteExpired, InviteUsed, ClockWrong)
}
"""What the issuer may refuse with; the node raises the same class."""


@dataclass(frozen=True, slots=True)
class EnrolRequest:
    """What a machine says: who it is, what it would like to be called, which invite it holds.

    ``wall_s`` is its wall clock: the issuer tells a machine whose clock is wrong before it gets a certificate
    that it could not use.
    """

    node: NodeId
    name: str
    invite: bytes
    nonce: bytes
    wall_s: float
    proof: bytes

    def __post_init__(self) -> None:
        parse_name(self.name)
        if len(self.nonce) != NONCE_BYTES or len(self.proof) != 32 or not 1 <= len(self.invite) <= 64:
            raise BadInput("field of a wrong length in an enrolment request")

    def knows(self, secret: bytes) -> bool:
        """Whether the sender knows the invite's secret."""
        return hmac.compare_digest(self.proof, _proof_of(secret, self.node, self.invite, self.nonce))


@dataclass(frozen=True, slots=True)
class _Response:
    nonce: bytes
    node: NodeId
    certificate: bytes
    refusal: str
    detail: str


class EnrolClient:
    """The joining machine's side: make the request, read the answer. ``nonce``: 32 random bytes."""

    def __init__(self, invite: Invite, key: NodeKey, name: str, nonce: bytes) -> None:
        parse_name(name)
        self._invite = invite
        self._key = key
        self._name = name
        self._nonce = nonce

    def request(self, now_s: float) -> bytes:
        """The sealed request at wall time ``now_s``; the same one may be sent to several addresses, or again."""
        asked = EnrolRequest(
            node=self._key.node,
            name=self._name,
            invite=self._invite.id,
            nonce=self._nonce,
            wall_s=now_s,
            proof=_proof_of(self._invite.secret, self._key.node, self._invite.id, self._nonce),
        )
        signed = self._key.sign(Domain.ENROL_REQUEST, encode(to_wire(asked)))
        return seal(self._invite.issuer_key, signed.encode())

    def finish(self, answer: bytes, now_s: float) -> tuple[bytes, Certificate]:
        """(proof, certificate) out of the issuer's answer.

        Raises InviteUsed, InviteExpired, InviteInvalid, ClockWrong as the issuer refused; ProtocolViolation,
        BadSignature, FrameTooLarge for an answer that is not the issuer's to this request; NotMember or ClockWrong
        when what it gave does not make this node a member now.
        """
        response = self._open(answer)
        if response.refusal:
            refusal = REFUSALS.get(response.refusal, InviteInvalid)
            raise refusal(response.detail or "the issuer refused", hint="ask for a new invite")
        proof = response.certificate
        return proof, verify_chain(proof, self._invite.org.root_key, self._key.node, now_s)

    def _open(self, answer: bytes) -> _Response:
        _bounded(answer)
        signed = Signed.decode(self._key.unseal(answer), limits.MAX_ENROL_BYTES)
        payload = signed.verify(self._invite.issuer_key, Domain.ENROL_RESPONSE)
        response = from_wire(_Response, decode(payload, limits.MAX_ENROL_BYTES))
        if response.nonce != self._nonce or response.node != self._key.node:
            raise ProtocolViolation("the answer is to another request")
        return response


def open_request(data: bytes, issuer: NodeKey) -> EnrolRequest:
    """The request in ``data``, sealed to ``issuer`` and signed by the node that it names.

    Raises FrameTooLarge, ProtocolViolation, BadSignature. Whether the invite is good is for the caller to judge.
    """
    _bounded(data)
    signed = Signed.decode(issuer.unseal(data), limits.MAX_ENROL_BYTES)
    request = from_wire(EnrolRequest, decode(signed.payload, limits.MAX_ENROL_BYTES))
    try:
        signed.verify(verify_key_of(request.node), Domain.ENROL_REQUEST)
    except BadInput as e:
        raise ProtocolViolation(e.message) from None
    return request


def answer_admitted(request: EnrolRequest, issuer: NodeKey, proof: bytes) -> bytes:
    """The sealed answer that carries the node's membership ``proof``."""
    return _answer(_Response(request.nonce, request.node, proof, "", ""), issuer)


def answer_refused(request: EnrolRequest, issuer: NodeKey, error: InviteInvalid | NotMember) -> bytes:
    """The sealed answer that refuses with the class and words of ``error``."""
    return _answer(_Response(request.nonce, request.node, b"", error.code, error.message[:500]), issuer)


def _answer(response: _Response, issuer: NodeKey) -> bytes:
    signed = issuer.sign(Domain.ENROL_RESPONSE, encode(to_wire(response)))
    return seal(verify_key_of(response.node), signed.encode())


def _bounded(data: bytes) -> None:
    if len(data) > limits.MAX_ENROL_BYTES:
        raise FrameTooLarge("enrolment message too large")


def _proof_of(secret: bytes, node: NodeId, invite: bytes, nonce: bytes) -> bytes:
    """Keyed BLAKE2b over the three, each of fixed or prefixed length so that no two inputs run together."""
    text = encode([verify_key_of(node), invite, nonce])
    return hashlib.blake2b(text, digest_size=32, key=secret, person=b"meshd-enrol-1").digest()
