"""How fast a server answers, measured on the answers that went through. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from meshd.core.ad import MAX_TOKENS_PER_S, MIN_TOKENS_PER_S, Rate
from meshd.core.limits import MAX_RATES_PER_MODEL

_WEIGHT: Final = 0.2
"""Of the newest answer: about the last five count."""

_MIN_TOKENS: Final = 8
"""Shorter answers tell more about the network than about the server."""

_MIN_PROMPT_TOKENS: Final = 64
"""Of a shorter prompt most of the time is the way there and back."""


@dataclass(frozen=True, slots=True)
class Pace:
    """One whole answer: the prompt's tokens and the time until the first token, then the tokens and their time."""

    prompt_tokens: int
    prompt_s: float
    tokens: int
    tokens_s: float


class Speed:
    """Moving averages. 0: not measured."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.generation_tokens_per_s = 0.0
        self._by_running: dict[int, float] = {}

    def note(self, pace: Pace, running: int) -> None:
        """An answer ended; ``running`` ran at once, itself included."""
        if pace.prompt_tokens >= _MIN_PROMPT_TOKENS:
            self.prefill_tokens_per_s = _blend(self.prefill_tokens_per_s, pace.prompt_tokens / _some(pace.prompt_s))
        if pace.tokens >= _MIN_TOKENS:
            per_s = (pace.tokens - 1) / _some(pace.tokens_s)
            self.generation_tokens_per_s = _blend(self.generation_tokens_per_s, per_s)
            step = 1 << min(running.bit_length() - 1, MAX_RATES_PER_MODEL - 1)
            self._by_running[step] = _blend(self._by_running.get(step, 0.0), per_s * step)

    def rates(self) -> tuple[Rate, ...]:
        """All answers together, by how many ran at once: 1, 2, 4 and so on, as far as it came to that."""
        return tuple(Rate(step, per_s) for step, per_s in sorted(self._by_running.items()))


def _some(seconds: float) -> float:
    """A clock may say that no time passed."""
    return max(seconds, 1e-6)


def _blend(old: float, new: float) -> float:
    mixed = new if old == 0 else old + _WEIGHT * (new - old)
    return min(max(mixed, MIN_TOKENS_PER_S), MAX_TOKENS_PER_S)
