"""Runs of tokens packed tightly: ids, then piece lengths, then the pieces themselves.

This is the hot path (one run a token), and the long one (a resumed task carries up to a million), so it is packed by
hand: no list of lists, and a reader's memory is bounded by what arrived.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final

from meshd.core import limits
from meshd.core.errors import BadInput, ProtocolViolation
from meshd.core.generation import Alternative, Score, Token
from meshd.wire.codec import decode, encode
from meshd.wire.typed import from_wire, to_wire

_HEAD: Final = struct.Struct(">II")
_ONE: Final = struct.Struct(">IIIH")
_TOKEN_BYTES: Final = 6
_SCORE_BYTES: Final = 40
"""Names of its fields, an id, a float64, a header for the piece."""


def pack_tokens(tokens: Sequence[Token]) -> bytes:
    """The bytes of consecutively numbered ``tokens``. BadInput for an id beyond 32 bits, a piece beyond 64 KiB,
    or a gap in the numbering."""
    count = len(tokens)
    first = tokens[0].index if count else 0
    try:
        if count == 1:
            return _ONE.pack(first, 1, tokens[0].id, len(tokens[0].piece)) + tokens[0].piece
        if any(t.index != first + i for i, t in enumerate(tokens)):
            raise BadInput("tokens must be numbered without a gap", param="tokens")
        ids = struct.pack(f">{count}I", *[t.id for t in tokens])
        sizes = struct.pack(f">{count}H", *[len(t.piece) for t in tokens])
    except struct.error:
        raise BadInput("a token id has 32 bits and a piece at most 64 KiB", param="tokens") from None
    return b"".join([_HEAD.pack(first, count), ids, sizes, *[t.piece for t in tokens]])


def unpack_tokens(data: bytes) -> tuple[Token, ...]:
    """The tokens that ``data`` is exactly the packing of. Raises ProtocolViolation."""
    size = len(data)
    if size < _HEAD.size:
        raise ProtocolViolation("truncated run of tokens")
    first, count = _HEAD.unpack_from(data)
    start = _HEAD.size + 6 * count
    if count > limits.MAX_OUTPUT_TOKENS or first + count > limits.MAX_OUTPUT_TOKENS or start > size:
        raise ProtocolViolation("run of tokens out of range")
    if count == 1:
        _, _, token, length = _ONE.unpack_from(data)
        if start + length != size:
            raise ProtocolViolation("pieces do not fill the run of tokens")
        return (Token(first, token, data[start:]),)
    ids = struct.unpack_from(f">{count}I", data, _HEAD.size)
    ends = list(accumulate(struct.unpack_from(f">{count}H", data, _HEAD.size + 4 * count), initial=start))
    if ends[-1] != size or (count == 0 and first != 0):
        raise ProtocolViolation("pieces do not fill the run of tokens")
    return tuple([Token(first + i, ids[i], data[ends[i] : ends[i + 1]]) for i in range(count)])


def pack_scored(tokens: Sequence[Token]) -> bytes:
    """As `pack_tokens`, with the score that each of ``tokens`` has (BadInput when one has none)."""
    scores = [t.score for t in tokens if t.score is not None]
    if len(scores) != len(tokens):
        raise BadInput("either every token is scored or none", param="tokens")
    return encode([pack_tokens(tokens), [to_wire(score) for score in scores]])


def unpack_scored(data: bytes) -> tuple[Token, ...]:
    """The scored tokens that ``data`` is exactly the packing of. Raises ProtocolViolation."""
    match decode(data, limits.MAX_TASK_FRAME_BYTES):
        case [bytes() as run, list() as scores]:
            tokens = unpack_tokens(run)
        case _:
            raise ProtocolViolation("not a run of scored tokens")
    if len(scores) != len(tokens):
        raise ProtocolViolation("as many scores as tokens are due")
    return tuple([replace(t, score=from_wire(Score, s)) for t, s in zip(tokens, scores, strict=True)])


def size_bytes(token: Token) -> int:
    """About how much of a frame ``token`` takes."""
    alternatives: Sequence[Alternative] = token.score.top if token.score is not None else ()
    scored = 0 if token.score is None else _SCORE_BYTES + sum(_SCORE_BYTES + len(a.piece) for a in alternatives)
    return _TOKEN_BYTES + len(token.piece) + scored
