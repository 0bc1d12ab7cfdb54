"""Server-sent events out of bytes. Pure; memory is bounded by one event."""

from __future__ import annotations

from typing import Final

MAX_EVENT_BYTES: Final = 1024 * 1024
"""A token's event has a few hundred bytes, a whole tool call some tens of thousands; more is no event of ours."""


class EventTooLarge(Exception):
    """The other side sends an event, or a line, without end."""


class EventReader:
    """Feed it what arrives; it answers with the data of every event that is complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size_bytes = 0

    def feed(self, received: bytes) -> list[bytes]:
        """The events that are whole now. Comments and other fields count as nothing. Raises EventTooLarge."""
        whole: list[bytes] = []
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            self._line(line.removesuffix(b"\r"), whole)
        if len(self._rest) + self._size_bytes > MAX_EVENT_BYTES:
            raise EventTooLarge
        return whole

    def _line(self, line: bytes, whole: list[bytes]) -> None:
        if line:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
                self._size_bytes += len(line)
            if self._size_bytes > MAX_EVENT_BYTES:
                raise EventTooLarge
        elif self._data:
            whole.append(b"\n".join(self._data))
            self._data, self._size_bytes = [], 0
