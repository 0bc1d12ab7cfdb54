"""Shorthands for asking an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from meshd.core.engine import EngineFinished, EngineLimits, EngineModel, EngineStarted, EngineTokens, ModelFile
from meshd.core.generation import FinishReason, Generation, Prompt, Sampling, Token
from meshd.engine.pool import EnginePool

FULL = EngineLimits(threads=2)
ONE = EngineLimits(threads=1)
"""A tiny model computes no faster with more."""

SLOW = EngineLimits(threads=1, duty=0.02)
GREEDY = Sampling(temperature=0)


@dataclass
class Answer:
    tokens: list[Token] = field(default_factory=list)
    started: EngineStarted | None = None
    reason: FinishReason | None = None

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    def take(self, event: object) -> None:
        """Count an event in; the order and the indexes must be right."""
        if isinstance(event, EngineStarted):
            assert self.started is None and not self.tokens
            self.started = event
        elif isinstance(event, EngineTokens):
            assert self.started is not None and self.reason is None
            self.tokens += event.tokens
        elif isinstance(event, EngineFinished):
            self.reason = event.reason


def ask(text: str = "hello", *, max_tokens: int | None = 40, exact: bool = False, **sampling: float) -> Generation:
    settings = Sampling(**{"temperature": 0, **sampling})  # type: ignore[arg-type]
    return Generation(Prompt(text), settings, max_tokens, exact=exact)


async def answer(pool: EnginePool, model: ModelFile, request: Generation, delivered: Sequence[Token] = ()) -> Answer:
    """The whole answer."""
    result = Answer()
    async with pool.generate(model.digest, request, delivered) as events:
        async for event in events:
            result.take(event)
    assert [token.index for token in result.tokens] == list(range(len(delivered), len(delivered) + len(result.tokens)))
    assert result.reason is not None
    return result


async def loaded(pool: EnginePool, model: ModelFile, limits: EngineLimits = ONE) -> EngineModel:
    return await pool.load(model, limits)
