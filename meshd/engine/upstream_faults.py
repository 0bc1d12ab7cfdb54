"""What can go wrong with somebody else's server, in this room's own words."""

from __future__ import annotations

from typing import Final

from meshd.core.errors import BadInput, ContextOverflow, EngineFailed, MeshError, Overloaded

MAX_ERROR_CHARS: Final = 300
MAX_RETRY_S: Final = 60.0
USUAL_RETRY_S: Final = 1.0


class Away(EngineFailed):
    """The connection could not be made, or broke: what is there afterwards may be another program."""


class Silent(EngineFailed):
    """Nothing came for longer than this node waits."""


class Garbled(EngineFailed):
    """What came is not what OpenAI's API answers."""


class Refusal(Exception):
    """The server answered with an HTTP error. ``text``: what it said, short and printable."""

    def __init__(self, status: int, text: str, code: str, retry_after_s: float | None) -> None:
        super().__init__(f"HTTP {status}: {text}")
        self.status, self.text, self.code, self.retry_after_s = status, text, code, retry_after_s


def readable(text: object) -> str:
    """Words of a stranger, short and on one line."""
    shown = " ".join(str(text).split())[:MAX_ERROR_CHARS]
    return "".join(c if c.isprintable() else "?" for c in shown)


_KEY_REFUSED: Final = frozenset({401, 403})
_BUSY: Final = frozenset({408, 425, 429, 503, 529})
_ASKED_WRONG: Final = frozenset({400, 413, 414, 422})


def of_work(refusal: Refusal) -> MeshError:
    """What a refusal of one piece of work means: whose fault, and what becomes of the attempt."""
    said = f"the server behind this model said {refusal.status}: {refusal.text}"
    if refusal.status in _BUSY:
        wait_s = refusal.retry_after_s if refusal.retry_after_s is not None else USUAL_RETRY_S
        return Overloaded(said, retry_after_s=min(max(wait_s, 0.1), MAX_RETRY_S))
    if refusal.status in _ASKED_WRONG:
        return ContextOverflow(said, param="messages") if _too_long(refusal) else BadInput(said)
    if refusal.status in _KEY_REFUSED:
        return EngineFailed(f"the server behind this model refuses the key: {refusal.text}")
    return EngineFailed(said)


def _too_long(refusal: Refusal) -> bool:
    """llama.cpp, vLLM and OpenAI each have their own words for it; all of them name the context."""
    return refusal.status == 413 or "context" in f"{refusal.code} {refusal.text}".lower()


def refuses_key(refusal: Refusal) -> bool:
    """Whether it is the key that is wrong, or missing."""
    return refusal.status in _KEY_REFUSED


def is_busy(refusal: Refusal) -> bool:
    """Whether the same may work a little later."""
    return refusal.status in _BUSY
