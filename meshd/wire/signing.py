"""What is signed, and under which name: ``sign(domain || 0 || payload)``.

Every kind of signed thing has a domain of its own with a version in it, so a signature made for one kind never
verifies as another. No domain holds a zero byte, so none is the beginning of another.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from nacl.bindings import crypto_sign_open
from nacl.exceptions import CryptoError

from meshd.core.errors import BadSignature, ProtocolViolation
from meshd.wire.codec import decode, encode

SIGNATURE_BYTES = 64


class Domain(Enum):
    """The kinds of signed things. A changed format gets a new version, never the old name."""

    DELEGATION = b"meshd/delegation/1"
    CERTIFICATE = b"meshd/certificate/1"
    AD = b"meshd/ad/1"
    TASK = b"meshd/task/1"
    RECEIPT = b"meshd/receipt/1"
    INVITE = b"meshd/invite/1"
    ENROL_REQUEST = b"meshd/enrol-request/1"
    ENROL_RESPONSE = b"meshd/enrol-response/1"
    REVOCATION = b"meshd/revocation/1"

    def message(self, payload: bytes) -> bytes:
        """The bytes that are really signed."""
        return b"%b\0%b" % (self.value, payload)


def verify(verify_key: bytes, domain: Domain, payload: bytes, signature: bytes) -> None:
    """Return when ``signature`` is ``verify_key``'s over ``payload`` in ``domain``; BadSignature otherwise.

    Strict Ed25519, as libsodium has it: S below the group order, no small-order keys or points.
    """
    if len(signature) != SIGNATURE_BYTES or len(verify_key) != 32:
        raise BadSignature("signature or key of a wrong length")
    try:
        crypto_sign_open(signature + domain.message(payload), verify_key)
    except (CryptoError, ValueError):
        raise BadSignature("the signature does not verify") from None


@dataclass(frozen=True, slots=True)
class Signed:
    """Payload bytes as they were signed, and the signature."""

    payload: bytes
    signature: bytes

    def encode(self) -> bytes:
        """The canonical bytes of the envelope."""
        return encode([self.payload, self.signature])

    @classmethod
    def decode(cls, data: bytes, max_bytes: int) -> Signed:
        """The envelope in ``data``, not verified yet. Raises FrameTooLarge, ProtocolViolation."""
        return cls.of(decode(data, max_bytes))

    @classmethod
    def of(cls, value: object) -> Signed:
        """The envelope in an already decoded value. Raises ProtocolViolation."""
        match value:
            case [bytes() as payload, bytes() as signature] if len(signature) == SIGNATURE_BYTES:
                return cls(payload, signature)
        raise ProtocolViolation("not a signed envelope")

    def verify(self, verify_key: bytes, domain: Domain) -> bytes:
        """The payload, once the signature verifies; BadSignature otherwise."""
        verify(verify_key, domain, self.payload, self.signature)
        return self.payload
