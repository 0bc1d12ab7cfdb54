"""Receipts as bytes, signed by the worker, and the running hash of what it produced."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

from meshd.core.errors import BadInput, ProtocolViolation
from meshd.core.generation import Token
from meshd.core.ids import NodeId
from meshd.core.receipt import Receipt
from meshd.wire.codec import decode, encode
from meshd.wire.keys import NodeKey, verify_key_of
from meshd.wire.signing import Domain, Signed
from meshd.wire.typed import from_wire, to_wire

MAX_RECEIPT_BYTES: Final = 2048
"""Names of 200 characters, four hashes and ids: under 1 KiB."""


class OutputHash:
    """BLAKE2b-256 over the token ids produced, 4 bytes each, big endian; fed as they come. ``tokens``: how many."""

    __slots__ = ("_hash", "tokens")

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=32)
        self.tokens = 0

    def add(self, tokens: Sequence[Token]) -> None:
        """Count further tokens in."""
        self._hash.update(struct.pack(f">{len(tokens)}I", *[t.id for t in tokens]))
        self.tokens += len(tokens)

    def digest(self) -> bytes:
        """The hash of all ids so far (32 bytes)."""
        return self._hash.digest()


def output_hash(ids: bytes) -> bytes:
    """BLAKE2b-256 of token ids that are packed already (4 bytes each, big endian)."""
    return hashlib.blake2b(ids, digest_size=32).digest()


def request_hash(task: bytes) -> bytes:
    """BLAKE2b-256 of a sealed task as it travelled."""
    return hashlib.blake2b(task, digest_size=32).digest()


def receipt_id(signed: bytes) -> str:
    """The name of a signed receipt: ``rcpt_`` and 32 hex digits of its BLAKE2b hash."""
    return f"rcpt_{hashlib.blake2b(signed, digest_size=16).hexdigest()}"


def sign_receipt(receipt: Receipt, worker: NodeKey) -> bytes:
    """The signed receipt. BadInput when ``worker`` is not the worker it names."""
    if worker.node != receipt.worker:
        raise BadInput("only the worker itself signs its receipt", param="worker")
    return worker.sign(Domain.RECEIPT, encode(to_wire(receipt))).encode()


def open_receipt(data: bytes, worker: NodeId | None = None) -> Receipt:
    """The receipt in ``data``, signed by the worker it names (``worker``, when given).

    Raises FrameTooLarge, ProtocolViolation (malformed, another worker's), BadSignature.

    Whether it speaks of the attempt, submitter and output that the reader knows of is for the reader to compare.
    """
    signed = Signed.decode(data, MAX_RECEIPT_BYTES)
    receipt = from_wire(Receipt, decode(signed.payload, MAX_RECEIPT_BYTES))
    if len(receipt.request_hash) != 32 or len(receipt.output_hash) != 32:
        raise ProtocolViolation("a receipt's hashes have 32 bytes")
    if worker not in (None, receipt.worker):
        raise ProtocolViolation("the receipt is another worker's")
    try:
        signed.verify(verify_key_of(receipt.worker), Domain.RECEIPT)
    except BadInput as e:
        raise ProtocolViolation(e.message) from None
    return receipt
