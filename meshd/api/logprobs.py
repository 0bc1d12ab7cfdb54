"""Probabilities of tokens in the two shapes that OpenAI's clients know. Pure."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence

from meshd.core.generation import Token

_LEAST = -9999.0
"""What stands for a probability of nothing: JSON has no minus infinity, and OpenAI's API says this."""


LARGE_ENTRIES = 2000
"""So many probabilities take over 10 ms to write."""


def _told(logprob: float) -> float:
    return max(logprob, _LEAST) if math.isfinite(logprob) else _LEAST


def _entry(piece: bytes, logprob: float) -> dict[str, object]:
    return {"token": piece.decode(errors="replace"), "bytes": list(piece), "logprob": _told(logprob)}


def _chat_token(token: Token) -> dict[str, object]:
    assert token.score is not None  # noqa: S101 - only scored tokens are given to the functions below
    top = [_entry(a.piece, a.logprob) for a in token.score.top]
    return {**_entry(token.piece, token.score.logprob), "top_logprobs": top}


def chat_logprobs(tokens: Sequence[Token]) -> dict[str, object]:
    """Chat's shape. Tokens without a score (an upstream may leave some out) are not in it."""
    return {"content": [_chat_token(t) for t in tokens if t.score is not None], "refusal": None}


def many(tokens: Sequence[Token]) -> bool:
    """Whether these are so many that they are better written on a thread."""
    return sum(1 + len(t.score.top) for t in tokens if t.score is not None) > LARGE_ENTRIES


def _word(piece: bytes) -> str:
    """A token as a key: its text, or its bytes spelt out where they are not a whole character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class CompletionLogprobs:
    """The shape of text completions, token by token; ``text_offset`` goes on from one call to the next."""

    def __init__(self, top: int, offset: int = 0) -> None:
        self._top = top
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, tokens: Sequence[Token]) -> dict[str, object]:
        """The object for the next tokens. The token that was drawn is among the alternatives, as OpenAI has it."""
        scored = [t for t in tokens if t.score is not None]
        return {
            "tokens": [_word(t.piece) for t in scored],
            "token_logprobs": [_told(t.score.logprob) for t in scored if t.score],
            "top_logprobs": [self._alternatives(t) for t in scored] if self._top else None,
            "text_offset": [self._next_offset(t.piece) for t in scored],
        }

    def _alternatives(self, token: Token) -> dict[str, float]:
        assert token.score is not None  # noqa: S101 - see `of`
        told: dict[str, float] = {}
        for alternative in token.score.top:
            told.setdefault(_word(alternative.piece), _told(alternative.logprob))
        told.setdefault(_word(token.piece), _told(token.score.logprob))
        return told

    def _next_offset(self, piece: bytes) -> int:
        offset = self._offset
        self._offset += len(self._decoder.decode(piece))
        return offset
