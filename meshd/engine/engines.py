"""All engines of this node behind one port: llama.cpp's processes, and the servers that it stands in front of.

Which of them has a model is told by the digest: a file's is never an upstream's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from meshd.core.engine import EngineEvent, EngineLimits, EngineModel, EngineStatus, ModelFile
from meshd.core.generation import Token
from meshd.core.ids import ModelDigest
from meshd.core.job import Work
from meshd.core.upstream import Learnt, Upstream, UpstreamStatus
from meshd.engine.config import PoolConfig, UpstreamConfig
from meshd.engine.pool import EnginePool, open_pool
from meshd.engine.upstream import UpstreamEngine
from meshd.engine.upstream_http import Server
from meshd.engine.upstream_learn import learn


class Upstreams:
    """The servers that this node stands in front of. Use `open_engines`."""

    def __init__(self, config: UpstreamConfig, nursery: trio.Nursery) -> None:
        self._config = config
        self._nursery = nursery
        self._engines: dict[ModelDigest, UpstreamEngine] = {}
        self._scopes: dict[ModelDigest, trio.CancelScope] = {}
        self._changed: Callable[[], None] = _nothing

    def on_change(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` whenever an upstream becomes ready or stops being so."""
        self._changed = changed

    def get(self, digest: ModelDigest) -> UpstreamEngine | None:
        """The upstream of that digest."""
        return self._engines.get(digest)

    def all(self) -> tuple[UpstreamEngine, ...]:
        """Every one, ready or not."""
        return tuple(self._engines.values())

    def statuses(self) -> tuple[UpstreamStatus, ...]:
        """How each of them is."""
        return tuple(engine.status() for engine in self._engines.values())

    async def learn(self, upstream: Upstream) -> Learnt:
        """Ask the server what it can do. Raises BadInput (address, key or model), Unreachable, Overloaded."""
        server = Server(upstream, self._config)
        try:
            return await learn(server, upstream, self._config)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await server.close()

    def open(self, upstream: Upstream, learnt: Learnt | None = None) -> UpstreamStatus:
        """Stand in front of it from now on. Without ``learnt`` it is asked first, and offered when it answered."""
        engine = UpstreamEngine(upstream, self._config, lambda: self._changed())
        scope = trio.CancelScope()
        self._engines[upstream.digest], self._scopes[upstream.digest] = engine, scope
        if learnt is not None:
            engine.taught(learnt)
        self._nursery.start_soon(self._live, engine, scope)
        return engine.status()

    async def _live(self, engine: UpstreamEngine, scope: trio.CancelScope) -> None:
        with scope:
            await engine.run()

    def close(self, digest: ModelDigest) -> None:
        """Stand in front of it no longer; what runs there ends with EngineFailed. Unknown: nothing happens."""
        engine, scope = self._engines.pop(digest, None), self._scopes.pop(digest, None)
        if engine is not None and scope is not None:
            engine.leave()
            scope.cancel()


def _nothing() -> None:
    """Nobody listens yet."""


class Engines:
    """Implements the node's Engine port over ``files`` and ``upstreams``."""

    def __init__(self, files: EnginePool, upstreams: Upstreams) -> None:
        self.files = files
        self.upstreams = upstreams

    def loaded(self) -> tuple[EngineModel, ...]:
        """The models that can be used now, of files and of upstreams."""
        offered = (engine.model() for engine in self.upstreams.all())
        return (*self.files.loaded(), *(model for model in offered if model is not None))

    def slots_free(self, digest: ModelDigest) -> int:
        """How many more generations of that model may start now."""
        upstream = self.upstreams.get(digest)
        return upstream.slots_free if upstream is not None else self.files.slots_free(digest)

    def status(self) -> tuple[EngineStatus, ...]:
        """Every engine process, then every upstream."""
        return (*self.files.status(), *(engine.engine_status() for engine in self.upstreams.all()))

    async def load(
        self, model: ModelFile, limits: EngineLimits, progress: Callable[[float], None] | None = None
    ) -> EngineModel:
        """Load (or keep) a file. Raises ModelInvalid, BeyondLimits, EngineFailed."""
        return await self.files.load(model, limits, progress)

    async def unload(self, digest: ModelDigest) -> None:
        """End the engine of that file."""
        await self.files.unload(digest)

    async def limit(self, limits: EngineLimits) -> None:
        """Put new limits on every engine process. An upstream takes nothing of this machine."""
        await self.files.limit(limits)

    def generate(
        self, digest: ModelDigest, work: Work, delivered: Sequence[Token] = (), owner: str = ""
    ) -> AbstractAsyncContextManager[AsyncIterator[EngineEvent]]:
        """Do one piece of work where that model is. Raises BadInput, ContextOverflow, Overloaded, EngineFailed."""
        upstream = self.upstreams.get(digest)
        if upstream is not None:
            return upstream.generate(work, delivered)
        return self.files.generate(digest, work, delivered, owner)


@asynccontextmanager
async def open_engines(
    pool_config: PoolConfig | None = None, upstream_config: UpstreamConfig | None = None
) -> AsyncIterator[Engines]:
    """Engines without models. On leaving, every process is killed and every connection closed."""
    async with open_pool(pool_config) as pool, trio.open_nursery() as nursery:
        try:
            yield Engines(pool, Upstreams(upstream_config or UpstreamConfig(), nursery))
        finally:
            nursery.cancel_scope.cancel()
