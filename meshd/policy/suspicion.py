"""How sure we are that a node lives, from what we saw of it."""

from __future__ import annotations

from enum import StrEnum

from meshd.core import limits


class Liveness(StrEnum):
    """``alive``: may get work. ``suspect``: known, but silent or cut off; gets none. ``gone``: forgotten."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    GONE = "gone"


def silent_since(talked_at_s: float | None, now_s: float) -> bool:
    """Whether a node we talk to has missed its heartbeats (monotonic seconds; None: never talked, never silent)."""
    return talked_at_s is not None and now_s >= talked_at_s + limits.SUSPECT_AFTER_S
