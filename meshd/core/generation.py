"""What to generate: prompt, sampling, stops, and what comes back token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from meshd.core import limits
from meshd.core.errors import BadInput


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn; ``role`` is a template's word such as system, user, assistant."""

    role: str
    content: str

    def __post_init__(self) -> None:
        if self.role not in ("system", "developer", "user", "assistant", "tool"):
            raise BadInput(f"unknown role {self.role[:20]!r}", param="messages")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Either plain ``text`` to continue, or chat ``messages`` for the model's template; never both."""

    text: str | None = None
    messages: tuple[Message, ...] = ()

    def __post_init__(self) -> None:
        if (self.text is None) == (not self.messages):
            raise BadInput("give a text or at least one message", param="messages")
        if len(self.messages) > limits.MAX_MESSAGES:
            raise BadInput(f"more than {limits.MAX_MESSAGES} messages", param="messages")
        if self.size_bytes() > limits.MAX_PROMPT_BYTES:
            raise BadInput(f"prompt larger than {limits.MAX_PROMPT_BYTES} bytes", param="messages")

    def size_bytes(self) -> int:
        """UTF-8 size of all text in the prompt."""
        parts = [self.text or "", *(m.content for m in self.messages)]
        try:
            return sum(len(p.encode()) for p in parts)
        except UnicodeEncodeError:
            raise BadInput("the text holds lone surrogates", param="messages") from None


def _size_bytes(stop: str) -> int:
    try:
        return len(stop.encode())
    except UnicodeEncodeError:
        raise BadInput("a stop string holds lone surrogates", param="stop") from None


def _within(name: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise BadInput(f"{name} must be between {low:g} and {high:g}", param=name)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. ``temperature`` 0 is greedy. ``seed`` is always set: randomness is a
    function of (seed, token index), so that a resumed answer draws as the undisturbed one would."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0, 5)
        _within("top_p", self.top_p, 0, 1)
        _within("top_k", self.top_k, 0, 1_000_000)
        _within("min_p", self.min_p, 0, 1)
        _within("presence_penalty", self.presence_penalty, -2, 2)
        _within("frequency_penalty", self.frequency_penalty, -2, 2)
        if not 0 <= self.seed < 2**63:
            raise BadInput("seed must be a whole number between 0 and 2^63 - 1", param="seed")


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation as the app asked for it. ``max_tokens`` None: until the context is full."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    exact: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, 1, limits.MAX_OUTPUT_TOKENS)
        if len(self.stop) > limits.MAX_STOPS:
            raise BadInput(f"more than {limits.MAX_STOPS} stop strings", param="stop")
        for s in self.stop:
            if not 1 <= _size_bytes(s) <= limits.MAX_STOP_BYTES:
                raise BadInput(f"a stop string has 1 to {limits.MAX_STOP_BYTES} bytes", param="stop")


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token: its place in the answer (from 0), its id, and the bytes it stands for.

    ``piece`` is raw: a character may be spread over several tokens, so it need not be valid UTF-8.
    """

    index: int
    id: int
    piece: bytes


class FinishReason(StrEnum):
    """Why a generation ended: ``stop`` (end of text or stop string) or ``length`` (max_tokens or context)."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a finished job, as OpenAI's ``usage`` has them."""

    prompt_tokens: int
    completion_tokens: int
