"""Receipts: the worker's signature and what it hashed."""

from __future__ import annotations

import hashlib

import pytest

from meshd.core.errors import BadInput, BadSignature, ProtocolViolation
from meshd.wire.codec import encode
from meshd.wire.receipt import OutputHash, open_receipt, output_hash, receipt_id, sign_receipt
from meshd.wire.signing import Domain
from meshd.wire.typed import to_wire
from tests.wire.samples import STRANGER, WORKER, receipt_of, tokens_of

SIGNED = sign_receipt(receipt_of(), WORKER)


def test_comes_back() -> None:
    assert open_receipt(SIGNED) == open_receipt(SIGNED, WORKER.node) == receipt_of()


def test_another_workers_receipt() -> None:
    with pytest.raises(ProtocolViolation):
        open_receipt(SIGNED, STRANGER.node)
    with pytest.raises(BadInput):
        sign_receipt(receipt_of(), STRANGER)
    payload = encode(to_wire(receipt_of()))
    with pytest.raises(BadSignature):
        open_receipt(STRANGER.sign(Domain.RECEIPT, payload).encode())


def test_every_changed_byte_is_noticed() -> None:
    for at in range(len(SIGNED)):
        changed = bytearray(SIGNED)
        changed[at] ^= 0x01
        with pytest.raises(ProtocolViolation):
            open_receipt(bytes(changed))


def test_output_hash_does_not_depend_on_how_tokens_came() -> None:
    whole, parts = OutputHash(), OutputHash()
    whole.add(tokens_of(5))
    parts.add(tokens_of(2))
    parts.add(())
    parts.add(tokens_of(5)[2:])
    plain = hashlib.blake2b(b"".join((1000 + i).to_bytes(4, "big") for i in range(5)), digest_size=32)
    assert whole.digest() == parts.digest() == plain.digest()
    assert whole.tokens == parts.tokens == 5
    assert output_hash(b"".join((1000 + i).to_bytes(4, "big") for i in range(5))) == whole.digest()


def test_ids_name_signed_bytes() -> None:
    assert receipt_id(SIGNED) != receipt_id(SIGNED + b"\0")
    assert receipt_id(SIGNED).startswith("rcpt_")
