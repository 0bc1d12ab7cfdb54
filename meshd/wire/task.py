"""A task on its way: a readable header, a body that only the worker opens, the submitter's signature over both.

Layout: header length (2 bytes, big endian), header, sealed body, signature (64 bytes). The signature covers all that
is before it. The body repeats the hash of the header, so a sealed body cannot be lifted into another's task.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from meshd.core import limits
from meshd.core.errors import BadInput, BadSignature, FrameTooLarge, ProtocolViolation, TaskExpired, WrongRecipient
from meshd.core.ids import ModelDigest
from meshd.core.job import Job
from meshd.core.task import Task, TaskHeader
from meshd.wire.codec import decode, encode
from meshd.wire.keys import NodeKey, seal, verify_key_of
from meshd.wire.receipt import request_hash
from meshd.wire.secretstream import StreamKeys
from meshd.wire.signing import SIGNATURE_BYTES, Domain, verify
from meshd.wire.tokens import pack_tokens, unpack_tokens
from meshd.wire.typed import from_wire, to_wire

MAX_HEADER_BYTES: Final = 8192
"""Ids and at most 16 regions of 263 characters."""

_LENGTH: Final = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class OpenedTask:
    """A task that this worker may run, as far as bytes can tell. ``request_hash`` goes into the receipt."""

    task: Task
    keys: StreamKeys
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class _Body:
    header_hash: bytes
    job: Job
    digest: ModelDigest | None
    delivered: bytes
    up: bytes
    down: bytes


def seal_task(task: Task, key: NodeKey, stream_keys: StreamKeys) -> bytes:
    """The bytes of ``task``, signed by its submitter's ``key`` and sealed to its worker.

    Raises BadInput when ``key`` is not the submitter's or the whole exceeds MAX_TASK_BYTES.
    """
    if key.node != task.header.submitter:
        raise BadInput("only the submitter signs its task", param="submitter")
    header = encode(to_wire(task.header))
    body = _Body(
        header_hash=_hash(header),
        job=task.job,
        digest=task.digest,
        delivered=pack_tokens(task.delivered),
        up=stream_keys.up,
        down=stream_keys.down,
    )
    sealed = seal(verify_key_of(task.header.worker), encode(to_wire(body)))
    unsigned = b"".join([_LENGTH.pack(len(header)), header, sealed])
    if len(unsigned) + SIGNATURE_BYTES > limits.MAX_TASK_BYTES:
        raise BadInput(f"a task has at most {limits.MAX_TASK_BYTES} bytes", param="messages")
    return unsigned + key.sign(Domain.TASK, unsigned).signature


def open_task(data: bytes, key: NodeKey, now_s: float) -> OpenedTask:
    """The task in ``data``, sealed to ``key``'s node, at wall time ``now_s``.

    Raises FrameTooLarge, ProtocolViolation, BadSignature by the fault of the sender; WrongRecipient and TaskExpired
    (past, or further ahead than TASK_TTL_S) as reasons to decline. Replay is for the caller to notice.
    """
    header_bytes = _header_bytes(data)
    header = from_wire(TaskHeader, decode(header_bytes, MAX_HEADER_BYTES))
    _verify(data, header)
    if header.worker != key.node:
        raise WrongRecipient("the task is for another worker")
    _check_expiry(header, now_s)
    sealed = data[_LENGTH.size + len(header_bytes) : -SIGNATURE_BYTES]
    body = from_wire(_Body, decode(key.unseal(sealed), limits.MAX_TASK_BYTES))
    if body.header_hash != _hash(header_bytes):
        raise ProtocolViolation("the sealed body was made for another header")
    try:
        task = Task(header, body.job, body.digest, unpack_tokens(body.delivered))
        keys = StreamKeys(up=body.up, down=body.down)
    except BadInput as e:
        raise ProtocolViolation(e.message) from None
    return OpenedTask(task, keys, request_hash(data))


def _header_bytes(data: bytes) -> bytes:
    if len(data) > limits.MAX_TASK_BYTES:
        raise FrameTooLarge(f"task of {len(data)} bytes where {limits.MAX_TASK_BYTES} are allowed")
    if len(data) < _LENGTH.size + SIGNATURE_BYTES:
        raise ProtocolViolation("truncated task")
    end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
    if end > len(data) - SIGNATURE_BYTES:
        raise ProtocolViolation("truncated task")
    return data[_LENGTH.size : end]


def _verify(data: bytes, header: TaskHeader) -> None:
    try:
        submitter = verify_key_of(header.submitter)
    except BadInput:
        raise BadSignature("the submitter's id holds no key") from None
    verify(submitter, Domain.TASK, data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:])


def _check_expiry(header: TaskHeader, now_s: float) -> None:
    late_s = now_s - header.expires_at
    if late_s > limits.CLOCK_SKEW_S:
        raise TaskExpired(f"the task expired {late_s:.0f} s ago")
    if -late_s > limits.TASK_TTL_S + limits.CLOCK_SKEW_S:
        raise TaskExpired(f"the task expires only in {-late_s:.0f} s", hint="compare the two machines' clocks")


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()
