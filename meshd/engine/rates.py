"""Measured speed: moving averages over real decode steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from meshd.engine.schedule import Feed

_WEIGHT: Final = 0.1
"""Of the newest step: about the last ten steps count."""

_PREFILL_MIN_TOKENS: Final = 32
"""Smaller chunks tell nothing about prefill speed."""


class Rates:
    """Tokens/s of prompts, and of one answer among those that run beside it. 0: not measured."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.generation_tokens_per_s = 0.0

    def note(self, feeds: Sequence[Feed], seconds_s: float) -> None:
        """A step of ``feeds`` took so long, rests for the owner's limits included."""
        seconds_s = max(seconds_s, 1e-6)
        tokens = sum(len(feed.tokens) for feed in feeds)
        if tokens == len(feeds):
            self.generation_tokens_per_s = _blend(self.generation_tokens_per_s, 1 / seconds_s)
        elif tokens - len(feeds) >= _PREFILL_MIN_TOKENS:
            self.prefill_tokens_per_s = _blend(self.prefill_tokens_per_s, tokens / seconds_s)

    def scale(self, factor: float) -> None:
        """The owner's limits changed by ``factor``: expect as much, until steps tell better."""
        self.prefill_tokens_per_s *= factor
        self.generation_tokens_per_s *= factor


def _blend(old: float, new: float) -> float:
    return new if old == 0 else old + _WEIGHT * (new - old)
