"""How much of the waiting prompts goes into one step. Pure; times come from outside.

A step that decodes running answers and prefills beside them takes longer than one that only decodes, and every
running answer waits for it. So the share of prompts is what keeps such a step within ``STALL`` of a plain one, by
costs measured in earlier steps. Without running answers there is nobody to stall, and a step is bounded only so that
cancels and signs of life stay prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from meshd.engine.schedule import Feed

STALL: Final = 2.6
"""Times a plain step. Below the three that are promised for the 99th percentile, as single steps scatter."""

ALONE_STEP_S: Final = 0.5
MIN_CHUNK_TOKENS: Final = 8
"""Fewer cost nearly as much: what a step costs at all, it costs for one token."""

_WEIGHT: Final = 0.2


class Pace:
    """``chunk_tokens``: never more in one step."""

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens
        self._plain_s = 0.0
        self._token_s = 0.0
        self._beside_s = 0.0

    def note(self, feeds: Sequence[Feed], seconds_s: float) -> None:
        """A step of ``feeds`` computed for so long."""
        prompts = [len(feed.tokens) for feed in feeds if len(feed.tokens) > 1]
        tokens = sum(prompts)
        if not tokens:
            self._plain_s = _blend(self._plain_s, seconds_s)
        elif len(prompts) == len(feeds):
            if tokens >= MIN_CHUNK_TOKENS:
                self._token_s = _blend(self._token_s, seconds_s / tokens)
        elif self._plain_s:
            self._beside_s = _blend(self._beside_s, max(seconds_s - self._plain_s, 0.0) / tokens)

    def room_tokens(self, running: int) -> int:
        """How many tokens of prompts the next step may hold beside ``running`` answers."""
        if not running:
            return self._bounded(ALONE_STEP_S, self._token_s)
        return self._bounded((STALL - 1) * self._plain_s, self._beside_s or self._token_s)

    def _bounded(self, budget_s: float, token_s: float) -> int:
        if not token_s or not budget_s:
            return self._chunk_tokens
        return min(self._chunk_tokens, max(MIN_CHUNK_TOKENS, int(budget_s / token_s)))


def _blend(old: float, new: float) -> float:
    return new if old == 0 else old + _WEIGHT * (new - old)
