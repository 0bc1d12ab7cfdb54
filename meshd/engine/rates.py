"""Measured speed: moving averages over real decode steps."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2
from typing import Final

from meshd.core import limits
from meshd.engine.schedule import Feed

_WEIGHT: Final = 0.1
"""Of the newest step: about the last ten steps count."""

_PREFILL_MIN_TOKENS: Final = 32
"""Smaller chunks tell nothing about prefill speed."""

SIZES: Final = tuple(1 << n for n in range(limits.MAX_RATES_PER_MODEL))
"""Numbers of answers at once of which the speed is kept: 1, 2, 4, 8, 16, 32."""


class Rates:
    """Tokens/s of prompts, and of answers in all by how many run at once. 0: not measured."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self._by_sequences: dict[int, float] = {}

    @property
    def generation_tokens_per_s(self) -> float:
        """Of one answer alone."""
        return self._by_sequences.get(1, 0.0)

    def by_sequences(self) -> list[tuple[int, float]]:
        """(answers at once, tokens/s in all), rising."""
        return sorted(self._by_sequences.items())

    def note(self, feeds: Sequence[Feed], seconds_s: float) -> None:
        """A step of ``feeds`` took so long, rests for the owner's limits included."""
        seconds_s = max(seconds_s, 1e-6)
        tokens = sum(len(feed.tokens) for feed in feeds)
        if tokens == len(feeds):
            size = SIZES[min(round(log2(tokens)), len(SIZES) - 1)]
            self._by_sequences[size] = _blend(self._by_sequences.get(size, 0.0), tokens / seconds_s)
        elif tokens - len(feeds) >= _PREFILL_MIN_TOKENS:
            self.prefill_tokens_per_s = _blend(self.prefill_tokens_per_s, tokens / seconds_s)

    def scale(self, factor: float) -> None:
        """The owner's limits changed by ``factor``: expect as much, until steps tell better."""
        self.prefill_tokens_per_s *= factor
        self._by_sequences = {size: rate * factor for size, rate in self._by_sequences.items()}


def _blend(old: float, new: float) -> float:
    return new if old == 0 else old + _WEIGHT * (new - old)
