"""NaCl secret stream (XChaCha20-Poly1305): frames in order, none missing, none added, the end unmistakable.

One key each way (`StreamKeys`). The 24-byte stream header travels in front of the first message, so callers
just seal and open. A stream that stops without its final message was truncated: ``PullStream.finished`` stays false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from nacl.bindings import (
    crypto_secretstream_xchacha20poly1305_ABYTES,
    crypto_secretstream_xchacha20poly1305_HEADERBYTES,
    crypto_secretstream_xchacha20poly1305_init_pull,
    crypto_secretstream_xchacha20poly1305_init_push,
    crypto_secretstream_xchacha20poly1305_pull,
    crypto_secretstream_xchacha20poly1305_push,
    crypto_secretstream_xchacha20poly1305_state,
    crypto_secretstream_xchacha20poly1305_TAG_FINAL,
    crypto_secretstream_xchacha20poly1305_TAG_MESSAGE,
)
from nacl.exceptions import CryptoError

from meshd.core.errors import BadInput, ProtocolViolation

OVERHEAD_BYTES: Final = crypto_secretstream_xchacha20poly1305_ABYTES + crypto_secretstream_xchacha20poly1305_HEADERBYTES
"""The most that sealing adds to a message (the first one also carries the stream's header)."""

_HEADER_BYTES: Final = crypto_secretstream_xchacha20poly1305_HEADERBYTES
_TAGS: Final = {
    False: crypto_secretstream_xchacha20poly1305_TAG_MESSAGE,
    True: crypto_secretstream_xchacha20poly1305_TAG_FINAL,
}


@dataclass(frozen=True, slots=True, repr=False)
class StreamKeys:
    """One key (32 bytes) each way, made afresh for every attempt: ``up`` from submitter to worker, ``down`` back.

    It has no repr of its fields: they are secrets.
    """

    up: bytes
    down: bytes

    def __post_init__(self) -> None:
        if len(self.up) != 32 or len(self.down) != 32:
            raise BadInput("a stream key has 32 bytes", param="stream_keys")
        if self.up == self.down:
            raise BadInput("the two directions need different keys", param="stream_keys")


class PushStream:
    """The sending end of one direction. After the final message it seals no more."""

    __slots__ = ("_prefix", "_state", "finished")

    def __init__(self, key: bytes) -> None:
        self._state = crypto_secretstream_xchacha20poly1305_state()
        self._prefix: bytes = crypto_secretstream_xchacha20poly1305_init_push(self._state, key)
        self.finished = False

    def seal(self, plaintext: bytes, *, final: bool = False) -> bytes:
        """The next message of the stream, sealed. ``final``: there will be no other."""
        if self.finished:
            raise ValueError("the stream was already ended")
        sealed = crypto_secretstream_xchacha20poly1305_push(self._state, plaintext, None, _TAGS[final])
        prefix, self._prefix, self.finished = self._prefix, b"", final
        return prefix + bytes(sealed)


class PullStream:
    """The receiving end of one direction."""

    __slots__ = ("_key", "_state", "finished")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._state: crypto_secretstream_xchacha20poly1305_state | None = None
        self.finished = False

    def open(self, sealed: bytes) -> bytes:
        """The next message, opened. ``finished`` is true once it was the final one.

        Raises ProtocolViolation for anything but the very next message: changed, doubled, out of order, after the
        end. The stream is of no use afterwards.
        """
        if self.finished:
            raise ProtocolViolation("a message after the stream's end")
        state, body = self._begin(sealed)
        try:
            plaintext, tag = crypto_secretstream_xchacha20poly1305_pull(state, body, None)
        except (CryptoError, ValueError, TypeError):
            raise ProtocolViolation("a message of the stream does not open") from None
        if tag not in _TAGS.values():
            raise ProtocolViolation("unknown tag in the stream")
        self.finished = tag == crypto_secretstream_xchacha20poly1305_TAG_FINAL
        return bytes(plaintext)

    def _begin(self, sealed: bytes) -> tuple[crypto_secretstream_xchacha20poly1305_state, bytes]:
        if self._state is not None:
            return self._state, sealed
        if len(sealed) < OVERHEAD_BYTES:
            raise ProtocolViolation("the stream's first message is too short")
        self._state = crypto_secretstream_xchacha20poly1305_state()
        crypto_secretstream_xchacha20poly1305_init_pull(self._state, sealed[:_HEADER_BYTES], self._key)
        return self._state, sealed[_HEADER_BYTES:]


def push_stream(key: bytes) -> PushStream:
    """The sending end of a new stream under ``key`` (32 bytes)."""
    return PushStream(key)


def pull_stream(key: bytes) -> PullStream:
    """The receiving end of a new stream under ``key`` (32 bytes)."""
    return PullStream(key)
