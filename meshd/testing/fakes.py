"""In-memory fakes of the engine, the probe and the directory; deterministic, and usable under trio's MockClock.

The network's fakes are in `meshd.testing.network`. All raise what the ports promise, and nothing else.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

import trio

from meshd.core.classes import DataClass, Region
from meshd.core.engine import (
    EngineEvent,
    EngineFinished,
    EngineLimits,
    EngineModel,
    EngineStarted,
    EngineStatus,
    EngineTokens,
    MachineInfo,
    ModelFile,
)
from meshd.core.errors import BeyondLimits, ContextOverflow, EngineFailed, ModelInvalid, NotFound, Overloaded
from meshd.core.generation import Alternative, FinishReason, Generation, Opening, Prompt, Score, Token
from meshd.core.ids import ModelDigest, NodeId
from meshd.core.job import Embedding, Tokenization, Work
from meshd.core.trust import Certificate

FAKE_DIGEST = ModelDigest("fa" * 32)
FAKE_MODEL = "fake"
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_FAR_FUTURE_S = 4e9


def fake_node(number: int) -> NodeId:
    """The node id number ``number``."""
    digits = ""
    for _ in range(44):
        number, digit = divmod(number, 58)
        digits = _ALPHABET[digit] + digits
    return NodeId("12D3KooW" + digits)


def fake_certificate(
    node: NodeId,
    *,
    org: bytes = b"o" * 32,
    region: str = "eu/de/berlin",
    clearance: DataClass = DataClass.RESTRICTED,
    serial: int = 1,
) -> Certificate:
    """A certificate of ``node`` that never expires."""
    name = f"node-{node[-6:]}"
    return Certificate(org, node, name, "lab", Region(region), clearance, (), ("member",), 0.0, _FAR_FUTURE_S, serial)


def fake_token(prompt: Prompt, seed: int, index: int) -> Token:
    """The token that every `FakeEngine` produces at ``index``: a function of prompt, seed and index only."""
    text = prompt.text if prompt.text is not None else "\n".join(f"{m.role}: {m.content}" for m in prompt.messages)
    text += " ".join(str(token) for token in prompt.tokens)
    number = zlib.crc32(f"{seed}/{index}/{text}".encode())
    return Token(index, number & 0x7FFFFFFF, f"w{number % 1000} ".encode())


def fake_answer(work: Work, length: int) -> tuple[Token, ...]:
    """The whole answer that a `FakeEngine` of that ``length`` gives: of an embedding, vectors of two numbers; of a
    tokenisation, one token a word."""
    match work:
        case Embedding(inputs):
            return tuple(Token(i, 0, struct.pack("<2f", i, len(inputs))) for i in range(len(inputs)))
        case Tokenization(prompt):
            words = (prompt.text or "").split()
            return tuple(Token(i, zlib.crc32(w.encode()) & 0x7FFFFFFF, w.encode()) for i, w in enumerate(words))
    count = length if work.max_tokens is None else min(length, work.max_tokens)
    return tuple(_scored(fake_token(work.prompt, work.sampling.seed, i), work.top_logprobs) for i in range(count))


def _scored(token: Token, top_logprobs: int | None) -> Token:
    if top_logprobs is None:
        return token
    top = tuple(Alternative(token.id + n, b"alt%d" % n, -0.5 - n) for n in range(top_logprobs))
    return replace(token, score=Score(-0.5, top))


def _prompt_tokens(work: Work) -> int:
    prompts = work.inputs if isinstance(work, Embedding) else (work.prompt,)
    return sum(prompt.size_bytes() // 4 + 1 for prompt in prompts)


@dataclass(slots=True)
class FakeEngine:
    """An engine whose answer has ``answer_tokens`` tokens, one every ``1 / tokens_per_s`` seconds, after
    ``prefill_s``. A model counts as loaded after `load`, or at once when it is in ``models``.

    `crash` fails what runs and all that comes, until `recover`; `hang` stops producing, until `recover`; `die` fails
    what runs, and nothing is loaded any more. Loading takes ``load_s``, in five steps; no more than ``room`` models are
    loaded at a time; ``invalid`` ones never are.
    """

    slots: int = 4
    tokens_per_s: float = 100.0
    prefill_s: float = 0.0
    answer_tokens: int = 20
    context_tokens: int = 4096
    stops: tuple[str, ...] = ()
    models: list[EngineModel] = field(default_factory=list)
    limits: EngineLimits | None = None
    running: int = 0
    most_running: int = 0
    started: int = 0
    load_s: float = 0.0
    loads: int = 0
    room: int = 1000
    invalid: set[ModelDigest] = field(default_factory=set)
    deaths: int = 0
    crashed: bool = False
    hung: bool = False
    _changed: trio.Event = field(default_factory=trio.Event)

    def loaded(self) -> tuple[EngineModel, ...]:
        return () if self.crashed else tuple(self.models)

    def status(self) -> tuple[EngineStatus, ...]:
        """No process: an engine that costs nothing."""
        return ()

    def slots_free(self, digest: ModelDigest) -> int:
        return self.slots - self.running if self._has(digest) else 0

    def _has(self, digest: ModelDigest) -> bool:
        return any(m.digest == digest for m in self.models)

    async def load(
        self, model: ModelFile, limits: EngineLimits, progress: Callable[[float], None] | None = None
    ) -> EngineModel:
        """Load within ``load_s``; raises EngineFailed while crashed, ModelInvalid, BeyondLimits (no room)."""
        await trio.lowlevel.checkpoint()
        self.loads += 1
        self.limits = limits
        for loaded in self.models:
            if loaded.digest == model.digest and not self.crashed:
                return loaded
        if model.digest in self.invalid:
            raise ModelInvalid("the fake file is damaged")
        if len(self.models) >= self.room:
            raise BeyondLimits("the fake engine is full", crowded=self.room > 0)
        for step in range(5 if self.load_s else 0):
            if progress is not None:
                progress(step / 5)
            await self.wait(self.load_s / 5)
        if self.crashed:
            raise EngineFailed("the fake engine has crashed")
        self.models.append(fake_model(model.name, model.digest, self))
        return self.models[-1]

    async def unload(self, digest: ModelDigest) -> None:
        self.models = [m for m in self.models if m.digest != digest]
        await trio.lowlevel.checkpoint()

    async def limit(self, limits: EngineLimits) -> None:
        await trio.lowlevel.checkpoint()
        self.limits = limits

    def crash(self) -> None:
        """Fail every generation, running and to come."""
        self.crashed = True
        self._notify()

    def die(self) -> None:
        """Fail every generation that runs and forget the models, as a killed process does."""
        self.deaths += 1
        self.models.clear()
        self._notify()

    def hang(self) -> None:
        """Produce nothing more."""
        self.hung = True

    def recover(self) -> None:
        """Work again."""
        self.crashed = self.hung = False
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    @asynccontextmanager
    async def generate(
        self, digest: ModelDigest, work: Work, delivered: Sequence[Token], owner: str = ""
    ) -> AsyncIterator[AsyncIterator[EngineEvent]]:
        """One piece of work. Raises NotFound (model not loaded), Overloaded, ContextOverflow, EngineFailed."""
        if self.crashed:
            raise EngineFailed("the fake engine has crashed")
        if not self._has(digest):
            raise NotFound("that model is not loaded")
        prompt_tokens = _prompt_tokens(work)
        if prompt_tokens + len(delivered) > self.context_tokens:
            raise ContextOverflow(f"{prompt_tokens} tokens in a context of {self.context_tokens}", param="messages")
        with self._slot():
            yield _Events(self, work, len(delivered), prompt_tokens)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        if self.running >= self.slots:
            raise Overloaded("every sequence is taken", retry_after_s=0.1)
        self.running += 1
        self.started += 1
        self.most_running = max(self.most_running, self.running)
        try:
            yield
        finally:
            self.running -= 1

    async def wait(self, seconds: float, deaths: int | None = None) -> None:
        """Let the engine work for so long; raises EngineFailed when it crashes meanwhile, or died more than ``deaths``
        times."""
        deaths = self.deaths if deaths is None else deaths
        until_s = trio.current_time() + seconds
        while not self.crashed and self.deaths == deaths and (self.hung or trio.current_time() < until_s):
            changed = self._changed
            with trio.move_on_at(float("inf") if self.hung else until_s):
                await changed.wait()
        await trio.lowlevel.checkpoint()
        if self.crashed or self.deaths != deaths:
            raise EngineFailed("the fake engine has crashed")


def fake_model(
    name: str = FAKE_MODEL, digest: ModelDigest = FAKE_DIGEST, engine: FakeEngine | None = None
) -> EngineModel:
    """What a fake engine says of a loaded model."""
    of = engine or FakeEngine()
    return EngineModel(name, digest, of.context_tokens, of.slots, False, 0, 10 * of.tokens_per_s, of.tokens_per_s)


class _Events:
    """The events of one piece of work; an iterator rather than a generator, so that leaving it costs nothing."""

    def __init__(self, engine: FakeEngine, work: Work, index: int, prompt_tokens: int) -> None:
        self._engine = engine
        self._answer = fake_answer(work, engine.answer_tokens)
        limit = work.max_tokens if isinstance(work, Generation) else None
        self._cut = limit is not None and limit <= engine.answer_tokens
        self._index = index
        self._prompt_tokens = prompt_tokens
        self._deaths = engine.deaths
        self._state = "new"

    def __aiter__(self) -> AsyncIterator[EngineEvent]:
        return self

    async def __anext__(self) -> EngineEvent:
        if self._state == "over":
            raise StopAsyncIteration
        if self._state == "new":
            await self._engine.wait(self._engine.prefill_s, self._deaths)
            self._state = "running"
            return EngineStarted(Opening(self._prompt_tokens, self._engine.stops))
        if self._index >= len(self._answer):
            await self._engine.wait(0, self._deaths)
            self._state = "over"
            return EngineFinished(FinishReason.LENGTH if self._cut else FinishReason.STOP)
        await self._engine.wait(1 / self._engine.tokens_per_s, self._deaths)
        self._index += 1
        return EngineTokens((self._answer[self._index - 1],))


@dataclass(slots=True)
class FakeProbe:
    """A machine that has what it is told to have."""

    cpu_threads: int = 4
    memory_bytes: int = 16 * 2**30
    memory_available_bytes: int = 8 * 2**30

    def machine(self) -> MachineInfo:
        return MachineInfo(self.cpu_threads, self.memory_bytes, self.memory_available_bytes, ())
