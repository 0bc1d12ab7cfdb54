"""Canonical msgpack: one value has exactly one encoding, and only that one is read.

Maps have text keys in ascending order, whole numbers and lengths take their shortest form, fractions are float64.
So a signature over bytes is a signature over the value, and no two byte strings mean the same thing.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack

from meshd.core.errors import BadInput, FrameTooLarge, ProtocolViolation

MAX_DEPTH: Final = 12
"""The deepest message of the protocol (a task body) nests 6 levels; twice that leaves room to grow."""

MAX_ITEMS: Final = 4096
"""Entries of one list or map. Long runs of tokens travel as packed bytes, so no honest list comes near."""

MAX_TOTAL_ITEMS: Final = 32_768
"""Entries of all lists and maps together. A task of MAX_MESSAGES turns has 6,144. Without this bound 4 MiB of empty
lists would take 300 MiB and seconds on the event loop."""

Value = None | bool | int | float | str | bytes | list[Any] | dict[str, Any]
"""What msgpack carries here: no extension types, text keys only."""


def encode(value: object) -> bytes:
    """The canonical bytes of ``value`` (tuples become lists, map keys are sorted).

    Raises BadInput, by the caller's fault, for what msgpack cannot say: lone surrogates, numbers beyond 64 bits,
    nesting beyond MAX_DEPTH, other types.
    """
    try:
        packed = msgpack.packb(_sorted(value, MAX_DEPTH))
    except (ValueError, TypeError, OverflowError) as e:
        raise BadInput(f"cannot be encoded: {e}") from None
    return bytes(packed)


def decode(data: bytes, max_bytes: int) -> Any:
    """The value that ``data`` is the canonical encoding of.

    Raises FrameTooLarge before anything is read when ``data`` is longer than ``max_bytes``, ProtocolViolation for
    everything that :func:`encode` would not have written: trailing or missing bytes, extension types, unsorted or
    doubled keys, long forms, too deep nesting, too many entries. Memory is bounded by ``max_bytes`` and a few MiB.
    """
    if len(data) > max_bytes:
        raise FrameTooLarge(f"message of {len(data)} bytes where {max_bytes} are allowed")
    count = _Count()
    try:
        value = msgpack.unpackb(
            data,
            list_hook=count.entries,
            object_pairs_hook=count.ordered,
            ext_hook=_refuse_ext,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
        canonical = _depth_within(value, MAX_DEPTH) and msgpack.packb(value) == data
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as e:
        raise ProtocolViolation(f"malformed message: {type(e).__name__}") from None
    if not canonical:
        raise ProtocolViolation("malformed message: not in canonical form")
    return value


def _sorted(value: object, depth: int) -> object:
    if isinstance(value, (dict, list, tuple)):
        if depth == 0:
            raise ValueError("nested too deeply")
        if isinstance(value, dict):
            if any(type(k) is not str for k in value):
                raise TypeError("map keys must be text")
            return {k: _sorted(value[k], depth - 1) for k in sorted(value)}
        return [_sorted(v, depth - 1) for v in value]
    return value


def _depth_within(value: object, depth: int) -> bool:
    if type(value) is list:
        return depth > 0 and all(_depth_within(v, depth - 1) for v in value)
    if type(value) is dict:
        return depth > 0 and all(_depth_within(v, depth - 1) for v in value.values())
    return type(value) is not msgpack.Timestamp  # timestamps are an extension type that skips the hook


class _Count:
    """Counts the entries of one message while it is read, and refuses beyond MAX_TOTAL_ITEMS."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = MAX_TOTAL_ITEMS

    def entries(self, items: list[object]) -> list[object]:
        """A list that was read."""
        self._left -= len(items)
        if self._left < 0:
            raise ValueError("too many entries")
        return items

    def ordered(self, pairs: list[tuple[object, object]]) -> dict[str, object]:
        """A map that was read."""
        self._left -= len(pairs)
        if self._left < 0:
            raise ValueError("too many entries")
        return _ordered(pairs)


def _ordered(pairs: list[tuple[object, object]]) -> dict[str, object]:
    last: str | None = None
    for key, _ in pairs:
        if type(key) is not str or (last is not None and key <= last):
            raise ValueError("map keys must be ascending text")
        last = key
    return dict(pairs)  # type: ignore[arg-type]  # every key was just seen to be text


def _refuse_ext(code: int, data: bytes) -> object:
    raise ValueError("extension types are not part of the protocol")
