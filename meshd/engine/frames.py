"""Messages between the pool and an engine process: msgpack lists, each behind its length in 4 bytes (big endian).

Both ends are ours, yet a corrupt engine must not make the daemon allocate: a frame over ``MAX_FRAME_BYTES`` is refused
by its length alone.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
"""A prompt of 2 MiB and a million delivered token ids of at most 5 bytes, with room."""

_HEADER_BYTES: Final = 4

Message = list[Any]
"""First the kind (a short word), then its fields."""


class FrameError(Exception):
    """The other end wrote something that is not a frame of ours."""


def pack(message: Message) -> bytes:
    """The frame of ``message``; FrameError when it would be too large."""
    body: bytes = msgpack.packb(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes is over {MAX_FRAME_BYTES}")
    return len(body).to_bytes(_HEADER_BYTES, "big") + body


class Unpacker:
    """Cuts a byte stream back into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take in the next bytes; the messages they complete. Raises FrameError."""
        self._buffer += data
        messages = []
        while (body := self._next_body()) is not None:
            messages.append(_message(body))
        return messages

    def _next_body(self) -> bytes | None:
        if len(self._buffer) < _HEADER_BYTES:
            return None
        size = int.from_bytes(self._buffer[:_HEADER_BYTES], "big")
        if size > MAX_FRAME_BYTES:
            raise FrameError(f"a frame announces {size} bytes")
        end = _HEADER_BYTES + size
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_HEADER_BYTES:end])
        del self._buffer[:end]
        return body


def _message(body: bytes) -> Message:
    try:
        message = msgpack.unpackb(body)
    except (ValueError, msgpack.UnpackException) as error:
        raise FrameError(f"not msgpack: {error}") from None
    if not isinstance(message, list) or not message or not isinstance(message[0], str):
        raise FrameError("not a message")
    return message
